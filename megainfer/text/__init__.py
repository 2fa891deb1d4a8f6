"""Between text and tokens: tokenizers, chat templates, and answers as they grow."""
