"""Triton kernels, and functions that launch them: what `compute/reference/kernels` computes.

Only these modules import triton. A function takes the device first and gives its work to the
current stream; nothing here asks a device for a value.
"""
