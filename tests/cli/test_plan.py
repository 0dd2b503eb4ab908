from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from llava_recipes.cli.fold import fold_layers
from llava_recipes.cli.main import main
from llava_recipes.cli.plan import plain_lines, show
from llava_recipes.freeze import match_glob
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import plan_recipe

RECIPE = str(Path(__file__).parents[2] / "recipes/pretrain_v15_13b.yaml")


def planned(*overrides: str) -> Plan:
    return plan_recipe(load_recipe(RECIPE, overrides), world_size=8)


def shown(plan: Plan, width: int) -> list[str]:
    out = io.StringIO()
    show(plan, Console(file=out, width=width, force_terminal=True, highlight=False, color_system=None))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def words(lines: list[str]) -> list[str]:
    return " ".join(lines).split()


def test_the_figures_of_stage_1_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", RECIPE, "--world-size", "8"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "trains         projector: 31,467,520 of 13,350,839,296 parameters",
        "samples        558,128, template plain, at most 2,048 tokens each",
        "global batch   256 = 8 × 32 samples × 1 accumulation",
        "steps          2,181, 1 epoch, warm-up 66, checkpoint every 24,000",
        "deepspeed      zero2 (ZeRO stage 2)",
    ):
        assert f"  {line}\n" in printed
    assert "\x1b" not in printed


def test_json_is_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", RECIPE, "--world-size", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    estimate = report.pop("estimate")
    assert Plan.model_validate_json(json.dumps(report)) == planned()
    assert estimate["stages"][0]["usual"]["total_bytes"] > 0


def test_values_can_be_overridden(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", RECIPE, "--world-size", "2", "--json", "--set", "stages.pretrain.train.max_steps=5"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["stages"][0]["train"]["max_steps"] == 5
    assert plan["world_size"] == 2


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_off_on_a_terminal(width: int) -> None:
    plan = planned(
        "stages.pretrain.output_dir=./checkpoints/a-rather-long-folder-name-for-a-run/llava-v1.5-13b-pretrain/third"
    )
    lines = shown(plan, width)
    assert max(map(len, lines)) <= width
    assert all(word in " ".join(lines) for word in words(list(plain_lines(plan))) if len(word) < 40)
    assert "".join(words(lines)) == "".join(words(list(plain_lines(plan))))


@pytest.mark.parametrize("width", [80, 120])
def test_brackets_are_no_markup(width: int) -> None:
    plan = planned("stages.pretrain.output_dir=./out[bold]x")
    assert any("./out[bold]x" in line for line in shown(plan, width))


def test_unknown_sizes_are_said_to_be_unknown() -> None:
    text = "\n".join(plain_lines(planned("model.language_model=some/unknown-model")))
    assert "freeze all, trainable [projector]; not counted" in text
    assert "the config of language model some/unknown-model is not here" in text


def test_layers_are_folded_into_ranges() -> None:
    modules = (
        "projector",
        *(f"language_model.layers.{n}" for n in range(30, 40)),
        "language_model.layers.50",
        "vision_tower.encoder.layers.3.mlp",
        "vision_tower.encoder.layers.4.mlp",
    )
    folded = fold_layers(modules)
    assert folded == (
        "projector",
        "language_model.layers.{30..39}",
        "language_model.layers.50",
        "vision_tower.encoder.layers.{3..4}.mlp",
    )
    assert all(any(match_glob(glob, f"{name}.weight") for glob in folded) for name in modules)


@pytest.mark.parametrize("size", ["0", "-1", "many"])
def test_a_world_size_that_is_none_is_a_usage_error(size: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", RECIPE, "--world-size", size])
    assert caught.value.code == 2


def test_a_recipe_that_does_not_compile_is_told_at_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.yaml"
    text = Path(RECIPE).with_name("demo.yaml").read_text(encoding="utf-8")
    text = text.replace("[projector]", "[projector.5]")
    file.write_text(text, encoding="utf-8")
    line = next(n for n, content in enumerate(text.splitlines(), 1) if "[projector.5]" in content)
    assert main(["plan", str(file)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f'{file}:{line}:17: glob "projector.5" in `trainable` matches no module\n')
    assert "found: projector has 0, 2\n" in printed


def test_planning_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from llava_recipes.cli.main import main\n"
        f"assert main(['plan', {RECIPE!r}, '--world-size', '8']) == 0\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'accelerate', 'numpy', 'PIL', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
