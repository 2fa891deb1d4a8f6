"""The server with a scripted node behind it."""
