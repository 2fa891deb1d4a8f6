"""What a model costs on hardware: FLOPs and bytes, seconds, and bytes of memory."""
