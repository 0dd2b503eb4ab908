"""The validation loss: exact, without a trace in the training, and there again after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_recipes.data.collate import Collator
from llava_recipes.data.dataset import StageDataset
from llava_recipes.model.assemble import assemble
from llava_recipes.model.lora import inject_lora
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_recipe
from llava_recipes.recipe.schema import Lora
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.train.checkpoints import PROGRESS, list_checkpoints
from llava_recipes.train.evaluation import ValidationSet
from llava_recipes.train.metrics import METRICS, SAMPLES, MetricsLog
from tests.data.parquet_files import records, with_structs, write_parquet
from tests.processes import run_to_end
from tests.tiny import FIXTURES, GOLDEN, read_metrics, stage1_values, write_recipe
from tests.train.cutting import cut_after, reseal

OWN = {
    "annotations": str(FIXTURES / "stage1.json"),
    "images": str(FIXTURES / "images"),
    "sampling_strategy": "end:3",
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    values = stage1_values(tmp_path_factory.mktemp("plan") / "run")
    values["stages"][0]["data"] |= {"template": "v1", "validation": {"split": 7}}
    file = write_recipe(values, tmp_path_factory.mktemp("recipe") / "recipe.yaml")
    return plan_recipe(load_recipe(str(file)), world_size=1)


def test_the_loss_is_that_of_all_tokens_without_dropout(plan: Plan) -> None:
    assembled = assemble(plan.model, dtype=torch.float32)
    model = assembled.model
    inject_lora(model, Lora(r=4, dropout=0.5, modules=("language_model",)), seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(2))
    data = plan.stages[0].data.for_validation()
    assert data is not None
    dataset = StageDataset(data, assembled.tokenizer, assembled.image_processor, False)
    collator = Collator(assembled.image_layout(data), data.max_length, assembled.tokenizer.pad_token_id)
    model.eval()
    total, num_tokens = 0.0, 0
    with torch.no_grad():
        for index in range(len(dataset)):
            output = model(**collator([dataset[index]]))
            total += output.loss.item() * int(output.num_label_tokens)
            num_tokens += int(output.num_label_tokens)
    model.train()
    for batch_size, num_workers in ((1, 0), (3, 2), (8, 0)):
        before = torch.get_rng_state()
        validation = ValidationSet(dataset, collator, batch_size, num_workers)
        measured = validation.measure(model, lambda batch: batch, torch.device("cpu"))
        assert measured.loss == pytest.approx(total / num_tokens, rel=1e-6)
        assert (measured.num_samples, measured.num_tokens) == (7, num_tokens)
        assert torch.equal(torch.get_rng_state(), before)
        assert model.training and all(module.training for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        noisy = model(**collator([dataset[0]])).loss
        assert noisy != model(**collator([dataset[0]])).loss, "dropout is at work in training"


def test_the_original_run_from_parquet_with_validation_beside_it(tmp_path: Path) -> None:
    """Losses, order and projector stay the original's; loaders are processes of their own."""
    file = write_parquet([with_structs(record) for record in records()], tmp_path / "data.parquet")
    values = stage1_values(tmp_path / "run", eval_strategy="epoch", dataloader_num_workers=2)
    data: dict[str, Any] = values["stages"][0]["data"]
    data |= {"sources": [{"annotations": str(file)}], "template": "plain"}
    data["validation"] = {"sources": [OWN]}
    run_to_end(write_recipe(values, tmp_path / "recipe.yaml"))
    lines = read_metrics(tmp_path / "run")
    record = json.loads((GOLDEN / "06_stage1/base/record.json").read_text())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses == pytest.approx([step["loss"] for step in record["steps"]], rel=1e-5)
    golden = torch.load(GOLDEN / "06_stage1/base/mm_projector.bin", weights_only=True)
    ours = torch.load(tmp_path / "run" / "mm_projector.bin", weights_only=True)
    assert all((ours[name] - tensor).abs().max() <= 1e-5 for name, tensor in golden.items())
    evaluations = [(line["step"], line["eval_samples"]) for line in lines if "eval_loss" in line]
    assert evaluations == [(6, 3), (12, 3), (18, 3)]


def test_a_resumed_run_measures_what_the_uncut_run_did(tmp_path: Path) -> None:
    values = stage1_values(
        tmp_path / "run",
        save_strategy="steps",
        save_steps=4,
        eval_strategy="steps",
        eval_steps=4,
        num_train_epochs=2,
    )
    values["stages"][0]["data"]["validation"] = {"split": 4}
    values["stages"][0] |= {"sample_every": 4, "samples": {"num": 1, "max_new_tokens": 2}}
    recipe, run = write_recipe(values, tmp_path / "recipe.yaml"), tmp_path / "run"
    run_to_end(recipe)
    whole = read_metrics(run)
    assert [checkpoint.step for checkpoint in list_checkpoints(run)] == [10, 8, 4]
    samples = (run / SAMPLES).read_text()
    cut_after(run, 8)
    # As a run leaves it that was asked to stop: its sender does not wait for an evaluation, nor for answers.
    checkpoint = run / "checkpoint-8"
    progress = json.loads((checkpoint / PROGRESS).read_text()) | {"measured": None}
    (checkpoint / PROGRESS).write_text(json.dumps(progress))
    reseal(checkpoint)
    (run / METRICS).write_text("".join(json.dumps(each) + "\n" for each in whole[:9]))
    (run / SAMPLES).write_text("".join(samples.splitlines(keepends=True)[:1]))
    run_to_end(recipe, "--resume")
    assert (run / SAMPLES).read_text() == samples
    assert samples.count("\n") == 3
    again = read_metrics(run)
    assert [(line["step"], "eval_loss" in line) for line in again] == [
        (line["step"], "eval_loss" in line) for line in whole
    ]
    assert [line["step"] for line in again if "eval_loss" in line] == [4, 8, 10]
    for name in ("loss", "eval_loss"):
        assert [line[name] for line in again if name in line] == pytest.approx(
            [line[name] for line in whole if name in line], rel=1e-6
        )


def test_a_log_goes_on_behind_an_evaluation(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file, resumed_step=0)
    for step in (1, 2, 3):
        log.append({"step": step, "loss": 1.0, "seconds": step})
        log.append({"step": step, "eval_loss": 1.0, "seconds": step + 0.5})
    log = MetricsLog(file, resumed_step=2)
    log.append({"step": 2, "eval_loss": 1.0, "seconds": 0.5})
    log.append({"step": 3, "loss": 1.0, "seconds": 1.0})
    lines = read_metrics(tmp_path)
    assert [(line["step"], line["seconds"]) for line in lines] == [
        (1, 1),
        (1, 1.5),
        (2, 2),
        (2, 2.5),
        (3, 3.5),
    ]
