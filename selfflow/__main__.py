"""`python -m selfflow` is `selfflow`."""

from selfflow.cli import main

if __name__ == "__main__":
    main()
