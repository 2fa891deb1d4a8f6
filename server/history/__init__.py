"""What was said before, as clients write it, in the words of a chat that templates know."""
