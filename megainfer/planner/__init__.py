"""What a deployment costs and brings, from formulas and measured stages; no torch."""
