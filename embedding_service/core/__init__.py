"""What happens to a request between the wire and the engine; knows nothing of HTTP."""
