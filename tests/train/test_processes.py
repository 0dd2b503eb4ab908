"""One or two processes, without DeepSpeed, with ZeRO-2, with ZeRO-3: the same losses and projector."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_recipes.data.order import BatchLayout
from tests.processes import run_to_end
from tests.tiny import FIXTURES, read_metrics, stage1_values, write_recipe
from tests.train.cutting import copy_cut
from tests.train.keeping_layout import train_with

MODES = [(1, "zero2"), (1, "zero3"), (2, "none"), (2, "zero2"), (2, "zero3")]


def train(folder: Path, *, processes: int, deepspeed: str, sample_every: int | None = None) -> Path:
    """Train on 4 samples a step: 4 on one process, 2 on each of two, padded alike by equal captions."""
    folder.mkdir()
    values = stage1_values(
        folder / "run",
        num_train_epochs=2,
        per_device_train_batch_size=4 // processes,
        loss_normalization="token",
    )
    values["stages"][0]["deepspeed"] = deepspeed
    if sample_every is not None:
        values["stages"][0].update(sample_every=sample_every, samples={"num": 2, "max_new_tokens": 4})
    run_to_end(write_recipe(values, folder / "recipe.yaml"), "--processes", str(processes))
    return folder / "run"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("reference") / "one", processes=1, deepspeed="none")


@pytest.mark.parametrize(("processes", "deepspeed"), MODES)
def test_engines_agree(processes: int, deepspeed: str, reference: Path, tmp_path: Path) -> None:
    """With the token mean a step's loss does not depend on how its samples are spread over processes.

    Nor on answers in between, which the reference does without.
    """
    run = train(tmp_path / "other", processes=processes, deepspeed=deepspeed, sample_every=5)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in samples] == [5, 5, 10, 10, 12, 12]
    for ours, theirs in zip(read_metrics(run), read_metrics(reference), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["learning_rate"] == theirs["learning_rate"]
    ours_projector = load_file(run / "mm_projector.safetensors")
    start = load_file(reference / "mm_projector.safetensors")
    assert ours_projector.keys() == start.keys()
    for name, tensor in ours_projector.items():
        assert tensor.numel() > 0
        assert (tensor - start[name]).abs().max() <= 1e-5


def test_two_nodes_agree_with_two_processes(reference: Path, tmp_path: Path) -> None:
    """The same command on every node; here both nodes are this machine and share the run folder."""
    values = stage1_values(
        tmp_path / "run", num_train_epochs=2, per_device_train_batch_size=2, loss_normalization="token"
    )
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--processes=1", "--nnodes=2", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test"]
    with ThreadPoolExecutor(2) as nodes:
        printed = list(nodes.map(lambda rank: run_to_end(recipe, *options, f"--node-rank={rank}"), (0, 1)))
    assert sum("step 12/12" in said for said in printed) == 1
    assert (tmp_path / "run" / "DONE").exists()
    for ours, theirs in zip(read_metrics(tmp_path / "run"), read_metrics(reference), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.parametrize("deepspeed", ["zero2", "zero3"])
def test_device_batch_loss_agrees_between_engines(deepspeed: str, tmp_path: Path) -> None:
    """The original's loss, a mean of device batch means, is the same in DDP and in DeepSpeed."""
    runs = {}
    for engine in ("none", deepspeed):
        (tmp_path / engine).mkdir()
        values = stage1_values(
            tmp_path / engine / "run",
            max_steps=4,
            num_train_epochs=None,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
        )
        del values["stages"][0]["train"]["num_train_epochs"]
        values["stages"][0]["deepspeed"] = engine
        run_to_end(write_recipe(values, tmp_path / engine / "recipe.yaml"), "--processes", "2")
        runs[engine] = tmp_path / engine / "run"
    ours, theirs = (read_metrics(runs[engine]) for engine in (deepspeed, "none"))
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-5)
    ours_bin, theirs_bin = (
        torch.load(runs[engine] / "mm_projector.bin", weights_only=True) for engine in (deepspeed, "none")
    )
    for name in theirs_bin:
        assert (ours_bin[name] - theirs_bin[name]).abs().max() <= 1e-5


