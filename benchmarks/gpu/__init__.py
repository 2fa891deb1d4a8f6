"""What `gpu_suite.py` and `kernel_table.py` are made of."""
