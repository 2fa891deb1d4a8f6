"""Both roles in one process, over `local`."""
