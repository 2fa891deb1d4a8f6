"""What this machine reaches, measured with our kernels and messages, as the planner has it."""
