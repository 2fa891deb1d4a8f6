"""Model families: what a checkpoint holds and how its layers are shaped; no torch."""
