"""Annotation files: found records, and everything that can be wrong with them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.data import scan
from llava_recipes.data.records import Records, check_records, open_file, open_records
from llava_recipes.errors import Mark, RecipeError, SampleError, sample_problem
from llava_recipes.plan.types import SourcePlan
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
def test_a_cut_record_is_told_with_its_beginning(
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
def test_malformed_files_are_told_at_their_place(
    tmp_path: Path, text: str | bytes, place: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        opened(tmp_path, text)
    (problem,) = caught.value.problems
    assert message in problem.message
    mark = problem.mark
    assert (None if mark is None else (mark.line, mark.column)) == place


def test_an_error_far_into_a_large_file_is_told_at_its_line(tmp_path: Path) -> None:
    good = json.dumps(record(id="é"), ensure_ascii=False)
    text = "[\n" + f"{good},\n" * 50_000 + '{"id": }\n]'
    assert len(text) > 1.2 * scan.WINDOW_BYTES
    with pytest.raises(RecipeError) as caught:
        opened(tmp_path, text)
    mark = caught.value.problems[0].mark
    assert mark is not None
    assert (mark.line, mark.column, mark.text) == (50_002, 8, '{"id": }')


def test_every_source_is_told_at_once(tmp_path: Path) -> None:
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
    told = [(problem.message.split(": ", 1)[1], problem.path) for problem in caught.value.problems]
    assert told == [
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
def test_malformed_records_are_told(
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
