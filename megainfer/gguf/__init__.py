"""GGUF files, llama.cpp's format: what they say of themselves. Pure: no torch, no numpy."""
