"""An attention node's half of a model: what is asked of it, and who computes it."""
