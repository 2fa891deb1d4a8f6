"""What a checkpoint holds on disk, and how a model's weights are read from it."""
