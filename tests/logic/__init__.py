"""No device, no process, no socket: seconds."""
