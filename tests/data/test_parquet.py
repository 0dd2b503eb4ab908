"""Parquet files: the records, images and samples of the same data in JSON."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from llava_recipes.data import parquet
from llava_recipes.data.dataset import BadImageError, StageDataset
from llava_recipes.data.images import load_image_processor
from llava_recipes.data.records import Records, open_file, open_records
from llava_recipes.data.tokenizer import load_tokenizer
from llava_recipes.errors import RecipeError, SampleError
from llava_recipes.plan.types import DataPlan, LanguageModelPlan, SourcePlan
from llava_recipes.recipe.schema import ImageTokens, VisionTower
from llava_recipes.render import render_problems
from tests.data.parquet_files import IMAGES, records, with_bytes, with_paths, with_structs, write_parquet
from tests.processes import ROOT, run_process
from tests.tiny import FIXTURES

SHAPES: list[tuple[Callable[[dict[str, Any]], dict[str, Any]], Path | None]] = [
    (with_structs, None),
    (with_bytes, None),
    (with_paths, IMAGES),
]


def source(file: Path | str, images: Path | None = None, **values: Any) -> SourcePlan:
    folder = None if images is None else str(images)
    return SourcePlan(annotations=str(file), images=folder, num_samples=None, **values)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    name = str(FIXTURES / "tiny_vicuna")
    plan = LanguageModelPlan(source=name, revision=None, config=None, tokenizer=name, seed=0)
    return load_tokenizer(plan, ImageTokens.model_validate({}))


def dataset(tokenizer: PreTrainedTokenizerBase, *sources: SourcePlan) -> StageDataset:
    data = DataPlan(
        template="v1",
        sources=sources,
        num_samples=None,
        image_aspect_ratio="pad",
        max_length=2048,
        shuffle=True,
        group_by="modality_length",
        on_bad_image="error",
        lazy_preprocess=True,
    )
    processor = load_image_processor(VisionTower.model_validate({"source": str(FIXTURES / "tiny_clip")}))
    return StageDataset(data, tokenizer, processor, False)


@pytest.mark.parametrize(("shape", "images"), SHAPES)
@pytest.mark.parametrize("name", ["stage1.json", "stage2_clean.json"])
def test_samples_are_those_of_the_json(
    name: str,
    shape: Callable[[dict[str, Any]], dict[str, Any]],
    images: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    file = write_parquet([shape(record) for record in records(name)], tmp_path / "data.parquet")
    ours = dataset(tokenizer, source(file, images))
    theirs = dataset(tokenizer, source(FIXTURES / name, IMAGES))
    assert len(ours) == len(theirs) == len(open_file(str(file)))
    assert ours.records.lengths() == theirs.records.lengths()
    for one, other in zip(map(ours.read, range(len(ours))), map(theirs.read, range(len(ours))), strict=True):
        assert (one.index, one.id) == (other.index, other.id)
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.labels, other.labels)
        for image, same in zip(one.images, other.images, strict=True):
            assert torch.equal(image.crops, same.crops)


def test_forked_workers_read_too(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """In random order and after the parent has read; a group is five rows."""
    file = write_parquet([with_structs(record) for record in records()], tmp_path / "data.parquet")
    data = dataset(tokenizer, source(file))
    wanted = [data.read(index) for index in (17, 3, 20, 0)]
    loader = DataLoader(
        data, batch_size=None, sampler=[17, 3, 20, 0], num_workers=2, multiprocessing_context="fork"
    )
    for sample, same in zip(loader, wanted, strict=True):
        assert sample.id == same.id
        assert len(sample.images) == len(same.images) > 0
        for image, other in zip(sample.images, same.images, strict=True):
            assert torch.equal(image.crops, other.crops) and image.size == other.size


def test_records_travel_to_other_processes(tmp_path: Path) -> None:
    file = write_parquet([with_structs(record) for record in records()], tmp_path / "data.parquet")
    opened = open_records([source(file)])
    assert opened[7].id == "s1_007"
    again = pickle.loads(pickle.dumps(opened))
    assert list(again) == list(opened)
    assert again.images(7) == opened.images(7) == ((IMAGES / "rgb_odd.jpg").read_bytes(),)


def shards(folder: Path, *names: str) -> Path:
    """The records of the fixture, dealt out over files."""
    rows = [with_structs(record) for record in records()]
    share = len(rows) // len(names)
    for number, name in enumerate(names):
        write_parquet(rows[number * share : (number + 1) * share], folder / name)
    return folder


@pytest.mark.parametrize("pattern", ["", "train-*.parquet"])
def test_shards_follow_each_other_by_name(pattern: str, tmp_path: Path) -> None:
    shards(tmp_path, "train-00001-of-00002.parquet", "train-00000-of-00002.parquet")
    opened = open_records([source(tmp_path / pattern)])
    order = [f"s1_{number:03}" for number in (*range(12, 24), *range(12))]
    assert [record.id for record in opened] == order
    mark = opened.mark(13)
    assert (mark.file, mark.row) == (str(tmp_path / "train-00001-of-00002.parquet"), 1)


def test_an_ending_in_capitals_is_parquet_too(tmp_path: Path) -> None:
    file = write_parquet([with_structs(record) for record in records()[:3]], tmp_path / "DATA.PARQUET")
    assert len(open_file(str(file))) == 3


def test_a_problem_names_file_and_row(tmp_path: Path) -> None:
    rows = [with_structs(record) for record in records()]
    rows[11]["conversations"] = rows[11]["conversations"][:1] * 2
    rows[12]["image"] = None
    file = write_parquet(rows, tmp_path / "data.parquet")
    opened = open_records([source(file, sampling_strategy="end:14")])
    reported = []
    for index in (1, 2):
        with pytest.raises(SampleError) as caught:
            opened[index]
        reported.append(render_problems(SampleError(str(caught.value)).problems))
    assert reported[0].startswith(
        f'{file}: row 11: sample 1 (id "s1_011"): two human turns follow each other'
    )
    assert reported[1].startswith(f'{file}: row 12: sample 2 (id "s1_012"): <image> tags and images differ')


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the image is empty"),
        (b"no image", "not an image of a known format"),
        (None, "its bytes are not in the file, and the source has no image folder"),
        ((IMAGES / "rgb_0.jpg").read_bytes()[:700], "truncated"),
    ],
)
def test_bytes_that_are_no_image(
    data: bytes | None, reason: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [with_structs(record) for record in records()]
    rows[6]["image"] = {"bytes": data, "path": "a.png"}
    samples = dataset(tokenizer, source(write_parquet(rows, tmp_path / "data.parquet")))
    with pytest.raises(BadImageError) as caught:
        samples.read(6)
    (problem,) = caught.value.problems
    assert 'sample 6 (id "s1_006")' in problem.message
    assert problem.found is not None and problem.found.startswith("a.png: ") and reason in problem.found
    assert problem.mark is not None and problem.mark.row == 6


def test_a_image_bomb_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [with_structs(record) for record in records()]
    samples = dataset(tokenizer, source(write_parquet(rows, tmp_path / "data.parquet")))
    monkeypatch.setattr("llava_recipes.data.images.MAX_PIXELS", 100)
    with pytest.raises(BadImageError) as caught:
        samples.read(0)
    assert "pixels are more than the 100 allowed" in str(caught.value.problems[0].found)


def test_paths_without_bytes_lie_in_the_folder(tmp_path: Path) -> None:
    rows = [with_structs(record) for record in records()]
    for row in rows[::2]:
        row["image"]["bytes"] = None
    opened = open_records([source(write_parquet(rows, tmp_path / "data.parquet"), IMAGES)])
    from llava_recipes.data.images import open_images

    for record, known in zip(opened, records(), strict=True):
        (opened_image,) = open_images(opened, record, lambda image: image)
        assert opened_image.tobytes() == _decoded(known["image"])


def _decoded(name: str) -> bytes:
    from tests.images import read_image

    return read_image(str(IMAGES), name).tobytes()


def test_texts_are_read_without_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking through the conversations of a large file must not read its images."""
    file = write_parquet([with_structs(record) for record in records()], tmp_path / "data.parquet")
    read: list[str] = []
    whole = parquet._read

    def reading(group: Any, columns: tuple[str, ...]) -> Any:
        read.extend(columns)
        return whole(group, columns)

    monkeypatch.setattr(parquet, "_read", reading)
    opened = open_records([source(file)], measure=True)
    assert len(list(opened)) == len(opened.lengths()) == 24
    assert "image.path" in read
    assert "image.bytes" not in read
    opened.images(0)
    assert "image.bytes" in read


