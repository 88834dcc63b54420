"""`python -m bnnzoo.cli`: the same as the command `bnnzoo`."""

from bnnzoo.cli.app import main

main()
