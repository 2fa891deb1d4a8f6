"""Policy and value models, and what changes them."""
