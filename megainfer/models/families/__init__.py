"""One file a family: from its config.json to a spec."""
