"""What `compare_checkouts.py` is made of."""