def test_one_row_group_is_held(tmp_path: Path) -> None:
    """Whatever is read and in whatever order, memory grows by one group of texts and one of images."""
    rows = [with_structs(record) for record in records()] * 3
    opened = open_records([source(write_parquet(rows, tmp_path / "data.parquet"))])
    for index in (70, 3, 40, 3, 71, 0):
        record = opened[index]
        opened.images(record.index)
    held = opened._sources[0].file
    assert isinstance(held, parquet.ParquetFiles)
    assert {what: table.num_rows for what, (_, table) in held._kept_tables.items()} == {
        "texts": 5,
        "bytes": 5,
    }


BAD: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: folder / "none.parquet", "cannot be read as a Parquet file"),
    (lambda folder: folder / "none-*.parquet", "no file matches the pattern"),
    (lambda folder: folder, "the folder contains no `.parquet` files"),
    (lambda folder: _bytes_in(folder, b"PAR1 and no more"), "cannot be read as a Parquet file"),
    (lambda folder: _table(folder, {"text": ["a"]}), "no column contains conversations"),
    (lambda folder: _table(folder, {"conversations": []}), "the file contains no records"),
    (
        lambda folder: _table(folder, {"messages": [[]], "image": [1]}),
        "the column `image` contains no images",
    ),
    (
        lambda folder: _table(folder, {"messages": [[]], "image": ["a"], "images": [["a"]]}),
        "it has both `image` and `images`",
    ),
    (
        lambda folder: shards(folder, "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        "the folder contains several splits",
    ),
    (
        lambda folder: (
            (
                _table(folder, {"messages": [[{"role": "user", "content": "a"}]]}, "a.parquet"),
                _table(folder, {"conversations": [[{"from": "human", "value": "a"}]]}, "b.parquet"),
            )
            and folder
        ),
        "the files do not have the same columns",
    ),
]


