"""Which sequences do what in a step, and where their state lies; no torch."""
