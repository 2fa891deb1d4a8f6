"""`megainfer rl`."""