def _bytes_in(folder: Path, data: bytes) -> Path:
    (folder / "data.parquet").write_bytes(data)
    return folder / "data.parquet"


def _table(folder: Path, columns: dict[str, list[Any]], name: str = "data.parquet") -> Path:
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_what_is_no_data(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        open_records([source(str(make(tmp_path)))])
    (problem,) = caught.value.problems
    assert message in problem.message
    assert problem.path == ("annotations",)


def test_a_row_group_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_parquet([with_structs(record) for record in records()], tmp_path / "data.parquet")
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 1000)
    with pytest.raises(RecipeError, match="a row group is too large"):
        open_records([source(file)])


def test_a_file_that_changes_under_a_run_is_reported(tmp_path: Path) -> None:
    file = write_parquet([with_structs(record) for record in records()], tmp_path / "data.parquet")
    opened: Records = open_records([source(file)])
    os.truncate(file, 100)
    with pytest.raises(RecipeError, match="cannot be read as a Parquet file"):
        opened[0]


def test_json_needs_no_pyarrow() -> None:
    code = (
        "import sys; from llava_recipes.data.records import open_file; "
        f"assert len(open_file({str(FIXTURES / 'stage1.json')!r})) == 24; assert 'pyarrow' not in sys.modules"
    )
    done = run_process([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 0, done.stderr
