"""A training run: its steps, what it writes, and how it goes on after a stop."""
