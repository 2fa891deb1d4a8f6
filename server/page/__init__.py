"""The page at `/`: its files, and what its live view is told."""
