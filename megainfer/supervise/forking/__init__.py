"""Forking: what is imported before it, and the processes of a node."""
