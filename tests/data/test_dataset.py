"""A stage's samples: the original's, and what happens to those that are not good."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from llava_recipes.data.collate import Collator
from llava_recipes.data.crops import ImageLayout
from llava_recipes.data.dataset import BadImageError, StageDataset
from llava_recipes.data.images import load_image_processor
from llava_recipes.data.tokenizer import load_tokenizer
from llava_recipes.errors import Problem, SampleError
from llava_recipes.plan.types import DataPlan, LanguageModelPlan, SourcePlan
from llava_recipes.recipe.schema import ImageTokens, VisionTower
from tests.tiny import FIXTURES, GOLDEN


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    source = str(FIXTURES / "tiny_vicuna")
    plan = LanguageModelPlan(source=source, revision=None, config=None, tokenizer=source, seed=0)
    return load_tokenizer(plan, ImageTokens.model_validate({}))


def dataset(
    tokenizer: PreTrainedTokenizerBase,
    annotations: Path,
    images: Path | None = FIXTURES / "images",
    **changes: Any,
) -> StageDataset:
    source = SourcePlan(
        annotations=str(annotations), images=None if images is None else str(images), num_samples=None
    )
    values: dict[str, Any] = {
        "template": "v1",
        "sources": (source,),
        "num_samples": None,
        "image_aspect_ratio": "square",
        "max_length": 2048,
        "shuffle": True,
        "group_by": "none",
        "on_bad_image": "error",
        "lazy_preprocess": True,
    }
    processor = load_image_processor(VisionTower.model_validate({"source": str(FIXTURES / "tiny_clip")}))
    return StageDataset(DataPlan(**(values | changes)), tokenizer, processor, False)


def image_records(tmp_path: Path, *images: str | None, answer: str = "a") -> Path:
    """Annotations of one conversation per image, or per None a text-only one."""
    file = tmp_path / "data.json"
    records = [
        {
            "id": f"r{index}",
            **({"image": image} if image else {}),
            "conversations": [
                {"from": "human", "value": "<image>\nx" if image else "x"},
                {"from": "gpt", "value": answer},
            ],
        }
        for index, image in enumerate(images)
    ]
    file.write_text(json.dumps(records))
    return file


def problem_of(loader: Iterable[object]) -> Problem:
    """What ends a loader. Its worker processes end with the error, so that nothing keeps it."""
    try:
        list(loader)
    except SampleError as error:
        # Its frames hold the loader, and one of them the error.
        error.__traceback__ = None
        (problem,) = error.problems
        return problem
    raise AssertionError("the loader came to its end")


@pytest.mark.parametrize("lazy", [True, False])
def test_samples_are_the_originals(tokenizer: PreTrainedTokenizerBase, lazy: bool) -> None:
    stage = dataset(tokenizer, FIXTURES / "stage1.json", template="plain", lazy_preprocess=lazy)
    file = GOLDEN / "01_tokenization/stage1__plain__se0__tiny_vicuna__slow__2048.json"
    golden = json.loads(file.read_text())["samples"]
    assert len(stage) == len(golden) == 24
    for index, expected in enumerate(golden):
        sample = stage[index]
        assert (sample.index, sample.id) == (index, expected["id"])
        assert sample.input_ids.tolist() == expected["input_ids"]
        assert sample.labels.tolist() == expected["labels"]
        assert sample.input_ids.dtype == sample.labels.dtype == torch.int64
        (image,) = sample.images
        assert list(image.crops.shape) == [1, *expected["image_shape"]]


def test_samples_cross_worker_processes(tokenizer: PreTrainedTokenizerBase) -> None:
    stage = dataset(tokenizer, FIXTURES / "stage1.json", template="plain")
    collator = Collator(ImageLayout(16), 2048, 0)
    loaders = [DataLoader(stage, batch_size=8, collate_fn=collator, num_workers=count) for count in (0, 2)]
    for alone, helped in zip(*loaders, strict=True):
        assert alone.keys() == helped.keys()
        assert all(torch.equal(alone[name], helped[name]) for name in alone)


def test_text_only_samples_have_no_images(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    sample = dataset(tokenizer, image_records(tmp_path, None), None, template="plain")[0]
    assert sample.images == ()
    assert sample.input_ids.tolist()[0] == tokenizer.bos_token_id
    assert sample.labels.tolist() == [-100, *sample.input_ids.tolist()[1:]]
    assert tokenizer.decode(sample.input_ids[1:]) == "a\n"


def test_a_sample_is_described_without_being_read(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    stage = dataset(tokenizer, image_records(tmp_path, "gone.jpg", None), template="plain")
    assert [stage.describe(index) for index in (0, 1)] == [
        'sample 0 (id "r0"), image gone.jpg',
        'sample 1 (id "r1")',
    ]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_image_is_reported_with_index_id_file_and_line(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, num_workers: int
) -> None:
    file = image_records(tmp_path, "rgb_0.jpg", "edge/truncated.jpg")
    loader = DataLoader(
        dataset(tokenizer, file),
        batch_size=2,
        collate_fn=Collator(ImageLayout(16), 99, 0),
        num_workers=num_workers,
    )
    problem = problem_of(loader)
    assert problem.message == 'sample 1 (id "r1"): its image cannot be used'
    assert problem.found is not None
    assert "edge/truncated.jpg: image file is truncated" in problem.found
    assert problem.mark is not None
    assert (problem.mark.file, problem.mark.line) == (str(file), 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_skip_takes_the_next_good_sample_and_counts(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, num_workers: int
) -> None:
    images = ["rgb_0.jpg", "edge/empty.jpg", "none.jpg", None, "rgb_wide.jpg", "edge/text.jpg"]
    stage = dataset(tokenizer, image_records(tmp_path, *images), on_bad_image="skip")

    def indices(samples: list[Any]) -> list[int]:
        return [sample.index for sample in samples]

    loader = DataLoader(stage, batch_size=6, collate_fn=indices, num_workers=num_workers)
    assert list(loader) == [[0, 3, 3, 3, 4, 0]]
    # Sample 1 and what stood in for it, 2 and 5: each once.
    assert stage.skipped.nonzero().flatten().tolist() == [1, 2, 5]
    assert list(loader) == [[0, 3, 3, 3, 4, 0]]
    assert stage.skipped.sum() == 3
    with pytest.raises(BadImageError):
        stage.read(1)


def test_a_skipped_sample_is_named_in_the_log(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = dataset(tokenizer, image_records(tmp_path, "none.jpg", None), on_bad_image="skip")
    with caplog.at_level(logging.WARNING):
        assert stage[0].index == 1
    (line,) = caplog.messages
    assert 'sample 0 (id "r0")' in line
    assert "none.jpg: the file does not exist" in line


def test_skip_ends_when_no_image_is_good(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    stage = dataset(tokenizer, image_records(tmp_path, "none.jpg", "nope.jpg"), on_bad_image="skip")
    with pytest.raises(SampleError, match="no sample has an image"):
        stage[0]


def test_skip_is_for_images_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    stage = dataset(tokenizer, FIXTURES / "edge.json", on_bad_image="skip")
    with pytest.raises(SampleError, match="differ in number"):
        stage[0]


@pytest.mark.parametrize(
    ("template", "index", "message"),
    [
        ("v1", 21, 'sample 21 (id "e_only_human"): nothing in it is learned'),
        ("plain", 21, "takes one human turn and one answer, not 1 turns"),
        ("plain", 22, "takes one human turn and one answer, not 3 turns"),
        ("v1", 23, 'sample 23 (id "e_escaping_path"): its image cannot be used'),
    ],
)
def test_refuses(tokenizer: PreTrainedTokenizerBase, template: str, index: int, message: str) -> None:
    stage = dataset(tokenizer, FIXTURES / "edge.json", template=template)
    with pytest.raises(SampleError) as caught:
        stage[index]
    assert message in caught.value.problems[0].message


def test_eager_preprocessing_finds_a_bad_record_at_the_start(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(SampleError, match="s2_018"):
        dataset(tokenizer, FIXTURES / "stage2.json", lazy_preprocess=False)
