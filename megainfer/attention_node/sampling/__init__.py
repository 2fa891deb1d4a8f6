"""From logits to tokens: masks, edits, the draw itself, and log-probabilities."""
