"""``python -m mesascope`` is the command line."""

from mesascope.cli import main

main()
