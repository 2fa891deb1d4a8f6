"""An instance on several hosts, as a plan: where its nodes are, and whether they fit there."""
