"""What the C++ parts share: how a built library is found and loaded, and their common headers."""
