"""What the roads between processes of one host share: memory and bells as file descriptors, how two
processes meet, and who is alive."""
