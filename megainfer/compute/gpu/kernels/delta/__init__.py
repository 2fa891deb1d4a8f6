"""Gated DeltaNet: linear attention with a recurrent state."""
