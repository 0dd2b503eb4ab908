from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console

from llava_recipes.cli.main import main
from llava_recipes.cli.plan import plain_lines, show_sections
from llava_recipes.cli.plan_overview import headline_of, sections_of
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.globs import fold_layers, match_glob
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import plan_recipe
from tests.estimate.test_gallery_fits import ONLY_AT_THE_USUAL_LENGTH

RECIPE = str(Path(__file__).parents[2] / "recipes/pretrain_v15_13b.yaml")


def planned(*overrides: str) -> Plan:
    return plan_recipe(load_recipe(RECIPE, overrides), world_size=8)


def shown(plan: Plan, width: int) -> list[str]:
    out = io.StringIO()
    screen = Console(file=out, width=width, force_terminal=True, highlight=False, color_system=None)
    show_sections(headline_of(plan), sections_of(plan), screen)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def plain(plan: Plan) -> list[str]:
    return list(plain_lines(headline_of(plan), sections_of(plan)))


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
    assert all(word in " ".join(lines) for word in words(plain(plan)) if len(word) < 40)
    assert "".join(words(lines)) == "".join(words(plain(plan)))


@pytest.mark.parametrize("width", [80, 120])
def test_brackets_are_no_markup(width: int) -> None:
    plan = planned("stages.pretrain.output_dir=./out[bold]x")
    assert any("./out[bold]x" in line for line in shown(plan, width))


def test_unknown_sizes_are_said_to_be_unknown() -> None:
    text = "\n".join(plain(planned("model.language_model=some/unknown-model")))
    assert "freeze all, trainable [projector]; not counted" in text
    assert "the config of language model some/unknown-model does not exist here" in text


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


def test_a_recipe_that_does_not_compile_is_reported_at_its_line(
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


def lines_of(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    assert main(["plan", RECIPE, "--world-size", "8", *options]) == 0
    return capsys.readouterr().out.splitlines()


def test_memory_hours_and_disk_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(lines_of(capsys, "--gpu", "a100-80g"))
    assert "not yet measured on a GPU" in text
    assert (
        "  projector       31,467,520, train at 1e-3, no weight decay, bfloat16 and float32 masters" in text
    )
    assert (
        "  tokens   337.7 million usually, 321.5 million of them of images; at most 1,143.0 million" in text
    )
    assert "  frozen weights        24.81 GiB     24.81 GiB  13,319,371,776 × 2 bytes" in text
    assert "  A100 80 GB         fits, " in text
    assert " on 8 × A100 80 GB, " in text and "45% of the rate is assumed" in text
    assert "126 MB of trained weights at the end" in text


def test_without_a_gpu_each_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(capsys)
    verdicts = {
        line.split()[0]: line for line in lines if line.startswith(("  fits  ", "  usual l", "  does"))
    }
    assert "a100-80g" in verdicts["fits"] and "a6000" in verdicts["usual"] and "rtx4090" in verdicts["does"]
    assert any(line.startswith("  time ") and "--gpu" in line for line in lines)


def test_assumptions_can_be_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(lines_of(capsys, "--text-tokens", "100", "--label-tokens", "90"))
    assert "676 tokens = 576 of an image + 100 of text, 90 of them learned" in text


def test_a_misspelled_gpu_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", RECIPE, "--gpu", "a100-8og"])
    assert caught.value.code == 2
    assert "unknown GPU 'a100-8og'; did you mean a100-80g?" in capsys.readouterr().err


def test_fit_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", RECIPE, "--fit"]) == 2
    assert "--fit needs --gpu" in capsys.readouterr().err


def test_what_fit_proposes_fits(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(capsys, "--gpu", "l40s", "--fit")
    assert "stage pretrain, to fit on L40S 48 GB" in lines
    overrides = [line.split("'")[1] for line in lines if "--set '" in line]
    assert overrides[0] == "stages.pretrain.train.per_device_train_batch_size=8"
    options = [word for override in overrides for word in ("--set", override)]
    text = "\n".join(lines_of(capsys, "--gpu", "l40s", "--fit", *options))
    assert "  L40S 48 GB         fits, " in text
    assert "nothing to change" in text
    assert "  global batch   256 = 8 × 8 samples × 4 accumulation" in text


def test_the_proposed_lines_are_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(capsys, "--gpu", "rtx4090", "--fit")
    start = next(number for number, line in enumerate(lines) if "  write  " in line)
    width = lines[start].index("stages:")
    written = [line[width:] for line in lines[start:]]
    end = next(number for number, line in enumerate(written) if line.startswith("--set"))
    file = tmp_path / "changed.yaml"
    changes = "version: 1\nname: changed\n" + "\n".join(written[:end]).replace("stages:", "stages:", 1)
    file.write_text(f"extends: {RECIPE}\n{changes}\n", encoding="utf-8")
    assert main(["plan", str(file), "--world-size", "8", "--gpu", "rtx4090"]) == 0
    assert "  RTX 4090 24 GB     fits, " in capsys.readouterr().out


def test_the_config_of_trainer_and_deepspeed_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(capsys, "--show-config")
    assert "stage pretrain, TrainingArguments" in lines
    assert "stage pretrain, DeepSpeed (zero2)" in lines
    assert any("reduce_bucket_size: 26214400" in line for line in lines)
    assert not any('"auto"' in line for line in lines)


def test_json_fits_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads((Path(__file__).parents[2] / "schemas/plan.schema.json").read_text(encoding="utf-8"))
    assert main(["plan", RECIPE, "--world-size", "8", "--gpu", "h100", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    Draft202012Validator(schema).validate(report)
    assert report["estimate"]["stages"][0]["fits"][0]["gpu"] == "h100"
    del report["estimate"]
    Draft202012Validator(schema).validate(report)


def test_an_unknown_model_has_no_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(
        lines_of(capsys, "--gpu", "h100", "--fit", "--set", "model.language_model=some/unknown-model")
    )
    assert "a config isn't available, so nothing can be counted" in text


RECIPES = sorted(file for file in Path(RECIPE).parent.glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_shipped_recipe_has_an_estimate(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(file), "--world-size", "8", "--gpu", "a100-80g", "--fit", "--show-config"]) == 0
    text = capsys.readouterr().out
    assert "A100 80 GB " in text
    assert ("nothing to change" in text) == (file.stem not in ONLY_AT_THE_USUAL_LENGTH)
    assert all(len(line) < 420 for line in text.splitlines() if "tokenizer" not in line)


def test_adapters_are_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(
        capsys,
        "--set",
        "stages.pretrain.lora={r: 8, modules: ['language_model.layers.*.mlp']}",
        *("--text-tokens", "40"),
    )
    (row,) = [line for line in lines if "(lora, r 8)" in line]
    assert "in language_model.layers.{0..39}.mlp.gate_proj.lora_*, " in row
    assert any(line.startswith("  language_model  12,852,024,320, frozen") for line in lines)


def test_where_nothing_fits_more_gpus_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--set", "stages.pretrain.deepspeed=none", "--set", "stages.pretrain.train.bf16=false"]
    text = "\n".join(lines_of(capsys, "--gpu", "t4", "--fit", *options))
    assert "use more or larger GPUs, or train in half precision" in text


def test_a_huge_batch_is_fitted_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    override = f"stages.pretrain.train.global_batch_size={256 * 720_720}"
    lines = lines_of(capsys, "--gpu", "l40s", "--fit", "--set", override)
    assert any("samples per device" in line for line in lines)
