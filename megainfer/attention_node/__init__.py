"""The attention node: scheduling, KV cache, the attention half of each layer, sampling."""
