"""Entry point of ``python -m mesascope``."""

from mesascope.cli import main

main()
