"""All that processes say to each other outside of M2N: msgpack of tagged structs, never pickle."""
