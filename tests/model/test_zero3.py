"""ZeRO-3 with two processes: the same model and the same training as one process without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue
from safetensors.torch import load_file

from llava_recipes.model.assemble import assemble
from llava_recipes.model.lora import freeze_model
from llava_recipes.model.weight_names import canonical_parameters
from llava_recipes.plan.types import ModelPlan
from tests.model.plans import GOLDEN, INLINE_CLIP, plan_of
from tests.model.zero3_worker import LEARNING_RATE, NUM_STEPS, batch_of
from tests.processes import ROOT, python, run_process

PHI: dict[str, JsonValue] = {
    "model_type": "phi",
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
PLANS = {
    "files": plan_of(init_from=GOLDEN / "03_splice" / "mm_projector.safetensors", start_end=True),
    "inline": plan_of(language_config=PHI, tower_config=INLINE_CLIP, seed=4, projector="linear"),
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of two processes under ZeRO-3."""
    folder = tmp_path_factory.mktemp("zero3")
    plans = {name: plan.model_dump(mode="json") for name, plan in PLANS.items()}
    (folder / "plans.json").write_text(json.dumps(plans))
    torchrun = [*python("torch.distributed.run"), "--standalone", "--nproc_per_node=2"]
    worker = ["-m", "tests.model.zero3_worker", str(folder / "plans.json"), str(folder)]
    done = run_process([*torchrun, *worker], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.mark.parametrize("name", PLANS)
def test_the_partitioned_model_holds_the_same_weights(name: str, run_folder: Path) -> None:
    gathered = load_file(run_folder / name / "assembled.safetensors")
    expected = canonical_parameters(assemble(PLANS[name], dtype=torch.float32).model)
    assert gathered.keys() == expected.keys()
    for parameter_name, parameter in expected.items():
        assert torch.equal(gathered[parameter_name], parameter), parameter_name


@pytest.mark.parametrize("name", PLANS)
def test_training_gives_the_losses_and_the_projector_of_one_process(name: str, run_folder: Path) -> None:
    losses, projector = _train_alone(PLANS[name])
    found = [json.loads((run_folder / name / f"losses-{rank}.json").read_text()) for rank in range(2)]
    for rank in range(2):
        assert found[rank] == pytest.approx(losses[rank], rel=1e-5)
    written = load_file(run_folder / name / "mm_projector.safetensors")
    assert len(written) == len(projector)
    for parameter_name, parameter in projector.items():
        ours = written["model.mm_projector." + parameter_name.removeprefix("projector.")]
        torch.testing.assert_close(ours, parameter, rtol=0, atol=1e-5)


def _train_alone(plan: ModelPlan) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    assembled = assemble(plan, dtype=torch.float32)
    model = assembled.model
    freeze_model(model, freeze="all", trainable=("projector",))
    trained = {name: value for name, value in canonical_parameters(model).items() if value.requires_grad}
    before = {name: value.detach().clone() for name, value in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=LEARNING_RATE)
    losses: list[list[float]] = [[], []]
    for step in range(NUM_STEPS):
        for rank in range(2):
            batch = batch_of(plan, num_image_tokens=assembled.num_image_tokens, rank=rank, step=step)
            loss = model(**batch).loss
            (loss / 2).backward()
            losses[rank].append(loss.item())
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(before[name], value) for name, value in trained.items())
    return losses, {name: value.detach() for name, value in trained.items()}


def test_rotary_frequencies_are_as_exact_as_without_it(tmp_path: Path) -> None:
    """In bf16 they would be off by 0.2 %: at position 2,000, the angle of a slow pair by half a turn."""
    argv = [*python("tests.model.zero3_frequencies"), str(tmp_path / "frequencies.safetensors")]
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    done = run_process(argv, cwd=ROOT, env={**environment, "MASTER_PORT": "0"})
    assert done.returncode == 0, done.stderr[-6000:]
    found = load_file(tmp_path / "frequencies.safetensors")
    expected = dict(assemble(PLANS["files"], dtype=torch.bfloat16).model.named_buffers())
    assert len(found) == 2
    for name, frequencies in found.items():
        assert frequencies.dtype == torch.float32
        assert torch.equal(frequencies, expected[name])
