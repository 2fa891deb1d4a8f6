"""Experts that one expert node gives another as they are computed with: no file is read."""
