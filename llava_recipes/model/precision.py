"""What numbers a model computes in, and on which device."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from llava_recipes.plan.assignment import DTYPES as DTYPE_NAMES

DTYPES: Mapping[str, torch.dtype] = {word: getattr(torch, name) for word, name in DTYPE_NAMES.items()}
"""By the words of recipes and commands: `fp32`, `bf16`, `fp16`."""


def usual_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
