"""Who starts the processes of an instance, watches them and ends them: above all nodes."""
