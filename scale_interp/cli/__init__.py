"""The command line, one file per kind of work. Heavy imports wait until a command runs."""

# In the order of the help.
# isort: off
from . import run, runs, compare, reproduce, ask, trace, explore, check, bench, train

# isort: on
from .app import app, main

__all__ = ["app", "ask", "bench", "check", "compare", "explore", "main", "reproduce", "run", "runs", "trace", "train"]
