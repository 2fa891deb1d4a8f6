"""The rules over slots in memory, whichever road brings the memory to both ends."""
