"""What takes long, and what is a time or a rate: `make soak`."""
