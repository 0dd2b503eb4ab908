"""Annotation files of the fixtures as Parquet, in the shapes that people have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.tiny import FIXTURES

IMAGES = FIXTURES / "images"
ROLES = {"human": "user", "gpt": "assistant"}


def records(name: str = "stage1.json") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FIXTURES / name).read_text(encoding="utf-8"))
    return found


def write_parquet(rows: list[dict[str, Any]], file: Path, *, group_rows: int = 5) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=group_rows)
    return file


def with_structs(record: dict[str, Any]) -> dict[str, Any]:
    """As `datasets` writes images: bytes and path in a struct."""
    name = record.get("image")
    image = {"bytes": (IMAGES / name).read_bytes(), "path": name} if name else None
    return {"id": record["id"], "image": image, "conversations": record["conversations"]}


def with_bytes(record: dict[str, Any]) -> dict[str, Any]:
    """A list of bytes, and chat messages."""
    name = record.get("image")
    messages = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]
    images = [(IMAGES / name).read_bytes()] if name else None
    return {"id": record["id"], "images": images, "messages": messages}


def with_paths(record: dict[str, Any]) -> dict[str, Any]:
    """A list of paths."""
    name = record.get("image")
    return {
        "id": record["id"],
        "image": [name] if name else None,
        "conversations": record["conversations"],
    }
