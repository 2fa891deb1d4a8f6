"""`megainfer plan`: its options, its tables."""
