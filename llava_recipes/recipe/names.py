"""What other libraries call their settings: written into names.json from the installed versions.

A plan is made without importing these libraries, which takes seconds. docs/CONTRIBUTING.md says how to renew
the file; tests/recipe/test_names.py holds it to what is installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

FILE: Final = Path(__file__).with_name("names.json")
_NAMES = json.loads(FILE.read_text("utf-8"))

TRAINING_ARGUMENTS: Final[Mapping[str, str]] = MappingProxyType(_NAMES["training_arguments"])
"""Fields of transformers.TrainingArguments and the kinds of their values: "None|int"."""

OPTIMIZERS: Final = frozenset(_NAMES["optimizers"])
"""Names that `optim` of TrainingArguments takes."""

DEEPSPEED_KEYS: Final = frozenset(_NAMES["deepspeed_keys"])
"""Top-level keys of a DeepSpeed config. DeepSpeed ignores others in silence."""

DEEPSPEED_REMOVED_KEYS: Final = frozenset(_NAMES["deepspeed_removed_keys"])
"""Top-level keys that DeepSpeed 0.19.3 takes and 0.19.8 refuses, whatever they say."""

ZERO_KEYS: Final = frozenset(_NAMES["zero_keys"])
"""Keys of `zero_optimization`. DeepSpeed refuses others, once the model is loaded."""

ZERO_REMOVED_KEYS: Final = frozenset(_NAMES["zero_removed_keys"])
"""The same as DEEPSPEED_REMOVED_KEYS, of `zero_optimization`."""
