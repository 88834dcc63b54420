"""The command line: `bnnzoo list | fit | score | predict | export`."""

from bnnzoo.cli.app import app, main

__all__ = ["app", "main"]
