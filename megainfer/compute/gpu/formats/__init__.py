"""How experts' weights are kept on a GPU: quantised here, on the host, and decoded by kernels."""
