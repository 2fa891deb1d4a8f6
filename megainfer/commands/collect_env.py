"""`megainfer collect-env`."""


def collect_env() -> None:
    """Print what a bug report needs: versions, machine, kernels.

    Nothing of it is secret: no environment variable, no path, no host name.
    """
    from megainfer.commands.environment import describe_environment

    print("\n".join(describe_environment()))
