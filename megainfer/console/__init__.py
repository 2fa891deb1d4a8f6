"""What a person sees in a terminal while an instance starts and works."""
