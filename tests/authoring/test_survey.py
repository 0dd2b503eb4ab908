"""What a data file is taken for, and where its images are found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llava_recipes.authoring.survey import NUM_LOOKED_AT, survey
from llava_recipes.errors import RecipeError
from tests.data.parquet_files import records, with_structs, write_parquet

from .conftest import WriteData, captions, questions, talks, text_only


@pytest.mark.parametrize(
    ("records", "template", "reason"),
    [
        (captions(50), "plain", "the same instruction"),
        (captions(200, instructions=11), "plain", "11 instructions"),
        (questions(200), "v1", "200 different ones"),
        (questions(5), None, "too few"),
        (talks(3), "v1", "up to 4 turns"),
        (captions(50) + talks(1), "v1", "up to 4 turns"),
        (text_only(4), "v1", "4 of 4 sampled records"),
        (captions(4) + text_only(1), "v1", "1 of 5 sampled records"),
    ],
)
def test_the_conversations_decide_the_template(
    write_data: WriteData, records: list[dict[str, object]], template: str | None, reason: str
) -> None:
    seen = survey(write_data(records), None)
    assert seen.template == template
    assert reason in seen.reason
    assert seen.num_records == len(records)


def test_a_bare_image_asks_for_plain(write_data: WriteData) -> None:
    records = captions(1)
    records[0]["conversations"] = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a cat"}]
    assert survey(write_data(records), None).template == "plain"


@pytest.mark.parametrize("folder", ["data/images", "data", "data/train2017", "images", "pictures"])
def test_images_are_found_beside_the_file(write_data: WriteData, folder: str) -> None:
    seen = survey(write_data(captions(5), images=folder), None)
    assert seen.images is not None
    assert Path(seen.images).resolve() == Path(folder).resolve()
    assert seen.num_images_found == seen.num_images_tried == 5
    assert not seen.warnings


def test_the_folder_with_most_images_wins(write_data: WriteData) -> None:
    file = write_data(captions(5), images="data/whole")
    Path("data/images").mkdir()
    Path("data/images/0.jpg").touch()
    assert survey(file, None).images == "data/whole"


def test_a_given_folder_is_the_only_one_looked_in(write_data: WriteData) -> None:
    file = write_data(captions(5))
    Path("other").mkdir()
    Path("other/1.jpg").touch()
    seen = survey(file, "other")
    assert (seen.images, seen.num_images_found) == ("other", 1)
    assert "4 of 5 images tried are missing in other, such as 0.jpg" in seen.warnings[0]


def test_images_that_are_nowhere(write_data: WriteData) -> None:
    seen = survey(write_data(captions(2), images=None), None)
    assert seen.images is None
    assert "0.jpg" in seen.warnings[0]


def test_images_outside_their_folder_do_not_count(write_data: WriteData) -> None:
    """A run refuses such paths, so they must not look fine here."""
    records = captions(1)
    records[0]["image"] = "../secret.jpg"
    file = write_data(records, images=None)
    Path("data/images").mkdir()
    Path("data/secret.jpg").touch()
    assert survey(file, None).num_images_found == 0


def test_malformed_records_are_reported(write_data: WriteData) -> None:
    records = captions(50)
    for index in (0, 3):
        records[index]["conversations"] = []
    seen = survey(write_data(records), None)
    assert seen.template == "plain"
    assert 'sample 0 (id "0")' in seen.warnings[0]
    assert "1 more such" in seen.warnings[0]


def test_all_records_malformed(write_data: WriteData) -> None:
    seen = survey(write_data([{"id": "x"}] * 5000), None)
    assert seen.template is None
    assert len(seen.warnings) == 1


def test_a_large_file_is_looked_at_evenly(write_data: WriteData) -> None:
    """The conversation hides at the end, where a look at the beginning would miss it."""
    records = captions(NUM_LOOKED_AT) + talks(NUM_LOOKED_AT)
    seen = survey(write_data(records, images=None), None)
    assert (seen.num_records, seen.num_looked_at) == (2 * NUM_LOOKED_AT, NUM_LOOKED_AT)
    assert seen.template == "v1"


def test_lines_of_json(write_data: WriteData) -> None:
    write_data(captions(3))
    lines = "".join(json.dumps(record) + "\n" for record in captions(3))
    Path("data/data.jsonl").write_text(lines, encoding="utf-8")
    assert survey("data/data.jsonl", None).num_records == 3


@pytest.mark.parametrize("content", ["", "[]", "[", "{}", "\0\0", '{"a": 1}', "text"])
def test_a_file_that_holds_no_records(write_data: WriteData, content: str) -> None:
    file = write_data([])
    Path(file).write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError):
        survey(file, None)


def test_what_is_no_file(write_data: WriteData) -> None:
    write_data([])
    os.mkfifo("pipe")
    for name in ("pipe", "/dev/zero"):
        with pytest.raises(RecipeError, match="isn't an ordinary file"):
            survey(name, None)
    with pytest.raises(RecipeError, match=r"the folder contains no `\.parquet` files"):
        survey("data", None)


def test_images_inside_a_parquet_file_need_no_folder(write_data: WriteData, tmp_path: Path) -> None:
    write_data([])
    file = write_parquet([with_structs(record) for record in records()], tmp_path / "data.parquet")
    seen = survey(str(file), None)
    assert (seen.num_records, seen.num_with_image, seen.holds_images) == (24, 24, True)
    assert (seen.images, seen.num_images_tried, seen.warnings) == (None, 0, ())
    assert seen.template == "plain"
