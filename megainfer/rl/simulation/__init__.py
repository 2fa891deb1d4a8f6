"""How long steps of training take at sizes that nobody has at hand: lengths drawn, machines
predicted by the planner; no torch."""
