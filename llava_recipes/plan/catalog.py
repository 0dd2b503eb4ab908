"""Configs of the gallery's models, by hub id: the numbers that sizes and plans are counted from.

They let a plan be made with no network and no weights. A folder on disk or an inline config goes first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from llava_recipes.plan.families import Config

_MODELS = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))

LANGUAGE_MODELS: Mapping[str, Config] = MappingProxyType(_MODELS["language_models"])
VISION_TOWERS: Mapping[str, Config] = MappingProxyType(_MODELS["vision_towers"])
