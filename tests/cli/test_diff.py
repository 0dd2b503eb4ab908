"""`llava-recipe diff`: what differs in meaning is reported, other spellings are not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llava_recipes.cli.main import main
from llava_recipes.plan.compare import compare
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_recipe, load_source
from llava_recipes.recipe.writer import write_resolved
from llava_recipes.runner.facts import plan_recipe
from tests.plan.test_deepspeed import ZERO2

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted(file for file in (ROOT / "recipes").rglob("*.yaml") if file.parent.name != "base")
SMALL, LARGE, DEMO = "recipes/pretrain_v15_7b.yaml", "recipes/pretrain_v15_13b.yaml", "recipes/demo.yaml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def plan(file: str, *overrides: str, world_size: int = 8) -> Plan:
    return plan_recipe(load_recipe(file, overrides), world_size=world_size)


def paths(a: Plan, b: Plan) -> list[str]:
    return [found.path for found in compare(a, b)]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_and_its_resolved_text_mean_the_same(file: Path, tmp_path: Path) -> None:
    (tmp_path / "whole.yaml").write_text(write_resolved(load_recipe(str(file)).recipe), encoding="utf-8")
    assert main(["diff", str(file), str(tmp_path / "whole.yaml"), "--world-size", "8"]) == 0


def test_two_sizes_differ_in_the_language_model_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", SMALL, LARGE, "--world-size", "8"]) == 1
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.split() == [SMALL, LARGE]
    reported = {row.split()[0]: row.split()[1:] for row in rows}
    assert reported["model.language_model.source"] == ["lmsys/vicuna-7b-v1.5", "lmsys/vicuna-13b-v1.5"]
    assert reported["stages.pretrain.num_trainable_parameters"] == ["20,979,712", "31,467,520"]
    assert not [path for path in reported if ".train." in path or "vision_tower" in path or ".data." in path]


def test_two_names_of_one_template_are_no_difference() -> None:
    for name, other in (("v1", "vicuna_v1"), ("v0", "default"), ("v0", "llava_v0"), ("plain", "v0_plain")):
        a, b = (plan(SMALL, f"stages.pretrain.data.template={text}") for text in (name, other))
        assert paths(a, b) == []
    a, b = (plan(SMALL, f"stages.pretrain.data.template={text}") for text in ("v1", "llava_v1"))
    assert paths(a, b) == ["stages.pretrain.data.template"]


def test_a_chat_template_takes_the_place_of_a_template() -> None:
    other = plan(SMALL, "stages.pretrain.data.chat_template=tokenizer")
    assert (other.stages[0].data.template, other.stages[0].data.chat_template) == (None, "tokenizer")
    assert paths(plan(SMALL), other) == [
        f"stages.pretrain.data.{key}" for key in ("template", "chat_template")
    ]


def test_a_terminal_shows_sections_in_its_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "90")
    assert main(["diff", SMALL, LARGE, "--world-size", "8"]) == 1
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 90
    assert "model.language_model" in lines
    (row,) = (line.split() for line in lines if line.strip().startswith("num_trainable_parameters"))
    assert row == ["num_trainable_parameters", "20,979,712", "31,467,520"]


def test_json_holds_every_difference(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", SMALL, DEMO, "--world-size", "8", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["equal"], report["a"], report["b"], report["world_size"]) == (False, SMALL, DEMO, 8)
    reported = {entry["path"]: entry for entry in report["differences"]}
    assert len(reported) == len(report["differences"])
    assert reported["stages.warm-up"] == {"path": "stages.warm-up", "b": "there"}
    assert reported["stages.pretrain.data.max_length"] == {
        "path": "stages.pretrain.data.max_length",
        "a": 2048,
        "b": 64,
    }
    assert main(["diff", SMALL, SMALL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"] == []


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["diff", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "The exit code is 0 if both mean the same, 1 if they differ" in said


@pytest.mark.parametrize(
    "overrides",
    [
        ["name=other"],
        ["stages.pretrain.name=alignment"],
        ["stages.pretrain.freeze=[vision_tower, language_model, lm_head]", "stages.pretrain.trainable=[]"],
        ["stages.pretrain.trainable=['projector.*']"],
        ["stages.pretrain.train.global_batch_size=256"],
        ["stages.pretrain.train.warmup_steps=66"],
        ["stages.pretrain.train.adam_beta1=0.9"],
        [f"stages.pretrain.deepspeed={json.dumps(ZERO2)}"],
        ["model.language_model={source: lmsys/vicuna-13b-v1.5, tokenizer: lmsys/vicuna-13b-v1.5}"],
    ],
    ids=" ".join,
)
def test_another_spelling_is_no_difference(overrides: list[str]) -> None:
    assert paths(plan(LARGE), plan(LARGE, *overrides)) == []


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("stages.pretrain.train.learning_rate=2e-3", "stages.pretrain.train.learning_rate"),
        ("stages.pretrain.train.warmup_steps=67", "stages.pretrain.train.warmup_steps"),
        ("stages.pretrain.train.seed=1", "stages.pretrain.train.seed"),
        ("stages.pretrain.trainable=[projector.0]", "stages.pretrain.trainable_modules"),
        ("stages.pretrain.data.shuffle=false", "stages.pretrain.data.shuffle"),
        ("stages.pretrain.output_dir=elsewhere", "stages.pretrain.output_dir"),
        ("stages.pretrain.deepspeed=none", "stages.pretrain.deepspeed"),
        ("model.vision_tower.select_layer=-1", "model.vision_tower.select_layer"),
        ("model.image_tokens.patch=true", "model.image_tokens.patch"),
    ],
)
def test_a_change_is_reported_at_its_path(override: str, path: str) -> None:
    assert path in paths(plan(LARGE), plan(LARGE, override))


def test_the_other_way_round_it_is_the_same_with_sides_changed() -> None:
    there, back = compare(plan(LARGE), plan(DEMO)), compare(plan(DEMO), plan(LARGE))
    assert sorted((d.path, d.in_a, d.in_b, str(d.a), str(d.b)) for d in there) == sorted(
        (d.path, d.in_b, d.in_a, str(d.b), str(d.a)) for d in back
    )


def _stages(*names: str) -> Plan:
    text = "version: 1\nname: x\nmodel: {language_model: a/b, vision_tower: {source: c/d}}\nstages:\n"
    for name in names:
        text += f"  - {{name: {name}, init_from: base, trainable: [projector], output_dir: out/{name},"
        text += " data: {template: plain, sources: [{annotations: none.json}]},"
        text += f" train: {{max_steps: {len(name)}, learning_rate: 1}}}}\n"
    return plan_recipe(load_source(text, "f.yaml"), world_size=1)


def test_stages_are_compared_by_name() -> None:
    assert paths(_stages("a", "bb"), _stages("a", "bb")) == []
    assert paths(_stages("a", "bb"), _stages("bb", "a")) == ["stages"]
    assert paths(_stages("a", "bb"), _stages("a")) == ["stages.bb"]
    assert paths(_stages("bb"), _stages("a", "bb")) == ["stages.a"]
    (renamed,) = compare(_stages("a", "b"), _stages("a", "c"))
    assert (renamed.path, renamed.a, renamed.b) == ("stages.b|c.output_dir", "out/b", "out/c")


def test_a_recipe_that_is_wrong_is_reported_at_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", LARGE, "tests/errors/key_misspelt.yaml"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("tests/errors/key_misspelt.yaml:")


def test_values_of_one_and_true_are_not_the_same() -> None:
    one: Any = plan(LARGE).model_dump(mode="json")
    other = json.loads(json.dumps(one))
    one["stages"][0]["train"]["training_arguments"]["logging_steps"] = 1
    other["stages"][0]["train"]["training_arguments"]["logging_steps"] = True
    found = compare(*(Plan.model_validate_json(json.dumps(values)) for values in (one, other)))
    assert [difference.path for difference in found] == [
        "stages.pretrain.train.training_arguments.logging_steps"
    ]
