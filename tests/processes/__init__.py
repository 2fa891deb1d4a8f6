"""Real processes: roads between them, supervisor, commands, killed nodes."""
