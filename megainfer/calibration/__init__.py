"""What this machine reaches, measured by our kernels, copies and messages, as the planner has it."""
