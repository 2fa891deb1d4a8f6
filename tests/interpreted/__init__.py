"""Each implementation of the computation against the reference, and that against transformers."""
