"""`python -m flipsearch` is the command `flipsearch`."""

from flipsearch.commands.main import main

main()
