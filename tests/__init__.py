"""The suite, by tier: the cheapest first."""
