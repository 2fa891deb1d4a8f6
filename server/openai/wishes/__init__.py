"""What a request may ask for beside its text: obeyed by translation, or refused by name."""
