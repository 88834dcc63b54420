"""Names for what type checkers cannot follow."""

from typing import Any, TypeAlias

#: A Pyro distribution: torch's class with Pyro's methods mixed in. No class of either library has the members of both.
Distribution: TypeAlias = Any

#: A message of Pyro's handlers, which at a sample site has a distribution for its function.
Site: TypeAlias = Any
