"""What a plan and the processes of a node say of its ranks: what can be, seats, links."""
