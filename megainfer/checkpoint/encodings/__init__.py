"""The ways in which a weight can be stored, one a file; `choice` finds that of a given weight.

Quantised weights are (code - zero point) * scale, computed in float32.
"""
