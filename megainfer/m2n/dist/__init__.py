"""M2N between hosts, and between GPUs that share no memory: over torch.distributed point to point.

Each pair of nodes has one TCP connection of ours, the control connection, and two process groups of
torch with two ranks each, one a direction. A message is its header on the control connection, the
bell, and its payload as one send of its sender's group; the receiver posts when it has the bell.
Whoever receives puts both into slots of its own, so that the rules are those of `slotted`.
"""
