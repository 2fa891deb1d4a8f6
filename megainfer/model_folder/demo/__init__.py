"""How the demo model is made; `model` is what the rest of the package calls."""
