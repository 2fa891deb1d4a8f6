"""What a training run is told: each key once, with its check and its description; no torch."""
