"""Attention over a paged cache: softmax over grouped heads, latent, and over chosen positions."""
