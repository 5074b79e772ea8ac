"""`python -m kamado` is `kamado`."""

from .cli.main import main

if __name__ == "__main__":
    main()
