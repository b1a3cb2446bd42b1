"""`python -m bertfast`."""

from bertfast.cli import main

main()
