"""M2N: the road between attention nodes and expert nodes. See docs/m2n.md."""
