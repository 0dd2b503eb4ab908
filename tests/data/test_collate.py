"""Batches against the original's labels, masks and positions after the images are put in."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from llava_recipes.data.collate import Collator, IndexedCollator, expand
from llava_recipes.data.crops import ImageLayout, PreparedImage
from llava_recipes.data.dataset import Sample
from llava_recipes.data.prompts import IGNORED, IMAGE_ID
from llava_recipes.errors import Mark, SampleError
from tests.lenient import LenientCollator
from tests.tiny import FIXTURES, GOLDEN

NUM_IMAGE_TOKENS, PAD = 16, 0
CASES = {case["case"]: case for case in json.loads((GOLDEN / "03_splice/splice.json").read_text())["cases"]}
COMPARED = [
    "right_padded",
    "right_padded_2",
    "all_text",
    "all_image",
    "single_image",
    "single_text",
    "truncated_40",
    "truncated_60",
    "truncated_5_before_image",
    "left_padded",
    "left_padded_truncated_60",
    "position_ids_given",
    "no_labels",
    "images_list",
]


def sample(ids: list[int], labels: list[int], index: int = 0) -> Sample:
    num_images = ids.count(IMAGE_ID)
    images = (PreparedImage(torch.full((1, 3, 2, 2), float(index)), (2, 2)),) * num_images
    return Sample(index, f"id{index}", torch.tensor(ids), torch.tensor(labels), images)


def golden_batch(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    rows = zip(case["in_input_ids"], case["in_labels"], case["in_attention_mask"], strict=True)
    samples = []
    for index, (ids, labels, mask) in enumerate(rows):
        length = sum(mask)
        samples.append(sample(ids[:length], labels[:length], index))
    changes = case["config_changes"]
    side: Literal["left", "right"] = "left" if changes.get("tokenizer_padding_side") == "left" else "right"
    return LenientCollator(
        layout=ImageLayout(NUM_IMAGE_TOKENS),
        max_length=changes.get("tokenizer_model_max_length", 2048),
        pad_token_id=PAD,
        padding_side=side,
    )(samples)


@pytest.mark.parametrize("name", COMPARED)
def test_batches_are_the_originals(name: str) -> None:
    case = CASES[name]
    batch = golden_batch(case)
    assert batch["attention_mask"].int().tolist() == case["attention_mask"]
    assert batch["attention_mask"].dtype == torch.bool
    if case["labels"] is not None:
        assert batch["labels"].tolist() == case["labels"]
    if case["position_ids"] is not None:
        assert batch["position_ids"].tolist() == case["position_ids"]
    assert list(batch["input_ids"].shape) == case["inputs_embeds"]["shape"][:2]
    assert len(batch.get("feature_places", ())) == int(batch["is_image"].sum())


@pytest.mark.parametrize("name", COMPARED)
def test_text_stands_where_the_original_embeds_it(name: str) -> None:
    """Embeddings of our ids equal the original's everywhere but on images and padding."""
    batch = golden_batch(CASES[name])
    weights = load_file(FIXTURES / "tiny_vicuna/model.safetensors")["model.embed_tokens.weight"].float()
    expected = torch.from_numpy(np.load(GOLDEN / f"03_splice/{name}.npy"))
    is_text = batch["attention_mask"] & ~batch["is_image"]
    assert torch.equal(weights[batch["input_ids"]][is_text], expected[is_text])
    assert not expected[~batch["attention_mask"]].any()
    if batch["is_image"].any():
        differs = (weights[batch["input_ids"]] != expected).any(dim=-1)
        assert differs[batch["is_image"]].all()


def test_dtypes_and_padding() -> None:
    batch = LenientCollator(layout=ImageLayout(2), max_length=10, pad_token_id=9, padding_side="right")(
        [sample([1, IMAGE_ID, 5], [-100, -100, 5]), sample([1, 7], [-100, 7])]
    )
    assert batch["input_ids"].tolist() == [[1, 0, 0, 5], [1, 7, 9, 9]]
    assert batch["is_image"].tolist() == [[False, True, True, False], [False] * 4]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert batch["feature_places"].tolist() == [0, 1]
    kinds = {name: values.dtype for name, values in batch.items()}
    assert kinds == {
        "input_ids": torch.int64,
        "is_image": torch.bool,
        "labels": torch.int64,
        "attention_mask": torch.bool,
        "position_ids": torch.int64,
        "pixel_values": torch.float32,
        "feature_places": torch.int64,
    }


def test_a_batch_of_text_has_no_images() -> None:
    batch = Collator(ImageLayout(16), 10, 0)([sample([1, 7], [-100, 7])])
    assert not {"pixel_values", "feature_places"} & set(batch)


