"""What a model's text means: reasoning, tool calls, and what is left for the reader.

Pure state machines over text that comes in pieces. However a text is cut, its parts are the same.
"""
