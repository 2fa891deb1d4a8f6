"""The road between GPUs of one host: words and headers in shared memory of the host, payloads in
the devices'."""
