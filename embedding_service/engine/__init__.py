"""The gateway's side of the wire: replicas of worker processes, and the protocol."""
