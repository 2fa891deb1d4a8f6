"""The search for a deployment: which devices in which role, how many, and how large a batch."""
