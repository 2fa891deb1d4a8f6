"""Shapes of each family that tests write checkpoints of: one module a model_type."""
