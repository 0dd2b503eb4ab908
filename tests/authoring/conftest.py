"""Annotation files with images beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WriteData = Callable[..., str]


def captions(number: int, *, instructions: int = 1) -> list[dict[str, object]]:
    """Records of an image and a caption each."""
    return [
        _record(index, [f"Describe it, way {index % instructions}.\n<image>", "a cat"])
        for index in range(number)
    ]


def questions(number: int) -> list[dict[str, object]]:
    """Records of an image, a question of its own and an answer."""
    return [_record(index, [f"<image>\nWhat is {index}?", "this"]) for index in range(number)]


def talks(number: int) -> list[dict[str, object]]:
    """Records of an image and a longer conversation."""
    return [_record(index, ["<image>\nWhat?", "this", "Why?", "so"]) for index in range(number)]


def text_only(number: int) -> list[dict[str, object]]:
    """Records without an image."""
    records = [_record(index, ["Say a word.", "word"]) for index in range(number)]
    for record in records:
        del record["image"]
    return records


def _record(index: int, spoken: list[str]) -> dict[str, object]:
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(spoken)]
    return {"id": str(index), "image": f"{index}.jpg", "conversations": turns}


@pytest.fixture
def write_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteData:
    """Write records to `data/NAME` in a working folder of its own, and an image file for each."""
    monkeypatch.chdir(tmp_path)

    def write(
        records: list[dict[str, object]], name: str = "data.json", images: str | None = "data/images"
    ) -> str:
        file = tmp_path / "data" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(records), encoding="utf-8")
        for record in records if images is not None else ():
            if "image" in record:
                image = tmp_path / str(images) / str(record["image"])
                image.parent.mkdir(exist_ok=True, parents=True)
                image.touch()
        return f"data/{name}"

    return write
