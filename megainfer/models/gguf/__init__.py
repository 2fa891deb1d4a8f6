"""What llama.cpp's architectures are in ours: config.json of a GGUF file's metadata, and names."""
