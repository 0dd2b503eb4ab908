"""The demo's data on disk: pictures with captions in LLaVA's format, notes, and a tokenizer."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llava_recipes.demo.shapes import (
    Combination,
    all_combinations,
    draw_scene,
    make_scene,
    unseen_combinations,
)
from llava_recipes.demo.vocabulary import QUESTIONS, WHAT, answer_to, draw_notes, write_tokenizer
from llava_recipes.recipe.errors import Problem, RecipeError

DATASET, TRAIN, HELD_OUT, NOTES = "dataset.json", "train.json", "held_out.json", "captions.json"
TALKS = "instruct.json"
IMAGES, TOKENIZER = "images", "tokenizer"
DRAWING_VERSION = 2
"""Goes up with every change to what is drawn or written, so that old folders are not taken for new ones."""

PICTURES_PER_NOTES = 3

Record = dict[str, object]


@dataclass(frozen=True)
class DatasetSettings:
    """How much is drawn, and from which seed.

    `num_held_out` pictures show combinations of colour and shape that training knows, `num_unseen` pictures
    show combinations that no training picture has.
    """

    num_train: int
    num_held_out: int
    num_unseen: int
    num_notes: int
    seed: int


@dataclass(frozen=True)
class HeldOut:
    """A picture to be captioned, what it shows, and whether training knows the combination."""

    image: Path
    caption: str
    is_unseen: bool


def write_dataset(folder: Path, settings: DatasetSettings, *, redraw: bool) -> bool:
    """Draw the dataset, or keep the one that is there with the same settings; true when it was drawn.

    The folder appears whole, by one rename. Raises RecipeError when something else stands there; with
    `redraw` an older dataset of the demo is replaced, anything else never.
    """
    wanted = {"drawing_version": DRAWING_VERSION, **asdict(settings)}
    there = _read_settings(folder)
    if there == wanted:
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _check_replaceable(folder, there, redraw=redraw)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.absolute().parent) as parent:
        fresh = Path(parent) / "fresh"
        _draw_all(fresh, settings)
        (fresh / DATASET).write_text(json.dumps(wanted, indent=2) + "\n", "utf-8")
        if folder.exists():
            folder.replace(Path(parent) / "old")
        fresh.replace(folder)
    return True


def read_held_out(folder: Path) -> tuple[HeldOut, ...]:
    """The held-out pictures of a dataset, in file order."""
    records = json.loads((folder / HELD_OUT).read_text("utf-8"))
    return tuple(
        HeldOut(
            image=folder / IMAGES / record["image"],
            caption=record["conversations"][1]["value"],
            is_unseen=record["unseen_combination"],
        )
        for record in records
    )


def _read_settings(folder: Path) -> object:
    """What the folder says it holds; None when it is not a dataset of the demo."""
    try:
        return json.loads((folder / DATASET).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _check_replaceable(folder: Path, there: object, *, redraw: bool) -> None:
    if there is None:
        raise RecipeError(
            Problem(
                f"{folder}: the folder holds something that the demo did not draw",
                code="demo-folder-in-use",
                hint="choose an empty or a new folder with `--data`",
            )
        )
    if not redraw:
        raise RecipeError(
            Problem(
                f"{folder}: the folder holds pictures that were drawn with other settings",
                code="demo-data-of-other-settings",
                found=json.dumps(there),
                hint="replace them with `--redraw`, or choose another folder with `--data`",
            )
        )


def _draw_all(folder: Path, settings: DatasetSettings) -> None:
    seen = tuple(pair for pair in all_combinations() if pair not in unseen_combinations())
    train = _draw_pictures(folder, "train", seen, settings.num_train, settings.seed)
    held_out = _draw_pictures(folder, "held_out", seen, settings.num_held_out, settings.seed)
    unseen = _draw_pictures(folder, "unseen", unseen_combinations(), settings.num_unseen, settings.seed)
    marked = [{**record, "unseen_combination": False} for record in held_out]
    marked += [{**record, "unseen_combination": True} for record in unseen]
    _write_records(folder / TRAIN, train)
    _write_records(folder / HELD_OUT, marked)
    _write_records(folder / NOTES, _write_notes(settings))
    _write_records(folder / TALKS, _write_talks(train, settings))
    write_tokenizer(folder / TOKENIZER)


def _draw_pictures(
    folder: Path, split: str, combinations: Sequence[Combination], num_pictures: int, seed: int
) -> list[Record]:
    """Draw a split, every combination equally often; returns its records."""
    place = folder / IMAGES / split
    place.mkdir(parents=True)
    records = []
    for index in range(num_pictures):
        scene = make_scene(combinations[index % len(combinations)], seed=f"{seed}/{split}/{index}")
        name = f"{split}/{index:05}.png"
        draw_scene(scene).save(folder / IMAGES / name, compress_level=1)
        records.append(_record(f"{split}-{index:05}", f"<image>\n{WHAT}", scene.caption, image=name))
    return records


def _write_notes(settings: DatasetSettings) -> list[Record]:
    """Text-only records: notes and their captions, over all combinations."""
    combinations = all_combinations()
    records = []
    for index in range(settings.num_notes):
        colour, shape = combinations[index % len(combinations)]
        draw = random.Random(f"{settings.seed}/notes/{index}")
        notes = draw_notes(colour=colour, shape=shape, draw=draw)
        records.append(_record(f"notes-{index:05}", "", f"{notes.text} {notes.caption}"))
    return records


def _write_talks(pictures: Sequence[Record], settings: DatasetSettings) -> list[Record]:
    """Conversations of two questions: one about each training picture, one in three about notes instead.

    The latter stand for the text-only conversations of LLaVA's own mix, and know every combination.
    """
    records = []
    for index, record in enumerate(pictures):
        draw = random.Random(f"{settings.seed}/talks/{index}")
        caption = str(_turns(record)[1]["value"])
        talk = _talk(f"talk-{index:05}", "<image>", caption, draw)
        records.append({**talk, "image": record["image"]})
        if index % PICTURES_PER_NOTES == 0:
            colour, shape = draw.choice(all_combinations())
            notes = draw_notes(colour=colour, shape=shape, draw=draw)
            records.append(_talk(f"talk-notes-{index:05}", notes.text, notes.caption, draw))
    return records


def _talk(name: str, shown: str, caption: str, draw: random.Random) -> Record:
    """Two questions about what is shown, the first below it; one of them asks for the whole caption."""
    questions = [WHAT, draw.choice([question for question in QUESTIONS if question != WHAT])]
    draw.shuffle(questions)
    turns = []
    for position, question in enumerate(questions):
        said = f"{shown}\n{question}" if position == 0 else question
        turns += [{"from": "human", "value": said}, {"from": "gpt", "value": answer_to(question, caption)}]
    return {"id": name, "conversations": turns}


def _turns(record: Record) -> list[dict[str, str]]:
    turns = record["conversations"]
    assert isinstance(turns, list)
    return turns


def _record(name: str, question: str, answer: str, *, image: str | None = None) -> Record:
    named: Record = {} if image is None else {"image": image}
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, **named, "conversations": turns}


def _write_records(file: Path, records: Sequence[Record]) -> None:
    lines = ",\n".join(json.dumps(record) for record in records)
    file.write_text(f"[\n{lines}\n]\n", "utf-8")
