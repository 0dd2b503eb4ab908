"""How much is tried of what holds for all inputs: a share in `make test`, all of it in `make test-long`."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

LONG = os.environ.get("LLAVA_RECIPES_LONG") == "1"

SHARE = 4

only_long = pytest.mark.long
"""For the middle of a table whose corners `make test` tries."""


def examples(number: int, *, but: tuple[HealthCheck, ...] = ()) -> settings:
    """Settings of a law that is tried on this many examples in all; `but` names checks that don't apply."""
    return settings(
        max_examples=number if LONG else number // SHARE, deadline=None, suppress_health_check=but
    )
