"""What stands between an interface and the nodes: requests in, tokens out, and their limits."""
