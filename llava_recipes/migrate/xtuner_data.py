"""The data sets that an XTuner config trains on, one or several put together."""

from __future__ import annotations

from collections.abc import Iterator

from llava_recipes.migrate.python_config import PythonConfig, PythonValue, Symbol

MAX_SETS = 200
_MAX_DEEP = 6

Set = tuple[str, dict[str, PythonValue]]
"""The name that the config gives a set, or its place, and its settings."""


def find_sets(config: PythonConfig) -> list[Set]:
    """What the loader draws from; for a config without one, what it calls `llava_dataset`."""
    loader = config.values.get("train_dataloader")
    dataset = loader.get("dataset") if isinstance(loader, dict) else None
    place = "train_dataloader.dataset"
    if not isinstance(dataset, dict):
        dataset, place = config.values.get("llava_dataset"), "llava_dataset"
    found: list[Set] = []
    for entry in _inside(dataset, place, config, 0):
        found.append(entry)
        if len(found) >= MAX_SETS:
            break
    return found


def _inside(value: PythonValue, place: str, config: PythonConfig, depth: int) -> Iterator[Set]:
    if not isinstance(value, dict) or depth > _MAX_DEEP:
        return
    name = next((name for name, other in config.values.items() if other is value), place)
    parts = value.get("datasets")
    kind = value.get("type")
    if isinstance(parts, list) and isinstance(kind, Symbol) and kind.name.endswith("ConcatDataset"):
        for number, part in enumerate(parts):
            yield from _inside(part, f"{name}.datasets[{number}]", config, depth + 1)
        return
    yield name, value
