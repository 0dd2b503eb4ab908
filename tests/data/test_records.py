"""The records of a stage: read, drawn from their sources, and refused where a file is of another kind."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llava_recipes.data import scan
from llava_recipes.data.records import (
    Records,
    by_chance,
    check_records,
    kind_of_bytes,
    open_file,
    open_records,
    positions,
)
from llava_recipes.errors import Mark, RecipeError, SampleError, sample_problem
from llava_recipes.plan.data import count_used, mix_sources
from llava_recipes.plan.types import SourcePlan
from llava_recipes.recipe.foreign import KINDS, kind_of_name
from llava_recipes.recipe.schema import Source
from llava_recipes.templates import Turn
from tests.laws import examples
from tests.tiny import FIXTURES

IMAGES = str(FIXTURES / "images")


def source(file: Path | str, images: str | None = IMAGES, num_samples: int | None = None) -> SourcePlan:
    return SourcePlan(annotations=str(file), images=images, num_samples=num_samples)


def opened(tmp_path: Path, text: str | bytes, images: str | None = IMAGES) -> Records:
    file = tmp_path / "data.json"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return open_records([source(file, images)])


def conversation(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def record(**changes: Any) -> dict[str, Any]:
    values = {"id": "a", "image": "rgb_0.jpg", "conversations": conversation("<image>\nWhat?", "A cat.")}
    return {key: value for key, value in (values | changes).items() if value != "absent"}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_records_are_those_of_the_file(tmp_path: Path, indent: int | None, ascii_only: bool) -> None:
    values = json.loads((FIXTURES / "stage1.json").read_text())
    records = opened(tmp_path, json.dumps(values, indent=indent, ensure_ascii=ascii_only))
    assert len(records) == len(values) == len(open_file(str(tmp_path / "data.json")))
    for index, (ours, value) in enumerate(zip(records, values, strict=True)):
        assert (ours.index, ours.id, ours.images) == (index, value["id"], (value["image"],))
        assert ours.turns == tuple(Turn(turn["from"], turn["value"]) for turn in value["conversations"])
        assert ours.folder == IMAGES


def test_json_lines_are_read(tmp_path: Path) -> None:
    values = json.loads((FIXTURES / "stage1.json").read_text())
    lines = "\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n\n"
    assert list(opened(tmp_path, lines)) == list(open_records([source(FIXTURES / "stage1.json")]))
    assert len(opened(tmp_path, json.dumps(record()))) == 1


def test_sources_follow_each_other(tmp_path: Path) -> None:
    text_only = tmp_path / "text.json"
    text_only.write_text(json.dumps([record(id="t", image="absent", conversations=conversation("Hi", "Ho"))]))
    stage1 = source(FIXTURES / "stage1.json", num_samples=24)
    records = open_records([source(text_only, images=None), stage1, source(text_only)])
    assert len(records) == 26
    assert [records[index].id for index in (0, 1, 24, 25, -1)] == ["t", "s1_000", "s1_023", "t", "t"]
    assert [found.index for found in records[0:26:25]] == [0, 25]
    assert records[0].folder is None
    with pytest.raises(IndexError):
        records[26]


def test_records_travel_to_other_processes() -> None:
    records = open_records([source(FIXTURES / "stage1.json")])
    assert list(pickle.loads(pickle.dumps(records))) == list(records)


values = st.fixed_dictionaries(
    {
        "id": st.text(max_size=5),
        "note": st.text(alphabet='é日"\\[]{},: \n', max_size=30),
        "conversations": st.just(conversation("Hi", "Ho")),
    }
)


@examples(40)
@given(
    listed=st.lists(values, min_size=1, max_size=6),
    window=st.integers(8, 80),
    indent=st.sampled_from([None, 0, 3]),
    plain=st.booleans(),
    lines=st.booleans(),
)
def test_any_window_finds_the_same_records(
    tmp_path_factory: pytest.TempPathFactory,
    listed: list[dict[str, Any]],
    window: int,
    indent: int | None,
    plain: bool,
    lines: bool,
) -> None:
    file = tmp_path_factory.mktemp("window") / "data.json"
    texts = [json.dumps(value, indent=indent, ensure_ascii=plain) for value in listed]
    file.write_text("\n".join(texts) if lines else f"[{' , '.join(texts)}] ", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "WINDOW_BYTES", window)
        found = scan.AnnotationFile(str(file))
    assert [found.values(index) for index in range(len(found))] == listed


@pytest.mark.parametrize(
    ("text", "place", "found"),
    [
        ('{"id": 1}\n{"id":\n{"id": 3}\n', (4, 1), "in the record that starts in line 2"),
        ('{"id": 1}\n{"id" 2}', (2, 7), None),
    ],
)
def test_a_cut_record_is_reported_with_its_beginning(
    tmp_path: Path, text: str, place: tuple[int, int], found: str | None
) -> None:
    file = tmp_path / "cut.jsonl"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        open_file(str(file))
    (problem,) = caught.value.problems
    assert problem.mark is not None
    assert (problem.mark.line, problem.mark.column) == place
    assert problem.found == found


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", None, "empty"),
        ("[]", None, "no records"),
        ("   ", (1, 4), "not a list"),
        ('"x"', (1, 1), "not a list"),
        ('{"a": [1]}', (1, 1), "not a list"),
        ("[1]", (1, 2), "not a mapping"),
        ('[{"id": 1}, [2]]', (1, 13), "not a mapping"),
        ('[{"id": 1,', (1, 11), "malformed JSON"),
        ('[\n {"id": "é", "x": tru}\n]', (2, 19), "malformed JSON"),
        ('[{"id": 1}\n {"id": 2}]', (2, 2), "expected `,` or `]`"),
        ('[{"id": 1}', (1, 11), "expected `,` or `]`"),
        ('[{"id": 1},]', (1, 12), "malformed JSON"),
        ('[{"id": 1}] x', (1, 13), "after the end"),
        ('{"id": 1}\n{"id" 2}', (2, 7), "malformed JSON"),
        (b'[{"id": "\xff"}]', (1, 10), "not UTF-8"),
        ("[" * 100_000, (1, 2), ""),
    ],
)
def test_malformed_files_are_reported_at_their_place(
    tmp_path: Path, text: str | bytes, place: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        opened(tmp_path, text)
    (problem,) = caught.value.problems
    assert message in problem.message
    mark = problem.mark
    assert (None if mark is None else (mark.line, mark.column)) == place


def test_an_error_far_into_a_large_file_is_reported_at_its_line(tmp_path: Path) -> None:
    good = json.dumps(record(id="é"), ensure_ascii=False)
    text = "[\n" + f"{good},\n" * 50_000 + '{"id": }\n]'
    assert len(text) > 1.2 * scan.WINDOW_BYTES
    with pytest.raises(RecipeError) as caught:
        opened(tmp_path, text)
    mark = caught.value.problems[0].mark
    assert mark is not None
    assert (mark.line, mark.column, mark.text) == (50_002, 8, '{"id": }')


def test_every_source_is_reported_at_once(tmp_path: Path) -> None:
    stage1 = FIXTURES / "stage1.json"
    with pytest.raises(RecipeError) as caught:
        open_records(
            [
                source(tmp_path / "none.json"),
                source(stage1, images=str(tmp_path / "none")),
                source(stage1, images=str(stage1)),
                source(stage1, num_samples=25),
            ]
        )
    reported = [(problem.message.split(": ", 1)[1], problem.path) for problem in caught.value.problems]
    assert reported == [
        ("cannot read the annotation file", ("annotations",)),
        ("the image folder does not exist", ("images",)),
        ("the image folder is not a folder", ("images",)),
        ("the file does not contain `num_samples` records", ("num_samples",)),
    ]
    assert caught.value.problems[3].found == "num_samples is 25, the file contains 24"


@pytest.mark.parametrize(
    ("changes", "message", "found"),
    [
        ({"conversations": "absent"}, "has no `conversations`", "keys id, image"),
        ({"conversations": []}, "is empty", "[]"),
        ({"conversations": {"a": 1}}, "is not a list of turns", '{"a": 1}'),
        ({"conversations": ["x"]}, "turn 0 is not a mapping", '"x"'),
        ({"conversations": [{"from": "user", "value": "x"}]}, "unknown role", '"user"'),
        ({"conversations": [{"value": "x"}]}, "unknown role", "null"),
        ({"conversations": [{"from": "human", "value": None}]}, "`value` of turn 0 is not a string", "null"),
        (
            {"conversations": conversation("<image>", "a \ud83d")},
            "text of turn 1 contains an unpaired surrogate",
            '"a \\ud83d"',
        ),
        ({"conversations": conversation("<image>", "a", "b")[1:2]}, "no human turn", None),
        ({"conversations": conversation("<image>", "a")[:1] * 2}, "two human turns", None),
        ({"conversations": conversation("<image>", "an <image>")}, "an answer contains the tag", None),
        ({"conversations": conversation("No tag.", "a")}, "differ in number", "0 tags, 1 image"),
        ({"conversations": conversation("<image> <image>", "a")}, "differ in number", "2 tags, 1 image"),
        ({"image": "absent"}, "differ in number", "1 tag, 0 images"),
        ({"image": None}, "differ in number", "1 tag, 0 images"),
        ({"image": ["a.jpg", "b.jpg"]}, "differ in number", "1 tag, 2 images"),
        ({"image": 3}, "`image` is not a path", "3"),
        ({"image": ""}, "`image` is not a path", '""'),
    ],
)
def test_malformed_records_are_reported(
    tmp_path: Path, changes: dict[str, Any], message: str, found: str | None
) -> None:
    good = record(id="good")
    records = opened(tmp_path, "[\n" + json.dumps(good) + ",\n" + json.dumps(record(id=7, **changes)) + "]")
    assert records[0].id == "good"
    with pytest.raises(SampleError) as caught:
        records[1]
    (problem,) = caught.value.problems
    assert problem.message.startswith('sample 1 (id "7"): ')
    assert message in problem.message
    assert problem.found == found
    assert problem.mark == Mark(str(tmp_path / "data.json"), 3, 1)
    assert check_records(records) == [problem]


def test_an_image_needs_an_image_folder(tmp_path: Path) -> None:
    records = opened(tmp_path, json.dumps([record()]), images=None)
    with pytest.raises(SampleError, match="no image folder"):
        records[0]


def test_two_images_for_two_tags_are_good(tmp_path: Path) -> None:
    pair = record(image=["a.jpg", "b.jpg"], conversations=conversation("<image> or <image>?", "b"))
    assert opened(tmp_path, json.dumps([pair]))[0].images == ("a.jpg", "b.jpg")


def test_the_first_problems_are_shown_and_the_others_counted() -> None:
    assert check_records(open_records([source(FIXTURES / "stage1.json")])) == []
    problems = check_records(open_records([source(FIXTURES / "edge.json")]))
    assert len(problems) == 6
    assert problems[0].message.startswith('sample 0 (id "e_two_tags_two_turns"): ')
    assert problems[5].message == "10 more of 30 records have such problems"


@pytest.mark.parametrize("travel", [lambda error: type(error)(f"Caught it in worker 0.\n{error}\n"), None])
def test_sample_errors_survive_the_way_from_a_worker(
    travel: Callable[[SampleError], SampleError] | None,
) -> None:
    mark = Mark("data.json", 3, 1, text='{"id": "é"}')
    problems = [
        sample_problem(3, "é", 'a "quote"\nand a line', code="one", mark=mark, found="x", hint="y"),
        sample_problem(4, "", "no id", code="two"),
    ]
    error = SampleError(*problems)
    rebuilt = travel(error) if travel else pickle.loads(pickle.dumps(error))
    assert list(rebuilt.problems) == problems


RECORDED = [0, 2, 4, 5, 9, 18]


def drawn(num_records: int, **settings: Any) -> list[int]:
    source = SourcePlan(annotations="a.json", images=None, num_samples=None, **settings)
    return list(positions(source, num_records))


def test_first_and_end_are_those_of_the_file() -> None:
    assert drawn(10) == list(range(10))
    assert drawn(10, sampling_strategy="first:3") == [0, 1, 2]
    assert drawn(10, sampling_strategy="end:3") == [7, 8, 9]
    assert drawn(10, sampling_strategy="first:25%") == [0, 1, 2]
    assert drawn(10, sampling_strategy="end:100%") == list(range(10))


def test_a_draw_stays_what_it_was() -> None:
    """Recorded once: a draw that changes with a version would train and hold out other records."""
    assert list(by_chance(range(20), 6, "42/0/random")) == RECORDED
    assert drawn(20, sampling_strategy="random:6", draw_seed="42/0") == RECORDED
    assert drawn(20, sampling_strategy="random:6", draw_seed="42/1") != RECORDED
    assert drawn(20, sampling_strategy="random:6", draw_seed="43/0") != RECORDED


def test_a_larger_share_holds_a_smaller_one() -> None:
    some = drawn(500, sampling_strategy="random:10%", draw_seed="1/0")
    more = drawn(500, sampling_strategy="random:30%", draw_seed="1/0")
    assert len(some) == 50
    assert set(some) < set(more)
    assert some == sorted(some)


def test_chance_favors_nobody() -> None:
    """Each of 50 records is taken in about a fifth of 400 draws: 80 or so."""
    taken = Counter(place for seed in range(400) for place in by_chance(range(50), 10, f"{seed}/0"))
    assert all(40 < taken[place] < 120 for place in range(50))


@examples(100)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    strategy=st.sampled_from(["all", "first:1", "end:40%", "random:50%", "random:1"]),
    weight=st.sampled_from([0.3, 1.0, 2.0, 2.7]),
    split=st.sampled_from([None, 0.2, 3.0]),
    seed=st.integers(0, 9),
)
def test_what_is_drawn_is_what_the_plan_counts(
    counts: list[int], strategy: str, weight: float, split: float | None, seed: int
) -> None:
    source = Source(annotations="a.json", sampling_strategy=strategy, weight=weight)
    mix = mix_sources([source] * len(counts), counts, seed=str(seed), split=split)
    for number, (training, count) in enumerate(zip(mix.training, counts, strict=True)):
        used = Counter(positions(training, count))
        assert used.total() == training.num_used
        held_out = [] if mix.held_out is None else list(positions(mix.held_out[number], count))
        assert len(held_out) == training.num_held_out
        assert not set(held_out) & set(used)
        # Every record comes as often as the weight says, give or take the part that is drawn.
        assert not used or max(used.values()) - int(weight) in (0, 1)
        chosen = SourcePlan(
            annotations="a.json",
            images=None,
            num_samples=None,
            sampling_strategy=strategy,
            draw_seed=training.draw_seed,
        )
        everything = set(positions(chosen, count))
        assert set(used) | set(held_out) <= everything
        if weight >= 1:
            assert set(used) | set(held_out) == everything
        assert used.total() == count_used(weight, len(everything) - len(held_out))


def test_records_are_counted_through_the_mix_and_named_in_their_file(tmp_path: Path) -> None:
    text = (FIXTURES / "stage1.json").read_text()
    (tmp_path / "bad.json").write_text(text.replace('"from": "gpt"', '"from": "bot"'))
    sources = [
        SourcePlan(
            annotations=str(FIXTURES / "stage1.json"),
            images=IMAGES,
            num_samples=24,
            sampling_strategy="end:2",
            weight=1.5,
        ),
        SourcePlan(
            annotations=str(tmp_path / "bad.json"),
            images=IMAGES,
            num_samples=None,
            sampling_strategy="end:1",
        ),
    ]
    records = open_records(sources)
    assert len(records) == 4
    ids = [record.id for record in records[:3]]
    assert ids[:2] == ["s1_022", "s1_023"] and ids[2] in ids[:2]
    assert [record.index for record in records[:3]] == [0, 1, 2]
    with pytest.raises(SampleError) as caught:
        records[3]
    (problem,) = caught.value.problems
    assert 'sample 3 (id "s1_023")' in problem.message
    assert problem.mark is not None and problem.mark.file == str(tmp_path / "bad.json")
    lines = (tmp_path / "bad.json").read_text().splitlines()
    assert any("s1_023" in line for line in lines[problem.mark.line - 1 : problem.mark.line + 2])


def test_more_than_the_file_holds() -> None:
    source = SourcePlan(
        annotations=str(FIXTURES / "stage1.json"), images=IMAGES, num_samples=None, sampling_strategy="end:25"
    )
    with pytest.raises(RecipeError, match="asks for more records than the file contains") as caught:
        open_records([source])
    assert caught.value.problems[0].path == ("sampling_strategy",)
    assert caught.value.problems[0].found == "end:25, and the file contains 24"


RECORDS = [{"id": "a", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]
TEXT = json.dumps(RECORDS).encode()
TABLE = pa.table({"id": ["a"]})


def _tar(file: Path) -> None:
    with tarfile.open(file, "w") as archive:
        entry = tarfile.TarInfo("0001.json")
        entry.size = len(TEXT)
        archive.addfile(entry, io.BytesIO(TEXT))


def _zip(file: Path, name: str = "a.json") -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, TEXT)


def _arrow(file: Path) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)


def _arrow_file(file: Path) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)


def _sqlite(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("create table t (a)")
    database.close()


def _numpy(file: Path) -> None:
    with file.open("wb") as opened:
        np.savez(opened, a=np.zeros(2))


WRITERS: dict[str, Callable[[Path], object]] = {
    "a tar archive": _tar,
    "compressed with gzip": lambda file: file.write_bytes(gzip.compress(TEXT)),
    "compressed with bzip2": lambda file: file.write_bytes(bz2.compress(TEXT)),
    "compressed with xz": lambda file: file.write_bytes(lzma.compress(TEXT)),
    "compressed with zstd": lambda file: file.write_bytes(b"\x28\xb5\x2f\xfd\x00"),
    "a zip archive": _zip,
    "an Excel workbook": lambda file: _zip(file, "[Content_Types].xml"),
    "an Arrow file of Hugging Face datasets": _arrow,
    "a NumPy file": _numpy,
    "a Python pickle": lambda file: file.write_bytes(pickle.dumps(RECORDS)),
    "an SQLite database": _sqlite,
    "a Parquet file": lambda file: pyarrow.parquet.write_table(TABLE, file),
    "an image": lambda file: Image.new("RGB", (2, 2)).save(file, "PNG"),
    "a CSV table": lambda file: file.write_text("id,image,caption\n1,a.jpg,a cat\n"),
    "a TSV table": lambda file: file.write_text("id\timage\tcaption\n1\ta.jpg\ta cat\n"),
    "a web page": lambda file: file.write_text("<!DOCTYPE html><html><body>404</body></html>"),
    "an XML document": lambda file: file.write_text('<?xml version="1.0"?><a/>'),
    "a Git LFS pointer": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
}


@pytest.mark.parametrize("what", WRITERS)
def test_an_ending_that_lies_hides_nothing(what: str, tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    WRITERS[what](file)
    with pytest.raises(RecipeError) as caught:
        open_file(str(file))
    (problem,) = caught.value.problems
    assert what in problem.message
    assert problem.hint
    assert str(file) in str(problem.found)


def test_arrow_in_its_other_form_too(tmp_path: Path) -> None:
    _arrow_file(tmp_path / "a")
    assert kind_of_bytes((tmp_path / "a").read_bytes()) == "arrow"


def test_a_folder_of_arrow_files_is_named(tmp_path: Path) -> None:
    _arrow(tmp_path / "data-00000-of-00001.arrow")
    with pytest.raises(RecipeError) as caught:
        open_file(str(tmp_path))
    assert "a folder of Hugging Face datasets" in caught.value.problems[0].message


@pytest.mark.parametrize(
    "text", [TEXT, b"\xef\xbb\xbf" + TEXT, b"\n\n " + TEXT, json.dumps(RECORDS[0]).encode() + b"\n"]
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a.data", "a"])
def test_records_are_read_whatever_the_file_is_called(text: bytes, name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(text)
    assert len(open_file(str(file))) == 1


@pytest.mark.parametrize("text", ["", "null", "hello", "Hello, world, and more", "{broken", "12", "a: b"])
def test_what_cannot_be_reported_is_left_to_the_reader_of_json(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        open_file(str(file))
    assert caught.value.problems[0].code != "annotations-of-another-kind"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.tar", "tar"), ("a.tar.gz", "tar"), ("a.json.gz", "gzip"), ("a.jsonl.zst", "zstd"),
        ("a.ZIP", "zip"), ("a.arrow", "arrow"), ("a.csv", "csv"), ("a.tsv", "tsv"), ("a.xlsx", "excel"),
        ("a.npz", "numpy"), ("a.pkl", "pickle"), ("a.json", None), ("a.jsonl", None), ("a.parquet", None),
        ("a.txt", None), ("data/train-*.parquet", None), ("a.csv/b", None),
    ],
)  # fmt: skip
def test_names(name: str, kind: str | None) -> None:
    assert kind_of_name(name) == kind
    assert kind is None or KINDS[kind].how
