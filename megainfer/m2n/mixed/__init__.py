"""Several roads in one instance: memory between nodes of one host, a network between hosts."""
