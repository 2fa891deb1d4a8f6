"""TLS: a certificate and its key, for clients and between hosts."""
