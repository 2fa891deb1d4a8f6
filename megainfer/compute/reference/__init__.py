"""The model in plain torch: obvious, slow where it has to be, and the oracle of the others."""
