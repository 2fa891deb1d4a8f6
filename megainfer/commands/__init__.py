"""The subcommands of `megainfer`, beyond what fits into `cli.py`."""
