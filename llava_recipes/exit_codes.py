"""What the exit code of a command, and of a training process, says."""

from typing import Final

USER_ERROR: Final = 1
"""Something that the user, the data or the machine has to change."""
USAGE_ERROR: Final = 2
"""The command line cannot be obeyed."""
OUR_BUG: Final = 3
HANGS: Final = 4
"""A run in which nothing advanced any more."""
INTERRUPTED: Final = 130
"""Stopped by a signal or by `--max-time`."""
