"""The road between processes of one host: slots in shared memory, passed as file descriptors."""
