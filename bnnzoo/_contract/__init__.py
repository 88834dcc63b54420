"""The checks of `bnnzoo.testing`, by what they look at, and what they measure with."""
