"""`embedding-service verify`: whether a machine's or a server's vectors are right."""
