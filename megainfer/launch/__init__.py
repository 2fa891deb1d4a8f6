"""Planning an instance, and starting, watching and ending its processes."""
