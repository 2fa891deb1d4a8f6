"""Weights that come by a broadcast of torch.distributed."""
