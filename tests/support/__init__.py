"""What tests share: checkpoints, clusters, servers, scripted ends."""
