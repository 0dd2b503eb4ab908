"""Which language model or tower a plan names, and whether two names mean the same one."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import JsonValue


def identity(part: Mapping[str, JsonValue]) -> str | None:
    """What tells one language model or tower of a plan from another: its source, or its config and seed."""
    source = part.get("source")
    if isinstance(source, str):
        return source
    config = part.get("config")
    return json.dumps([config, part.get("seed")], sort_keys=True) if config is not None else None


def is_same(left: str, right: str | None) -> bool:
    """Whether two identities are one: the same text, or a folder named like the hub's repository."""
    if right is None or left == right:
        return left == right
    return not left.startswith("[") and last_name(left) == last_name(right)


def last_name(source: str) -> str:
    """`vicuna-7b-v1.5`, of `lmsys/Vicuna-7B-v1.5` or a folder of that name."""
    return source.rstrip("/").rpartition("/")[2].lower()


def spell_identity(identity: str | None) -> str:
    """An identity for a person: the source, or what kind of random weights."""
    if identity is None:
        return "none"
    if not identity.startswith("["):
        return identity
    config, seed = json.loads(identity)
    return f"random weights of a {config.get('model_type')} config, seed {seed}"
