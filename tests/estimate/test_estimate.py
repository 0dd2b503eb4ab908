"""Memory, cost and disk of LLaVA-1.5's own stages, counted by hand; and what must hold of any stage."""

from __future__ import annotations

from typing import Any

import pytest

from llava_recipes.estimate.cost import GPUS
from llava_recipes.estimate.estimate import Otherwise, StageEstimate
from tests.estimate.estimates import VICUNA_7B, VICUNA_13B, estimated, part, stage1_values

TRAINABLE, TOTAL = 31_467_520, 13_350_839_296
FULL = {"trainable": ["projector", "language_model", "lm_head"], "data__template": "v1"}


def stage(values: dict[str, Any], **given: Any) -> StageEstimate:
    return estimated(values, **given).stages[0]


def changed(**train: Any) -> dict[str, Any]:
    values = stage1_values()
    values["stages"][0]["train"] |= train
    return values


def test_the_parts_of_stage_1_by_hand() -> None:
    memory = stage(stage1_values()).usual
    tokens = 32 * 605
    assert memory.length == 605
    assert part(memory, "frozen weights") == 2 * (TOTAL - TRAINABLE)
    assert part(memory, "optimizer") == TRAINABLE * 12 // 8
    assert part(memory, "DeepSpeed buffers") == 2 * 5120**2 * 2
    # One hidden state a layer, the last norm's input in float32, and what the projector keeps of 576 patches.
    patches = 32 * 576
    layers, norm = 40 * 5120 * 2 * tokens, tokens * (5120 * 4 + 4)
    assert part(memory, "activations") == layers + norm + patches * (1024 * 2 + 2 * 5120 * 2 + 8)
    layer = 8 * 5120 + 8 + 4 * (5120 + 5120) + 4 * 40 + 6 * 13824
    assert part(memory, "one layer again") == layer * tokens
    assert memory.moment == "start of the backward pass"
    assert memory.total_bytes == sum(each.num_bytes for each in memory.parts)


def test_logits_exist_where_there_are_labels() -> None:
    given = stage(stage1_values(), label_tokens=29, text_tokens=29)
    assert given.usual.num_labels == 32 * 29
    longest = stage(stage1_values()).longest
    assert longest.num_labels == 32 * (2048 - 576)
    assert part(longest, "logits") in (0, longest.num_labels * 32000 * 10)


def test_both_ways_of_checkpointing_are_counted() -> None:
    with_it, without = stage(stage1_values()), stage(changed(gradient_checkpointing=False))
    assert with_it.otherwise == Otherwise(
        checkpointing=False,
        usual_bytes=without.usual.total_bytes,
        longest_bytes=without.longest.total_bytes,
        usual_activations_bytes=without.usual.activations_bytes,
        longest_activations_bytes=without.longest.activations_bytes,
    )
    assert without.otherwise.usual_bytes == with_it.usual.total_bytes
    assert without.usual.activations_bytes > 10 * with_it.usual.activations_bytes


def test_the_peak_is_the_largest_moment() -> None:
    for values in (stage1_values(), stage1_values(VICUNA_7B, **FULL)):
        memory = stage(values).longest
        sizes = {moment.name: moment.num_bytes for moment in memory.moments}
        assert len(sizes) == 4
        assert memory.total_bytes == max(sizes.values()) == sizes[memory.moment]


def test_zero_splits_what_its_stage_says() -> None:
    two, three = (
        stage(stage1_values(VICUNA_7B, deepspeed=engine, **FULL)).usual for engine in ("zero2", "zero3")
    )
    alone = stage(stage1_values(VICUNA_7B, deepspeed="zero3", **FULL), world_size=1).usual
    assert part(two, "optimizer") == part(three, "optimizer") == part(alone, "optimizer") // 8
    assert part(three, "weights") == part(alone, "weights") // 8
    assert part(two, "frozen weights") + part(two, "trained weights") == part(alone, "weights")
    assert part(three, "gathered weights") == 2 * 10**9


def test_zero_3_keeps_the_inputs_of_frozen_linear_layers() -> None:
    two, three = (stage(stage1_values(deepspeed=engine)).usual for engine in ("zero2", "zero3"))
    inputs = 2 * (2 * 5120 + 13824) * 32 * 605
    assert part(three, "one layer again") - part(two, "one layer again") == inputs


