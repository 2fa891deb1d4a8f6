"""Where this process is."""


def get_node_ip_address() -> str:
    from ray import here

    return str(getattr(here, "address", "127.0.0.1"))


def remove_placement_group(group: object) -> None:
    """It holds nothing."""
