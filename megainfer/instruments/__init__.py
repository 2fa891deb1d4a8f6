"""Clocks and what they tell: stages, spans, profiles, the start."""
