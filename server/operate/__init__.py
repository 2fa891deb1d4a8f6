"""What operators ask of a server: health, metrics, counters of nodes, traces."""
