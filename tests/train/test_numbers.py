"""No number that is not finite reaches a weight, and a stage that cannot have learned says so."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llava_recipes.errors import RecipeError
from llava_recipes.train.checkpoints import list_checkpoints
from llava_recipes.train.finite import MAX_SKIPPED, StepCheck, Verdict, zero_gradient_norm
from llava_recipes.train.learning import FIRST_STEPS, MANY_SKIPPED, LearningCheck, LossBand, roots_without
from llava_recipes.train.metrics import read_metrics
from llava_recipes.train.trainer import StageTrainer
from tests.faults.numbers import STEPS, Poison, attempt
from tests.processes import run_recipe, run_to_end
from tests.tiny import FIXTURES, stage1_values, write_recipe
from tests.train.in_process import train_all

NAN, INF = math.nan, math.inf
GOOD = Verdict(bad_loss=False, bad_gradient=False, bad_weight=False, has_gradient=True, has_images=True)
IDLE = Verdict(bad_loss=False, bad_gradient=False, bad_weight=False, has_gradient=False, has_images=True)


def step_check(weight: nn.Parameter) -> StepCheck:
    trained = {"projector.0.weight": weight}
    device = torch.device("cpu")
    blamed = ("stages", 0, "train", "learning_rate"), "lower it"
    return StepCheck(trained, device=device, blame=lambda _: blamed, sample_name="sample {}".format)


def decide(
    check: StepCheck, weight: nn.Parameter, *losses: float, scale: float | None = None, step: int = 3
) -> Verdict:
    for number, loss in enumerate(losses):
        samples = torch.tensor([2 * number, 2 * number + 1])
        check.note_pass(torch.tensor(loss), samples=samples, has_images=number == 0)
    norm = torch.tensor(0.0) if weight.grad is None else weight.grad.norm()
    return check.decide(
        step=step,
        gradient_norm=norm,
        all_weights={"projector.0.weight": weight},
        scale=scale,
    )


def refusal(check: StepCheck, weight: nn.Parameter, *losses: float, scale: float | None = None) -> Any:
    with pytest.raises(RecipeError) as caught:
        decide(check, weight, *losses, scale=scale)
    (problem,) = caught.value.problems
    return problem


def parameter(*values: float, gradient: float) -> nn.Parameter:
    weight = nn.Parameter(torch.tensor(values))
    weight.grad = torch.full_like(weight, gradient)
    return weight


def test_the_pass_with_a_bad_loss_is_named() -> None:
    weight = parameter(1.0, 2.0, gradient=0.5)
    problem = refusal(step_check(weight), weight, 1.0, NAN, 2.0)
    assert problem.message == "the loss is nan at step 3; training stopped before this update"
    assert problem.code == "loss-or-gradient-not-finite"
    assert problem.found == "pass 2 of 3: sample 2; sample 3"
    assert problem.hint == "lower it"
    assert refusal(step_check(weight), weight, -INF).found == "sample 0; sample 1"


def test_a_gradient_is_named_with_all_samples() -> None:
    weight = parameter(1.0, gradient=INF)
    problem = refusal(step_check(weight), weight, 1.0, 2.0)
    assert problem.message.startswith("the gradient of projector.0.weight is inf at step 3;")
    assert problem.found.splitlines()[1].strip() == "pass 2 of 2: sample 2; sample 3"


def test_a_weight_is_named() -> None:
    weight = parameter(1.0, NAN, gradient=0.5)
    problem = refusal(step_check(weight), weight, 1.0)
    assert problem.code == "weights-not-finite"
    assert problem.message.startswith("projector.0.weight has NaN or infinite values before the update of")
    assert "projector.0.weight contains nan" in refusal(step_check(weight), weight, NAN).found


def test_huge_weights_are_numbers() -> None:
    """The sum of their squares is not."""
    weight = parameter(1e30, -1e30, gradient=0.5)
    assert decide(step_check(weight), weight, 1.0) == GOOD


def test_a_norm_of_fp16_has_room() -> None:
    """Gradients times a loss scale of 65,536: their norm is beyond fp16, each of them is not."""
    weight = nn.Parameter(torch.zeros(100, dtype=torch.float16))
    weight.grad = torch.full_like(weight, 60_000.0)
    assert zero_gradient_norm(None, [weight], torch.device("cpu")).isfinite()
    weight.grad[7] = NAN
    assert zero_gradient_norm(None, [weight], torch.device("cpu")).isnan()


def test_a_sound_step_forgets_its_passes() -> None:
    weight = parameter(1.0, gradient=0.0)
    check = step_check(weight)
    assert decide(check, weight, 1.0, 2.0) == IDLE
    weight.grad = torch.ones(1)
    assert decide(check, weight, 1.0) == GOOD
    assert refusal(check, weight, NAN).found == "sample 0; sample 1"


def test_while_fp16_searches_its_scale_gradients_may_be_infinite() -> None:
    weight = parameter(1.0, gradient=INF)
    check = step_check(weight)
    assert decide(check, weight, 1.0, scale=2.0**16).bad_gradient
    assert refusal(check, weight, NAN, scale=2.0**16).message.startswith("the loss is nan")
    problem = refusal(check, weight, 1.0, scale=1.0)
    assert problem.message.startswith("the gradients are not finite at step 3, whatever the loss scale is;")
    assert problem.found.startswith("3 updates in a row were skipped; the loss scale is 1")
    fixed = step_check(weight)
    for _ in range(MAX_SKIPPED - 1):
        decide(fixed, weight, 1.0, scale=128.0)
    refusal(fixed, weight, 1.0, scale=128.0)


def learning(**given: Any) -> tuple[LearningCheck, list[str]]:
    warnings: list[str] = []
    usual: dict[str, Any] = {"first_step": 0, "num_steps": 100, "count_skipped": lambda: 0}
    check = LearningCheck(stage=("stages", 0), warn=warnings.append, **{**usual, **given})
    return check, warnings


def note(check: LearningCheck, verdict: Verdict, *, times: int = 1, rate: float = 1e-3) -> None:
    for _ in range(times):
        check.note_step(verdict, [rate, 0.0], lambda: ("vision_tower",))


def test_no_gradient_in_the_first_steps_ends_the_run() -> None:
    check, _ = learning()
    note(check, IDLE, times=FIRST_STEPS - 1)
    with pytest.raises(RecipeError, match="the gradient of all that trains was exactly 0"):
        note(check, IDLE)


def test_steps_without_images_say_nothing_yet() -> None:
    """A projector has no gradient from text, wherever the first images are."""
    check, _ = learning()
    note(check, Verdict(False, False, False, has_gradient=False, has_images=False), times=50)
    note(check, GOOD, times=FIRST_STEPS)
    check.check_end()


@pytest.mark.parametrize(
    ("verdict", "rate", "what"),
    [
        (IDLE, 1e-3, "exactly 0"),
        (GOOD, 0.0, "the learning rate was 0 in every step"),
        (Verdict(False, True, False, True, True), 1e-3, "every update was skipped"),
    ],
)
def test_a_whole_run_without_learning_is_an_error(verdict: Verdict, rate: float, what: str) -> None:
    check, _ = learning()
    note(check, verdict, times=2, rate=rate)
    with pytest.raises(RecipeError, match=what) as caught:
        check.check_end()
    assert caught.value.problems[0].code == "nothing-was-learned"
    resumed, _ = learning(first_step=5)
    note(resumed, verdict, times=2, rate=rate)
    resumed.check_end()
    # A checkpoint says what was seen before it.
    resumed, warnings = learning(first_step=2, num_steps=3)
    resumed.go_on(json.loads(json.dumps(check.to_json() | {"warned": ["as before"]})))
    note(resumed, verdict, rate=rate)
    assert warnings == ["as before", *[each for each in warnings[1:] if "vision_tower" in each]]
    with pytest.raises(RecipeError, match=what):
        resumed.check_end()


def test_skipped_images_end_the_run() -> None:
    text_only = Verdict(False, False, False, has_gradient=True, has_images=False)
    check, _ = learning(count_skipped=lambda: MANY_SKIPPED)
    with pytest.raises(RecipeError, match="every sample with an image was skipped"):
        note(check, text_only, times=10)
    few, _ = learning(count_skipped=lambda: 1)
    note(few, text_only, times=10)
    with pytest.raises(RecipeError, match="every sample with an image was skipped"):
        few.check_end()
    by_intent, _ = learning()
    note(by_intent, text_only, times=10)
    by_intent.check_end()


def test_a_root_without_gradient_is_a_warning() -> None:
    check, warnings = learning()
    note(check, GOOD, times=2 * FIRST_STEPS)
    assert warnings == ["no gradient reaches vision_tower: it does not learn"]
    twice, warnings = learning(num_steps=2 * FIRST_STEPS)
    note(twice, GOOD, times=2 * FIRST_STEPS)
    assert len(warnings) == 1
    short, warnings = learning(num_steps=2)
    note(short, GOOD, times=2)
    assert warnings == []
    trained = ("projector.0.weight", "projector.2.weight", "lm_head.weight")
    assert roots_without(["projector.0.weight", "lm_head.weight"], trained) == ("lm_head",)


def test_the_band_is_compared_with_the_last_losses() -> None:
    assert LossBand(None, [9.0]).warning() is None
    assert LossBand((1.0, 2.0), []).warning() is None
    band = LossBand((1.0, 2.0), [9.0] * 5)
    for _ in range(10):
        band.append(1.0)
    assert band.warning() is None
    band.append(0.5)
    assert (
        band.warning() == "the mean of the last 10 logged losses is 0.95, below 1 to 2, which `expect` names"
    )


POINTS = [
    Poison("plain", "after", NAN, step=STEPS, number=1, rank=0, clips=True, precision="fp32"),
    Poison("ddp", "loss", INF, step=2, number=1, rank=1, clips=True, precision="bf16"),
    Poison("zero2", "gradient", NAN, step=2, number=1, rank=1, clips=True, precision="fp32"),
    Poison("zero3", "weight", NAN, step=2, number=2, rank=0, clips=True, precision="bf16"),
]


@pytest.mark.parametrize("poison", POINTS, ids=lambda poison: f"{poison.mode}-{poison.kind}")
def test_no_update_follows_a_bad_number(poison: Poison, tmp_path: Path) -> None:
    assert attempt(poison, tmp_path / "ground") == ""


def test_a_rate_beyond_float32_is_the_users(tmp_path: Path) -> None:
    values = stage1_values(tmp_path / "run", learning_rate=1e38)
    with pytest.raises(RecipeError, match="the learning rate is too large for float32") as caught:
        train_all(values)
    assert caught.value.problems[0].path == ("stages", 0, "train", "learning_rate")


GROUPS = [{"modules": ["lm_head"]}, {"modules": ["projector"]}]
BLAMED: dict[str, tuple[dict[str, Any], tuple[str | int, ...], str]] = {
    "nothing but the rate": ({"rate": 1e37}, ("train", "learning_rate"), "lower the learning rate, or"),
    "a group's rate": (
        {"group": {"learning_rate": 1e37}},
        ("param_groups", 1, "learning_rate"),
        "is 1e+37, or",
    ),
    "a group's rate beyond float32": (
        {"group": {"learning_rate": 1e38}},
        ("param_groups", 1, "learning_rate"),
        "usual rates",
    ),
    "a group's decay": (
        {"group": {"weight_decay": 1e30}},
        ("param_groups", 1, "weight_decay"),
        "it is above 1",
    ),
    "the decay": ({"weight_decay": 1e30}, ("train", "weight_decay"), "it is above 1"),
}


@pytest.mark.parametrize("name", BLAMED)
def test_the_key_that_is_to_blame_is_named(name: str, tmp_path: Path) -> None:
    given, path, advice = BLAMED[name]
    values = stage1_values(tmp_path / "run", warmup_ratio=0.0)
    stage = values["stages"][0]
    stage["train"] |= {
        "learning_rate": given.get("rate", 1e-3),
        "weight_decay": given.get("weight_decay", 0.0),
    }
    if "group" in given:
        stage["trainable"] = ["projector", "lm_head"]
        stage["param_groups"] = [GROUPS[0] | {"learning_rate": 1e-4}, GROUPS[1] | given["group"]]
    with pytest.raises(RecipeError) as caught:
        train_all(values)
    (problem,) = caught.value.problems
    assert problem.path == ("stages", 0, *path) and advice in str(problem.hint)


def short(run: Path, **train: Any) -> dict[str, Any]:
    values = stage1_values(run, save_strategy="steps", save_steps=1, warmup_ratio=0.0, **train)
    del values["stages"][0]["train"]["num_train_epochs"]
    return values


def test_weights_beyond_use_are_not_saved(tmp_path: Path) -> None:
    """A lower rate could not help a run that went on from them."""
    with pytest.raises(RecipeError, match="values that no loss can be computed with after step 1") as caught:
        train_all(short(tmp_path / "run", max_steps=1, learning_rate=1e30))
    assert str(caught.value.problems[0].hint).endswith("warm-up, and run again")
    assert list_checkpoints(tmp_path / "run") == []
    values = short(tmp_path / "unsaved", max_steps=1, learning_rate=1e30)
    values["stages"][0]["train"]["save_strategy"] = "no"
    with pytest.raises(RecipeError, match="no loss can be computed with after step 1"):
        train_all(values)


def test_a_checkpoint_that_leads_to_bad_numbers_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = StageTrainer.compute_loss

    def poisoned(self: StageTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = compute(self, *args, **kwargs)
        return loss * NAN if self.state.global_step == 2 else loss

    monkeypatch.setattr(StageTrainer, "compute_loss", poisoned)
    with pytest.raises(RecipeError, match="is nan at step 3") as caught:
        train_all(short(tmp_path / "run", max_steps=3))
    hint = str(caught.value.problems[0].hint)
    assert "; remove checkpoint-2, whose weights lead to this, then `--resume --accept train.learning" in hint
    assert "continues from checkpoint-1 with another value" in hint


def test_weights_that_stop_every_gradient_are_found(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(FIXTURES / "tiny_vicuna", model)
    (file,) = model.glob("*.safetensors")
    tensors = load_file(file)
    tensors["lm_head.weight"].zero_()
    save_file(tensors, file, metadata={"format": "pt"})
    values = stage1_values(tmp_path / "run", logging_steps=1)
    values["model"]["language_model"] = str(model)
    values["stages"][0]["train"]["num_train_epochs"] = 1
    with pytest.raises(RecipeError, match="the gradient of all that trains was exactly 0 in every step"):
        train_all(values)


def test_a_run_that_learned_nothing_starts_again_as_it_is_advised(tmp_path: Path) -> None:
    values = stage1_values(tmp_path / "run", max_steps=1, save_strategy="steps", save_steps=1)
    del values["stages"][0]["train"]["num_train_epochs"]
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    failed = run_recipe(recipe)
    assert failed.returncode == 1 and "or write `warmup_ratio: 0`" in failed.stderr
    assert "checkpoint-1 is now set-aside-checkpoint-1" in failed.stdout
    said = run_to_end(recipe, "--resume", "--set", "stages.pretrain.train.warmup_ratio=0")
    assert "starts at step 0" in said and (tmp_path / "run" / "DONE").is_file()


def test_a_loss_outside_its_band_warns_and_is_in_done(tmp_path: Path) -> None:
    values = stage1_values(tmp_path / "run", max_steps=2)
    del values["stages"][0]["train"]["num_train_epochs"]
    values["stages"][0]["expect"] = {"loss": [0.0, 0.5]}
    printed = run_to_end(write_recipe(values, tmp_path / "recipe.yaml"))
    mean = sum(line.loss or 0 for line in read_metrics(tmp_path / "run" / "metrics.jsonl")) / 2
    warning = f"the mean of the last 2 logged losses is {mean:.4g}, above 0 to 0.5, which `expect` names"
    assert f"warning: {warning}" in printed.splitlines()
    assert json.loads((tmp_path / "run" / "DONE").read_text())["warnings"] == [warning]
