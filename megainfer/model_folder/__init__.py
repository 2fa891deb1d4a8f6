"""From MODEL (a path, a hub id, nothing) to a folder with a checkpoint."""
