"""How much better a token was than expected; plain numbers, without torch."""
