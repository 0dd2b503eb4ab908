"""Images of any size in a plan: the sizes they are spread over, their tokens, what they cost."""

from __future__ import annotations

from typing import Any

import pytest

from llava_recipes.estimate.estimate import StageEstimate
from llava_recipes.plan.compile import Facts
from llava_recipes.plan.families import VISION_TOWERS
from llava_recipes.plan.image_tokens import describe_images
from llava_recipes.plan.types import ImageCounts, StagePlan
from tests.estimate.estimates import VICUNA_7B, estimated, estimator_of, stage1_values
from tests.plan.recipes import compiled, problems_of, recipe_values, stage_values

UNPAD = {"data__image_aspect_ratio": "anyres", "data__mm_patch_merge_type": "spatial_unpad"}


def planned(values: dict[str, Any], **given: Any) -> StagePlan:
    return compiled(values, **given).stages[0]


def estimate(**changes: Any) -> StageEstimate:
    values = stage1_values(VICUNA_7B, data__max_length=4096, **changes)
    return estimated(values, text_tokens=29, label_tokens=28).stages[0]


def test_the_usual_pinpoints_are_five_grids_of_the_towers_size() -> None:
    data = planned(stage_values(**UNPAD)).data
    assert data.image_grid_pinpoints == ((56, 112), (112, 56), (112, 112), (168, 56), (56, 168))
    # 4 × 4 features a crop; the photo fills 6 of the 8 rows of 2 × 2 crops.
    assert data.image_counts == ImageCounts(
        least_tokens=16, usual_tokens=16 + 6 * 9, most_tokens=16 + 8 * 9, usual_crops=5, most_crops=5
    )


def test_a_square_image_has_one_size() -> None:
    data = planned(stage_values()).data
    assert (data.image_grid_pinpoints, data.mm_patch_merge_type) == (None, "flat")
    assert data.image_counts == ImageCounts(
        least_tokens=16, usual_tokens=16, most_tokens=16, usual_crops=1, most_crops=1
    )


def test_llava_next_takes_up_to_2928_tokens() -> None:
    counts = planned(stage1_values(**UNPAD, data__max_length=4096)).data.image_counts
    assert counts is not None
    assert (counts.least_tokens, counts.usual_tokens, counts.most_tokens) == (576, 2340, 2928)


def test_flat_crops_keep_their_class_tokens() -> None:
    values = stage_values(data__image_aspect_ratio="anyres", data__image_grid_pinpoints=[[56, 112]])
    values["model"]["vision_tower"]["select_feature"] = "cls_patch"
    counts = planned(values).data.image_counts
    assert counts is not None and counts.most_tokens == counts.least_tokens == 3 * 17


@pytest.mark.parametrize("name", [name for name in VISION_TOWERS if "siglip" in name])
def test_siglip_towers_have_grids_of_their_own_size(name: str) -> None:
    values = stage1_values(**UNPAD, data__max_length=8192)
    values["model"]["vision_tower"] = {"source": name}
    data, px = planned(values).data, VISION_TOWERS[name]["image_size"]
    assert isinstance(px, int) and data.image_grid_pinpoints is not None and data.image_counts is not None
    assert data.image_grid_pinpoints[2] == (2 * px, 2 * px)
    side = px // int(str(VISION_TOWERS[name]["patch_size"]))
    assert data.image_counts.most_tokens == side**2 + 2 * side * (2 * side + 1)


def test_the_image_newline_is_a_parameter_where_a_stage_needs_it() -> None:
    plan = compiled(stage_values(**UNPAD, trainable=["projector", "image_newline"]))
    assert plan.model.image_newline and plan.model.sizes is not None
    newline = plan.model.sizes.modules[3]
    assert (newline.name, newline.num_parameters) == ("image_newline", 64)
    assert plan.stages[0].trainable_modules == ("projector", "image_newline")
    without = compiled(stage_values())
    assert without.model.sizes is not None
    assert "image_newline" not in {module.name for module in without.model.sizes.modules}
    alone, beside = without.stages[0], plan.stages[0]
    assert alone.num_trainable_parameters is not None
    assert beside.num_trainable_parameters == alone.num_trainable_parameters + 64


def test_where_the_tower_is_not_known_nothing_is_counted() -> None:
    values = stage_values(**UNPAD)
    values["model"]["vision_tower"] = {"source": "someone/some-tower"}
    plan = compiled(values, facts=Facts())
    data = plan.stages[0].data
    assert (data.image_counts, data.image_grid_pinpoints) == (None, None)
    assert "image tokens depend on the tower's size, which is not known, and are not counted" in plan.notes
    assert describe_images(data) == "anyres, spatial_unpad; tokens not counted"


def test_a_length_that_holds_no_image_is_refused() -> None:
    (problem,) = problems_of(stage_values(**UNPAD, data__max_length=16))
    assert problem.found == "16, but one image takes 16 to 88 tokens"


def test_a_grid_smaller_than_the_towers_image_is_reported_at_its_place() -> None:
    images = {
        "data__image_aspect_ratio": "anyres",
        "data__image_grid_pinpoints": [[56, 112], [20, 20]],
        "data__mm_patch_merge_type": "spatial_unpad",
    }
    (problem,) = problems_of(stage_values(**images))
    assert problem.path == ("stages", 0, "data", "image_grid_pinpoints", 1)
    assert problem.hint == "write [56, 56]"


def test_every_crop_goes_through_the_tower() -> None:
    square, spread = estimate(), estimate(**UNPAD)
    assert (square.tokens.crops, spread.tokens.crops) == (1, 5)
    assert (square.tokens.image, spread.tokens.image) == (576, 2340)
    trained = {"trainable": ["projector", "vision_tower"]}
    one, five = estimate(**trained).longest, estimate(**trained, **UNPAD).longest
    layers, embeddings = 23 * 2 * 1024 * 577, (2 * 588 + 2 * 1024) * 577
    projector = 576 * (2 * 2 * 4096 + 2 * 1024 + 8)
    kept = five.activations_bytes - one.activations_bytes
    assert kept == 4 * 32 * (layers + embeddings + projector)


def test_operations_of_the_tower_are_those_of_its_crops() -> None:
    """At one length of the sequence, what five crops cost beyond one is four crops of tower and projector."""

    def flops(aspect: dict[str, Any], max_length: int) -> float:
        values = stage1_values(VICUNA_7B, data__max_length=max_length, **aspect)
        plan, estimator = estimator_of(values, text_tokens=100_000, label_tokens=28)
        found = estimator.compute(plan.stages[0]).flops
        assert found is not None
        return found / 558_128

    five, one = flops(UNPAD, 4096), flops({}, 4096)
    layer = 2 * 577 * (4 * 1024**2 + 2 * 1024 * 4096) + 4 * 1024 * 577**2
    projector = 1024 * 4096 + 4096**2
    assert five - one == pytest.approx(4 * (23 * layer + 6 * 576 * projector), rel=1e-6)


def test_stages_of_one_recipe_share_the_newline() -> None:
    values = recipe_values()
    first = values["stages"][0]
    second = {**first, "name": "tune", "output_dir": "out/tune"}
    second["data"] = {**first["data"], "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
    values["stages"].append(second)
    plan = compiled(values)
    assert plan.model.image_newline
    assert [stage.data.mm_patch_merge_type for stage in plan.stages] == ["flat", "spatial_unpad"]
