"""The token of the tests' servers, in a module that loads nothing else."""

__all__ = ["TOKEN"]

TOKEN = "token-of-the-tests"
