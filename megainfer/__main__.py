"""`python -m megainfer` is the `megainfer` command."""

from megainfer.cli import main

if __name__ == "__main__":
    main()
