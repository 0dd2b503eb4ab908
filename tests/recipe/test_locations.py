"""Secrets are refused in a recipe, and hidden in what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llava_recipes.cli.main import main
from llava_recipes.runner.run_folder import describe_environment

URL = "https://user:hunter2@host/data"
PLACES: dict[str, dict[str, object]] = {
    "variable": {"vars": {"data": URL}, "annotations": "${data}/a.json"},
    "path": {"annotations": URL},
    "folder": {"output_dir": URL},
    "model": {"language_model": URL},
    "environment": {"env": ["DATA"], "annotations": "${DATA}/a.json"},
    "environment of a proxy": {"env": ["HTTP_PROXY"], "annotations": "${HTTP_PROXY}/a.json"},
    "known token": {"annotations": "hf_hunter2" + "a1B" * 10},
    "name": {"name": URL},
    "unknown key": {"nonsense": {"password": "hunter2"}},
    "tracker": {"report_to": URL},
    "key": {"extra": {"hub_token": "hunter2"}},
    "value that is cut": {"template": URL.replace("hunter2", "hunter2" * 40)},
}


def _recipe(changes: dict[str, object], file: Path) -> Path:
    given = dict(changes)
    annotations = given.pop("annotations", "data/a.json")
    stage = {
        "name": "pretrain",
        "trainable": ["projector"],
        "data": {
            "template": given.pop("template", "plain"),
            "sources": [{"annotations": annotations, "num_samples": 10}],
        },
        "train": {
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
        }
        | {key: given.pop(key) for key in ("extra", "report_to") if key in given},
        "output_dir": given.pop("output_dir", "runs/x"),
    }
    model = {
        "language_model": given.pop("language_model", "lmsys/vicuna-7b-v1.5"),
        "vision_tower": "openai/clip-vit-large-patch14-336",
    }
    file.write_text(yaml.safe_dump({"version": 1, "name": "x", "model": model, "stages": [stage], **given}))
    return file


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["text", "json", "github", "sarif"])
def test_a_secret_is_refused_and_not_repeated(
    place: str,
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATA", URL)
    monkeypatch.setenv("HTTP_PROXY", "user:hunter2@proxy:3128")
    file = _recipe(PLACES[place], tmp_path / "recipe.yaml")
    assert main(["validate", "--format", form, str(file)]) == 1
    said = "".join(capsys.readouterr())
    assert said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    "override",
    [
        f"stages.0.output_dir={URL}",
        "vars.db_pass=hunter2",
        f"vars.data={URL}",
        f"nonsense={URL}",
        "nonsense.hub_token=hunter2",
        "stages.0.train.extra={hub_token: hunter2}",
    ],
)
def test_an_override_is_not_repeated(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _recipe({}, tmp_path / "recipe.yaml")
    for form in ("text", "json", "sarif"):
        assert main(["validate", "--format", form, str(file), "--set", override]) == 1
        said = "".join(capsys.readouterr())
        assert said
        assert "hunter2" not in said


def test_a_variable_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _recipe(PLACES["variable"], tmp_path / "recipe.yaml")
    assert main(["validate", str(file)]) == 1
    said = capsys.readouterr().err
    assert said.count("contains a secret") == 1
    assert "https://***@host/data" in said


def test_the_command_line_is_stored_without_secrets() -> None:
    stored = describe_environment(["llava-recipe", "run", "r.yaml", "--set", f"vars.data={URL}"])
    assert stored["command"] == ["llava-recipe", "run", "r.yaml", "--set", "vars.data=https://***@host/data"]