def test_projector_and_head_train_together_in_bf16_under_zero3(tmp_path: Path) -> None:
    """One is built in float32 and the other read in bfloat16; ZeRO-3 takes what trains in one type."""
    losses = {}
    for engine in ("zero2", "zero3"):
        (tmp_path / engine).mkdir()
        values = stage1_values(tmp_path / engine / "run", max_steps=3, bf16=True)
        del values["stages"][0]["train"]["num_train_epochs"]
        values["stages"][0] |= {"trainable": ["projector", "lm_head"], "deepspeed": engine}
        run_to_end(write_recipe(values, tmp_path / engine / "recipe.yaml"))
        losses[engine] = [line["loss"] for line in read_metrics(tmp_path / engine / "run")]
    assert losses["zero3"] == pytest.approx(losses["zero2"], rel=2e-3)


def test_a_tower_trains_with_several_processes(tmp_path: Path) -> None:
    """Layers behind the selected one get no gradient, which must not stop the processes."""
    runs = {}
    for processes in (1, 2):
        values = stage1_values(
            tmp_path / f"run{processes}",
            num_train_epochs=1,
            per_device_train_batch_size=4 // processes,
            loss_normalization="token",
            gradient_checkpointing=True,
        )
        stage = values["stages"][0]
        del stage["trainable"]
        stage |= {"freeze": "none", "param_groups": [{"modules": ["vision_tower"], "learning_rate": 2e-4}]}
        recipe = write_recipe(values, tmp_path / f"recipe{processes}.yaml")
        run_to_end(recipe, "--processes", str(processes))
        runs[processes] = tmp_path / f"run{processes}"
    ours, theirs = (read_metrics(runs[processes]) for processes in (2, 1))
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-5)
    trained = [load_file(runs[processes] / "trained.safetensors") for processes in (2, 1)]
    for name, tensor in trained[1].items():
        assert (trained[0][name] - tensor).abs().max() <= 1e-4, name


LAYOUT = BatchLayout(world_size=1, per_device_train_batch_size=2, gradient_accumulation_steps=4)


def write_uneven_recipe(folder: Path, *, deepspeed: str) -> Path:
    """22 samples, 8 in a step: the last step of each of two epochs has 3 device batches."""
    folder.mkdir()
    values = stage1_values(
        folder / "run",
        num_train_epochs=2,
        per_device_train_batch_size=2,
        global_batch_size=8,
        save_strategy="steps",
        save_steps=1,
        extra={"include_num_input_tokens_seen": "non_padding"},
    )
    stage = values["stages"][0]
    stage["data"]["sources"][0]["annotations"] = str(FIXTURES / "stage1_22.json")
    stage["data"]["order"] = "original"
    stage["deepspeed"] = deepspeed
    return write_recipe(values, folder / "recipe.yaml")


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uneven") / "one"
    run_to_end(write_uneven_recipe(folder, deepspeed="none"), "--processes", "1")
    return folder / "run"


@pytest.mark.parametrize("deepspeed", ["none", "zero2", "zero3"])
def test_two_processes_compute_the_device_batches_of_one(
    deepspeed: str, uneven: Path, tmp_path: Path
) -> None:
    """In the last step of an epoch one of them has a pass that counts nothing, also not in the figures."""
    train_with(LAYOUT, write_uneven_recipe(tmp_path / "two", deepspeed=deepspeed), processes=2)
    check_same(tmp_path / "two" / "run", uneven)


def test_a_run_goes_on_on_four_processes_in_smaller_passes(uneven: Path, tmp_path: Path) -> None:
    """Cut before the last step of an epoch; its order is still that of a run that one process started."""
    recipe = copy_cut(uneven.parent, tmp_path, step=2)
    smaller = "stages.pretrain.train.per_device_train_batch_size=1"
    said = run_to_end(recipe, "--processes", "4", "--resume", "--set", smaller)
    assert "the batches that it was started with: 2 per device × 4 accumulated × 1 process" in said
    check_same(tmp_path / "run", uneven)


def check_same(run: Path, uneven: Path) -> None:
    assert len(read_metrics(uneven)) == 6
    for ours, theirs in zip(read_metrics(run), read_metrics(uneven), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert (ours["epoch"], ours["learning_rate"]) == (theirs["epoch"], theirs["learning_rate"])
        per_sample = [line["tokens_per_s"] / line["samples_per_s"] for line in (ours, theirs)]
        assert per_sample[0] == pytest.approx(per_sample[1])
    tokens = [json.loads((each / "trainer_state.json").read_text()) for each in (run, uneven)]
    assert tokens[0]["num_input_tokens_seen"] == tokens[1]["num_input_tokens_seen"] > 0
    weights, wanted = (load_file(each / "mm_projector.safetensors") for each in (run, uneven))
    for name, tensor in wanted.items():
        assert (weights[name] - tensor).abs().max() <= 1e-5