def test_nothing_left_to_learn_is_an_error_that_names_each_sample() -> None:
    collator = Collator(ImageLayout(4), 4, 0)
    good = sample([1, 5], [-100, 5], 0)
    cut = [sample([1, IMAGE_ID, 5], [-100, -100, 5], 3), sample([1] * 4 + [5], [-100] * 4 + [5], 8)]
    assert collator([good])["labels"].tolist() == [[-100, 5]]
    with pytest.raises(SampleError) as caught:
        collator([cut[0], good, cut[1]])
    reported = [(problem.message.split(":")[0], problem.found) for problem in caught.value.problems]
    assert reported == [
        ('sample 3 (id "id3")', "1 image takes 4 tokens, max_length is 4"),
        ('sample 8 (id "id8")', "5 tokens, max_length is 4"),
    ]
    with pytest.raises(SampleError):
        collator([sample([5], [5])])


tokens = st.lists(st.sampled_from([1, 2, 3, IMAGE_ID]), min_size=1, max_size=12)


@given(
    rows=st.lists(tokens, min_size=1, max_size=4),
    num_image_tokens=st.integers(1, 5),
    max_length=st.integers(1, 30),
    left=st.booleans(),
)
def test_a_batch_is_each_sample_expanded_cut_and_padded(
    rows: list[list[int]], num_image_tokens: int, max_length: int, left: bool
) -> None:
    samples = [sample(ids, [IGNORED if i == IMAGE_ID else i for i in ids], n) for n, ids in enumerate(rows)]
    batch = LenientCollator(
        layout=ImageLayout(num_image_tokens),
        max_length=max_length,
        pad_token_id=99,
        padding_side="left" if left else "right",
    )(samples)
    kept: list[int] = []
    start = 0
    for number, ids in enumerate(rows):
        real = batch["attention_mask"][number]
        expanded: list[tuple[int, int]] = []
        for place, token in enumerate(ids):
            expanded += [(token, place)] * (num_image_tokens if token == IMAGE_ID else 1)
        expanded = expanded[:max_length]
        expected = [0 if token == IMAGE_ID else token for token, _ in expanded]
        assert batch["input_ids"][number][real].tolist() == expected
        assert batch["is_image"][number][real].tolist() == [token == IMAGE_ID for token, _ in expanded]
        assert batch["position_ids"][number][real].tolist() == list(range(len(expanded)))
        assert set(batch["input_ids"][number][~real].tolist()) <= {99}
        assert not batch["is_image"][number][~real].any()
        places = [place for _, place in expanded]
        for place, token in enumerate(ids):
            if token == IMAGE_ID:
                kept += range(start, start + places.count(place))
                start += num_image_tokens
    assert batch.get("feature_places", torch.tensor([], dtype=torch.int64)).tolist() == kept
    assert int(batch["attention_mask"].sum(dim=1).max()) == batch["input_ids"].shape[1] <= max_length


def test_images_that_fill_the_longest_length_are_reported_as_such() -> None:
    images = Sample(
        index=4,
        id="many",
        input_ids=torch.tensor([1, IMAGE_ID, IMAGE_ID, 5, IMAGE_ID, 6]),
        labels=torch.tensor([-100, -100, -100, -100, -100, 6]),
        images=(PreparedImage(torch.zeros(1, 3, 2, 2), (2, 2)),) * 3,
    )
    collator = Collator(
        ImageLayout(576), max_length=1024, pad_token_id=0, mark_of=lambda index: Mark("a.json", index, 1)
    )
    with pytest.raises(SampleError) as caught:
        collator([images])
    (problem,) = caught.value.problems
    assert problem.message == 'sample 4 (id "many"): its images leave no room for text'
    assert problem.found == "3 images take 1,728 tokens, max_length is 1,024"
    assert problem.mark == Mark("a.json", 4, 1)
    assert collator.max_length == 1024
    roomy = Collator(ImageLayout(576), max_length=1732, pad_token_id=0)([images])
    assert roomy["feature_places"].tolist() == list(range(3 * 576))


def test_a_dropped_token_and_its_label_are_left_out_before_the_cut() -> None:
    ids, labels = torch.tensor([5, 0, IMAGE_ID, 0, 6, 7, 8]), torch.tensor([1, 2, IGNORED, 3, 4, 5, 6])
    expanded = expand(ids, labels, num_image_tokens=[2], max_length=5, dropped_token_id=0)
    assert expanded.input_ids.tolist() == [5, 0, 0, 6, 7]
    assert expanded.is_image.tolist() == [False, True, True, False, False]
    assert expanded.labels.tolist() == [1, IGNORED, IGNORED, 4, 5]


def test_an_indexed_batch_names_its_samples() -> None:
    samples = [sample([1, 7], [-100, 7], index) for index in (5, 3)]
    collator = Collator(ImageLayout(16), 10, 0)
    batch = IndexedCollator(collator)(samples)
    assert batch.pop("sample_index").tolist() == [5, 3]
    assert batch.keys() == collator(samples).keys()
