"""`megainfer agent`: one process a host, which starts nodes there for a supervisor elsewhere."""
