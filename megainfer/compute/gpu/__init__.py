"""The model in Triton kernels, for NVIDIA GPUs; interpreted on the CPU where there is none."""
