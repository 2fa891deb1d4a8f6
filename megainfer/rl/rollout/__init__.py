"""Who draws answers from the policy."""
