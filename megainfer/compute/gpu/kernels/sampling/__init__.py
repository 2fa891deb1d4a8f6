"""Finding tokens in logits."""
