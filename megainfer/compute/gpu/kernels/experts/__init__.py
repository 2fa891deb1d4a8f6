"""What routed experts compute, from rows in messages to their sums: in files from the first to the
last, `messages`, `tiles`, `grouped_ffn` over `weights`, `choices`."""
