"""What the ranks of a node, which share a model's tensors, tell each other, and how they wait.

Rank 0 gives orders, and rows with them; the others compute and have made rows of their own
(`road.py`). There are three roads: memory without a name, made before the ranks of one host are
forked (`memory.py`); between GPUs of a host, collectives of NCCL beside that memory (`group.py`);
and connections to ranks of other hosts (`dist/`). What a node computes together is its own affair.
"""
