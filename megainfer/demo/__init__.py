"""How the demo model is made; `megainfer.demo_model` is what the rest of the package calls."""
