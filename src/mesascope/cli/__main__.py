"""Run the command line with ``python -m mesascope.cli``."""

from mesascope.cli import main

if __name__ == "__main__":
    main()
