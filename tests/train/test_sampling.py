"""Answers during training: training does not notice, and they are the model's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_recipes.data.records import open_records
from llava_recipes.errors import RecipeError
from llava_recipes.model.generate import Decoding, Prompt
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.templates import Turn
from llava_recipes.train.evaluation import Sampled, SamplesLog
from llava_recipes.train.stage import train_stage
from llava_recipes.train.stopping import SAMPLING, Stop
from llava_recipes.use.opened import open_to_ask
from tests.images import read_image
from tests.tiny import FIXTURES, read_metrics, write_recipe
from tests.train.in_process import like_a_worker
from tests.use.finished import conversations, finish, run_values

IMAGES = FIXTURES / "images"
LORA = {"r": 4, "alpha": 8, "dropout": 0.3}


def read_samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text("utf-8").splitlines()]


def train(folder: Path, **stage: Any) -> Path:
    """Three steps with adapters and dropout: whatever draws a number in between changes them."""
    folder.mkdir()
    values = run_values(folder / "run", data=conversations(), lora=LORA, **stage)
    values["stages"][0]["train"].update(max_steps=3, gradient_checkpointing=True)
    finish(values, folder / "recipe.yaml")
    return folder / "run"


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    without = train(tmp_path / "without")
    samples = {"num": 3, "max_new_tokens": 5}
    sampled = train(tmp_path / "sampled", sample_every=2, samples=samples)
    for ours, theirs in zip(read_metrics(sampled), read_metrics(without), strict=True):
        assert (ours["loss"], ours["grad_norm"]) == (theirs["loss"], theirs["grad_norm"])
    files = sorted(path.name for path in without.glob("*.safetensors"))
    assert files
    for name in files:
        weights, same = load_file(sampled / name), load_file(without / name)
        assert weights.keys() == same.keys()
        assert all(torch.equal(weights[key], same[key]) for key in weights)

    lines = read_samples(sampled)
    assert [line["step"] for line in lines] == [2, 2, 2, 3, 3, 3]
    assert not (without / "samples.jsonl").exists()
    records = json.loads((FIXTURES / "stage2_clean.json").read_text("utf-8"))
    shown = [record for record in records if "image" in record][:3]
    for line, record in zip(lines[3:], shown, strict=True):
        question, reference = record["conversations"][:2]
        assert line["image"] == record["image"]
        assert (line["prompt"], line["reference"]) == (question["value"], reference["value"])
    # After the last step the model says what the finished run says.
    answerer = open_to_ask(str(sampled), precision="fp32", device="cpu", base=None).answerer
    for line in lines[3:]:
        image = answerer.prepare(read_image(str(IMAGES), line["image"]))
        prompt = Prompt(answerer.prompt_ids([Turn("human", line["prompt"])]), tuple(answerer.look([image])))
        assert answerer.answer([prompt], Decoding(5)) == [line["answer"]]


def test_images_of_ones_own_in_bf16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = run_values(
        tmp_path / "run",
        data=conversations(),
        sample_every=1,
        samples={"images": [str(IMAGES / "rgb_0.jpg")], "prompt": "What is it?", "max_new_tokens": 3},
    )
    values["stages"][0]["train"]["bf16"] = True
    finish(values, tmp_path / "recipe.yaml")
    lines = read_samples(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["image"] == str(IMAGES / "rgb_0.jpg") and line["reference"] is None
        assert line["prompt"] == "<image>\nWhat is it?"
    assert f"step 1/2  {IMAGES / 'rgb_0.jpg'}: {lines[0]['answer']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"images": ["none.jpg"], "prompt": "What?"}, "this image cannot be used"),
        ({"max_new_tokens": 2040}, "the prompt leaves too little room for the answer"),
    ],
)
def test_what_cannot_be_asked_ends_the_run_before_it_begins(
    tmp_path: Path, samples: dict[str, Any], message: str
) -> None:
    values = run_values(tmp_path / "run", data=conversations(), sample_every=1, samples=samples)
    with pytest.raises(RecipeError) as caught:
        finish(values, tmp_path / "recipe.yaml")
    assert [problem.message for problem in caught.value.problems] == [message]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


def test_data_without_an_image(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "hello yourself"}]
    (tmp_path / "text.json").write_text(json.dumps([{"id": "a", "conversations": turns}] * 4))
    data = {**conversations(), "sources": [{"annotations": str(tmp_path / "text.json")}]}
    values = run_values(tmp_path / "run", data=data, sample_every=1, trainable=["language_model.layers.1"])
    with pytest.raises(RecipeError, match="no record has an image to ask about"):
        finish(values, tmp_path / "recipe.yaml")


def test_held_out_records_are_asked(tmp_path: Path) -> None:
    data = {**conversations(), "validation": {"split": 0.2}}
    values = run_values(tmp_path / "run", data=data, sample_every=2, samples={"num": 2, "max_new_tokens": 2})
    finish(values, tmp_path / "recipe.yaml")
    plan = Plan.model_validate_json((tmp_path / "run" / "plan.json").read_text())
    held_out = plan.stages[0].data.for_validation()
    assert held_out is not None
    records = [record for record in open_records(held_out.sources) if record.images]
    asked = [(line["image"], line["prompt"]) for line in read_samples(tmp_path / "run")]
    assert asked == [(record.images[0], record.turns[0].text) for record in records[:2]]


def test_a_resumed_run_writes_no_answer_twice(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    before = [Sampled(step, "a.jpg", "What?", "é", None) for step in (2, 4, 6)]
    log = SamplesLog(file, resumed_step=0)
    for line in before:
        log.append(line)
    file.write_text(file.read_text("utf-8") + '{"step": 8, "ima', encoding="utf-8")
    SamplesLog(file, resumed_step=5).append(Sampled(6, "a.jpg", "What?", "new", None))
    lines = read_samples(tmp_path)
    assert [(line["step"], line["answer"]) for line in lines] == [(2, "é"), (4, "é"), (6, "new")]


def test_a_stop_cuts_the_answers_and_a_resumed_run_asks_again(tmp_path: Path) -> None:
    run, stop = tmp_path / "run", Stop()
    values = run_values(run, data=conversations(), sample_every=1, samples={"num": 1, "max_new_tokens": 9})
    stage = plan_recipe(load_recipe(str(write_recipe(values, tmp_path / "recipe.yaml"))), world_size=1)
    run.mkdir()
    num_tokens = 0

    def tick() -> None:
        nonlocal num_tokens
        num_tokens += stop.doing == SAMPLING
        # In the middle of the second answer.
        if num_tokens == 12:
            stop.ask("SIGTERM")

    stop.tick = tick  # type: ignore[method-assign]
    with like_a_worker():
        cut = train_stage(stage, 0, output_dir=run, resume_from=None, stop=stop)
        assert (cut.num_steps, cut.stopped_early, num_tokens) == (2, True, 12)
        assert [line["step"] for line in read_samples(run)] == [1]
        again = train_stage(stage, 0, output_dir=run, resume_from=run / "checkpoint-2")
    assert (again.num_steps, again.stopped_early) == (2, False)
    assert [line["step"] for line in read_samples(run)] == [1, 2]
