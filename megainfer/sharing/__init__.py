"""What clients share: how much each may hold, and whose turn it is."""
