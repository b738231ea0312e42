"""`python -m flipsearch` is the command `flipsearch`."""

from flipsearch.cli import main

main()
