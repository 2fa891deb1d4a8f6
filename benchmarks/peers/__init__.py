"""Other engines on the same machine: their environments, their programs, and turns among them."""
