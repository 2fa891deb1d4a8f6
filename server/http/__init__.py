"""The server as HTTP has it: connections, bodies, keys, errors; knows no model."""
