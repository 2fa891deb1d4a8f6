"""The expert node: gathers rows of many attention nodes, computes its experts, replies."""
