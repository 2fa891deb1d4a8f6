"""Tokenizers and chat templates out of GGUF files, as the files of a model folder."""
