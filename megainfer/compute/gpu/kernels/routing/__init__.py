"""Which experts tokens choose, and what is sent where."""
