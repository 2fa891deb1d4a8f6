"""Kernels compiled for GPUs that this machine hasn't got."""
