"""`python -m bnnzoo`: the command line of the Python that runs it."""

from bnnzoo.cli import main

main()
