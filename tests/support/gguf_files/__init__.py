"""GGUF files of small checkpoints, as llama.cpp's converter writes them; an independent one."""
