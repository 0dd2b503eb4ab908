"""Loading: a good recipe keeps its values and places; a bad one reports everything in order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.recipe.language import homes, keys_at, wanted_at
from llava_recipes.recipe.load import LoadedRecipe, load_recipe, load_source
from llava_recipes.recipe.renames import distance, nearest
from llava_recipes.recipe.rules import check_rules
from llava_recipes.recipe.schema import Recipe

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted(file for file in (ROOT / "recipes").rglob("*.yaml") if file.parent.name != "base")
GOOD = """\
version: 1
name: example
vars: {data: /data, rate: 1e-3}
model:
  language_model: lmsys/vicuna-7b-v1.5
  vision_tower: {source: openai/clip-vit-large-patch14-336}
stages:
  - name: pretrain
    trainable: [projector]
    data: {template: plain, sources: [{annotations: "${data}/a.json", images: "${data}/images"}]}
    train: {num_train_epochs: 1, learning_rate: "${rate}"}
    output_dir: runs/pretrain
"""


def _load(text: str = GOOD, *overrides: str) -> LoadedRecipe:
    return load_source(text, "f.yaml", overrides)


def _messages(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        _load(text, *overrides)
    return [problem.message for problem in caught.value.problems]


def test_values_are_resolved_and_validation_changes_none() -> None:
    loaded = _load()
    assert loaded.recipe.stages[0].train.learning_rate == 1e-3
    assert loaded.recipe.stages[0].data.sources[0].images == "/data/images"
    stages = loaded.recipe.model_dump(mode="json", exclude_unset=True)["stages"]
    assert stages == loaded.values["stages"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.file = "other"  # type: ignore[misc]


def test_problems_of_later_steps_are_shown_in_the_file() -> None:
    error = _load().fail(
        Problem("second", code="test", path=("stages", 0, "train", "learning_rate")),
        Problem("first", code="test", path=("model", "language_model"), on_key=True),
        Problem("nowhere", code="test"),
    )
    assert [problem.message for problem in error.problems] == ["first", "second", "nowhere"]
    marks = [problem.mark for problem in error.problems]
    assert marks[0] is not None and (marks[0].line, marks[0].column) == (5, 3)
    assert marks[1] is not None and marks[1].line == 11


def test_an_absent_key_is_located_at_its_parent() -> None:
    mark = _load().locate(("stages", 0, "train", "seed"))
    assert mark is not None
    assert mark.line == 11


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_shipped_recipes_load(file: Path) -> None:
    assert load_recipe(str(file)).recipe.stages


def test_there_are_shipped_recipes() -> None:
    assert RECIPES


def test_everything_is_reported_in_order() -> None:
    text = GOOD.replace("plain", "plan").replace("trainable", "trainabel").replace("version: 1", "version: 3")
    messages = _messages(text.replace("name: pretrain", "name: pretrain\n    freeze: none\n    freeze: all"))
    assert len(messages) == 4
    assert [message.split("`")[1] for message in messages] == ["version", "freeze", "trainabel", "template"]


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("trainable:", "trainabel:", "did you mean `trainable`?"),
        ("output_dir:", "outputDir:", "write `output_dir`"),
        ("    train:", "    learning_rate: 1\n    train:", "it belongs in `stages[].train`"),
        (
            "    train:",
            "    leaning_rate: 1\n    train:",
            "`learning_rate`, which belongs in `stages[].train`",
        ),
        ("version: 1", "version: 1\nvision_tower: x", "it belongs in `model`"),
        ("version: 1", "version: 1\nzebra: x", "keys: version, name, extends, env, vars, model, stages"),
        ("version: 1", "version: 1\nmm_vision_select_layer: -2", "`select_layer:`"),
        ("num_train_epochs", "torch_compile: true, num_train_epochs", "`extra: {torch_compile: true}`"),
    ],
)
def test_an_unknown_key_gets_the_key_that_was_meant(old: str, new: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        _load(GOOD.replace(old, new))
    assert any(hint in str(problem.hint) for problem in caught.value.problems)


@pytest.mark.parametrize(
    "override",
    [
        "stages.0.init_from=base",
        "stages.0.init_from=./runs/other",
        "stages.0.freeze=[vision_tower, 'language_model.layers.{0..3}']",
        "stages.0.trainable=['**.layers.*', '*.layers.0', 'l*']",
        "stages.0.deepspeed=zero3",
        "stages.0.deepspeed=./ds.json",
        "stages.0.deepspeed={train_batch_size: auto}",
        "stages.0.data.sources.0.images=null",
        "stages.0.train.report_to=[wandb, tensorboard]",
        "stages.0.train.extra={dataloader_pin_memory: false, include_num_input_tokens_seen: true}",
        "model.projector={type: mlp3x_gelu, init_from: a.safetensors, seed: 1}",
        "model.language_model={source: a/b, revision: main}",
        "model.language_model={config: {model_type: llama}, tokenizer: ./t, seed: 0}",
        "model.vision_tower={config: {model_type: clip_vision_model}, image_processor: {}, seed: 0}",
        "stages.0.train.warmup_ratio=0",
        "stages.0.train.num_train_epochs=0.5",
        "stages.0.train.learning_rate=1",
    ],
)
def test_what_is_allowed(override: str) -> None:
    assert _load(GOOD, override)


@pytest.mark.parametrize("root", [None, 3, "text", [], {}, {"stages": 3}, {"stages": [None, {"train": []}]}])
def test_rules_pass_over_what_is_not_there(root: int | str | None) -> None:
    """Values of the wrong kind belong to the schema."""
    assert all("wrong" not in problem.message for problem in check_rules(root))


def test_the_schema_answers_for_every_key() -> None:
    assert keys_at(()) == tuple(Recipe.model_fields)
    assert "max_steps" in keys_at(("stages", 4, "train"))
    assert keys_at(("stages", 0, "deepspeed")) == ()
    assert wanted_at(("model", "language_model")) == "a string or a mapping"
    assert wanted_at(("stages", 0, "train", "max_steps")) == "a whole number"
    assert homes()["template"] == ("stages[].data",)


@pytest.mark.parametrize(
    ("left", "right", "slips"),
    [("", "", 0), ("a", "", 1), ("freeze", "freze", 1), ("zero2", "zreo2", 1), ("kitten", "sitting", 3)],
)
def test_slips_are_counted(left: str, right: str, slips: int) -> None:
    assert distance(left, right) == distance(right, left) == slips


def test_far_words_are_not_suggested() -> None:
    assert nearest("zebra", ("freeze", "name", "data")) is None
    assert nearest("x", ("y",)) is None
    assert nearest("learning-rate", ("learning_rate", "max_steps")) == "learning_rate"


def test_a_slip_is_reported_once_and_nothing_that_follows_from_it() -> None:
    """No "missing" and no "nothing trains" beside the misspelled key itself."""
    text = GOOD.replace("trainable", "trainabel").replace("num_train_epochs", "num_train_epoch")
    text = text.replace("{source", "{sorce").replace("output_dir", "output_dirr")
    assert [message.split("`")[1] for message in _messages(text)] == [
        "sorce",
        "trainabel",
        "num_train_epoch",
        "output_dirr",
    ]


def test_a_value_repeated_by_an_alias_is_reported_once() -> None:
    text = (
        GOOD.replace("{num", "&t {num").replace('"${rate}"', "-1")
        + "  - {name: b, output_dir: b, train: *t}\n"
    )
    messages = _messages(text)
    assert messages.count("`learning_rate` must be above 0") == 1


def test_thousands_of_faults_are_reported_by_a_few() -> None:
    messages = _messages(
        GOOD.replace("model:", "model:\n" + "".join(f"  k{i}: 1\n" for i in range(4_000)), 1)
    )
    assert len(messages) == 201
    assert messages[-1] == "3,800 more problems are not shown"


@pytest.mark.parametrize(
    ("written", "name"),
    [("0.001", "runs/0.001"), ("1e-3", "runs/0.001"), ("2e-05", "runs/2e-5"), ("3", "runs/3")],
)
def test_a_number_in_a_folders_name_keeps_its_spelling(written: str, name: str) -> None:
    """A finished run is found again by its folder, whichever way messages spell numbers."""
    text = GOOD.replace("rate: 1e-3", f"rate: {written}").replace("runs/pretrain", '"runs/${rate}"')
    assert _load(text, "stages.0.train.learning_rate=1e-3").recipe.stages[0].output_dir == name