def test_zero_3_steps_through_groups() -> None:
    """DeepSpeed updates at most `sub_group_size` parameters at a time under stage 3."""
    config: dict[str, Any] = {"bf16": {"enabled": "auto"}, "train_batch_size": "auto"}
    config |= {"zero_optimization": {"stage": 3, "sub_group_size": 1e8}}
    config["train_micro_batch_size_per_gpu"] = "auto"
    small = changed(per_device_train_batch_size=1)
    small["stages"][0] |= {"deepspeed": config, "trainable": FULL["trainable"]}
    whole = changed(per_device_train_batch_size=1)
    whole["stages"][0] |= {"deepspeed": "zero3", "trainable": FULL["trainable"]}
    assert part(stage(whole, world_size=8).usual, "step") == 8 * 10**9
    assert part(stage(small, world_size=8).usual, "step") == 8 * 10**8


def test_offload_goes_to_main_memory() -> None:
    config: dict[str, Any] = {
        "bf16": {"enabled": "auto"},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "zero_optimization": {"stage": 2},
    }
    kept = stage(stage1_values(VICUNA_7B, deepspeed=config, **FULL))
    config = {**config, "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    moved = stage(stage1_values(VICUNA_7B, deepspeed=config, **FULL))
    assert kept.usual.host_bytes == 0 and part(moved.usual, "optimizer") == 0
    trained = sum(each.num_parameters for each in moved.modules if each.trains)
    assert moved.usual.host_bytes == trained * 16 // 8
    assert moved.compute.kind == "optimizer or weights are offloaded"
    assert part(kept.usual, "DeepSpeed buffers") == 2 * 500_000_000 * 2


def test_without_deepspeed_what_trains_is_float32() -> None:
    memory = stage(stage1_values(VICUNA_7B, deepspeed="none", **FULL)).usual
    trained = stage(stage1_values(VICUNA_7B, **FULL)).modules
    count = sum(each.num_parameters for each in trained if each.trains)
    assert part(memory, "trained weights") == part(memory, "gradients") == 4 * count
    assert part(memory, "optimizer") == 8 * count


def test_a_frozen_projector_is_float32_without_deepspeed() -> None:
    values = stage1_values(trainable=["lm_head"], deepspeed="none")
    assert part(stage(values).usual, "frozen projector") == 4 * TRAINABLE
    assert part(stage({**values, "stages": [{**values["stages"][0], "deepspeed": "zero2"}]}).usual, "x") == 0


@pytest.mark.parametrize("engine", ["none", "zero2", "zero3"])
@pytest.mark.parametrize("trainable", [["projector"], FULL["trainable"]])
def test_less_work_at_once_takes_less_memory(engine: str, trainable: list[str]) -> None:
    def total(size: int, *, checkpointing: bool, world_size: int = 8) -> int:
        values = stage1_values(VICUNA_7B, deepspeed=engine, trainable=trainable)
        values["stages"][0]["train"] |= {
            "per_device_train_batch_size": size,
            "gradient_checkpointing": checkpointing,
        }
        return stage(values, world_size=world_size).longest.total_bytes

    # Where everything trains, the optimizer step may be the fullest moment whatever the batch.
    assert total(1, checkpointing=True) <= total(8, checkpointing=True) < total(8, checkpointing=False)
    assert total(8, checkpointing=False) < total(16, checkpointing=False)
    assert total(8, checkpointing=True) <= total(8, checkpointing=True, world_size=4)


def test_nothing_before_the_first_trained_layer_is_kept() -> None:
    last = stage(stage1_values(trainable=["language_model.layers.{38..39}"])).usual
    first = stage(stage1_values(trainable=["language_model.layers.{0..1}"])).usual
    assert part(first, "activations") - part(last, "activations") == 38 * 2 * 5120 * 32 * 605
    head = stage(stage1_values(trainable=["lm_head"])).usual
    assert part(head, "activations") < part(last, "activations")


def test_lora_takes_less_than_full_training() -> None:
    lora = {"lora": {"r": 128, "alpha": 256}, "trainable": ["projector"]}
    full, adapters = stage(stage1_values(VICUNA_7B, **FULL)), stage(stage1_values(VICUNA_7B, **lora))
    assert adapters.usual.total_bytes < full.usual.total_bytes
    assert part(adapters.usual, "optimizer") < part(full.usual, "optimizer") / 10
    trained = sum(each.num_parameters for each in adapters.modules if each.trains)
    layer = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    assert trained == 128 * 32 * layer + 4096 * 1024 + 4096**2 + 2 * 4096
    assert part(adapters.usual, "trained weights") == 2 * trained
    assert adapters.disk.final_bytes == 2 * (2 * (4096 * 1024 + 4096**2 + 2 * 4096) + 2 * trained)
    dropped = 3 * (6 * 4096 + 11008) + 7 * 2 * 128
    plain = stage(stage1_values(VICUNA_7B)).usual
    more = part(adapters.usual, "one layer again") - part(plain, "one layer again")
    assert more == dropped * 32 * 605


def test_tokens_of_stage_1() -> None:
    tokens = stage(stage1_values()).tokens
    assert (tokens.image, tokens.text, tokens.usual_length, tokens.samples) == (576, 29, 605, 558_128)
    assert tokens.usual == 558_128 * 605
    assert tokens.from_images == 558_128 * 576
    assert tokens.at_most == 558_128 * 2048


def test_text_alone_has_no_image_tokens() -> None:
    sources = [{"annotations": "a.json", "num_samples": 1000}]
    found = stage(stage1_values(data__sources=sources, trainable=["language_model"]))
    assert (found.tokens.image, found.tokens.usual_length) == (0, 29)


def test_samples_follow_steps_where_steps_are_given() -> None:
    values = stage1_values()
    del values["stages"][0]["train"]["num_train_epochs"]
    values["stages"][0]["train"]["max_steps"] = 10
    assert stage(values).tokens.samples == 10 * 256


def test_what_is_not_counted_is_none() -> None:
    found = stage(stage1_values(data__sources=[{"annotations": "absent.json", "images": "i"}]), gpu="h100")
    assert found.tokens.usual is None and found.compute.hours is None and found.disk.num_checkpoints is None


def test_operations_of_stage_1_by_hand() -> None:
    """Forward, again, and the gradients of activations: three times two for each weight and token."""
    found = stage(stage1_values())
    layers = 40 * (4 * 5120**2 + 3 * 5120 * 13824) * 605
    attention = 40 * 5120 * 605**2
    tower = 23 * (12 * 1024**2 * 577 + 2 * 1024 * 577**2)
    around = 576 * 3 * TRAINABLE + 28 * 2 * 163_840_000
    expected = 558_128 * 2 * (3 * (layers + attention) + tower + around)
    assert found.compute.flops == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize(("model", "published_h"), [(VICUNA_13B, 5.5), (VICUNA_7B, 3.5)])
def test_hours_are_near_the_published_ones(model: str, published_h: float) -> None:
    """LLaVA's README, Stage 1 on 8 × A100-80G. Its own figures lie 20 % apart in efficiency."""
    hours = stage(stage1_values(model), gpu="a100-80g").compute.hours
    assert hours == pytest.approx(published_h, rel=0.2)


def test_more_and_faster_gpus_take_less_time() -> None:
    def hours(gpu: str, world_size: int) -> float:
        found = stage(stage1_values(), gpu=gpu, world_size=world_size).compute.hours
        assert found is not None
        return found

    assert hours("a100-80g", 8) == pytest.approx(hours("a100-80g", 4) / 2)
    assert hours("h100", 8) < hours("a100-80g", 8) < hours("a6000", 8)


def test_float32_is_slower_without_tf32() -> None:
    with_tf32 = stage(changed(bf16=False), gpu="a100-80g").compute.hours
    without = stage(changed(bf16=False, tf32=False), gpu="a100-80g").compute.hours
    assert with_tf32 is not None and without is not None
    assert without == pytest.approx(8 * with_tf32)


def test_disk_of_stage_1() -> None:
    disk = stage(changed(save_steps=500, save_total_limit=1)).disk
    assert disk.checkpoint_bytes == TRAINABLE * (4 + 8)
    assert (disk.num_checkpoints, disk.num_kept) == (5, 1)
    assert disk.final_bytes == 2 * 2 * TRAINABLE
    assert disk.peak_bytes == 2 * disk.checkpoint_bytes + disk.final_bytes
    assert stage(changed(save_strategy="no")).disk.num_checkpoints == 0


def test_the_verdict_follows_the_margin() -> None:
    found = stage(stage1_values())
    assert [fit.gpu for fit in found.fits] == list(GPUS)
    for fit in found.fits:
        assert fit.usual_margin_bytes == GPUS[fit.gpu].memory_bytes - found.usual.total_bytes
        assert (fit.verdict == "fits") == (fit.longest_margin_bytes >= 0)
        assert (fit.verdict == "does not fit") == (fit.usual_margin_bytes < 0)
    by_name = {fit.gpu: fit.verdict for fit in found.fits}
    assert by_name["a100-80g"] == "fits" and by_name["rtx4090"] == "does not fit"


def test_a_gpu_without_bf16_is_said_to_have_none() -> None:
    fits = stage(stage1_values(), gpu="v100-32g").fits
    assert fits[0].caution is not None and "fp16: true" in fits[0].caution
    assert stage(stage1_values(), gpu="a100-80g").fits[0].caution is None
