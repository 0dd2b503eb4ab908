"""`llava-recipe validate`: exit codes, several files, overrides, and the formats for machines."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llava_recipes.cli.main import main
from llava_recipes.cli.validate import FileReport, github_report, sarif_report
from llava_recipes.errors import Mark, Problem

ROOT = Path(__file__).parent.parent.parent
GALLERY = sorted((ROOT / "tests" / "errors").glob("*.yaml"))
PLACE = re.compile(
    r"^(?P<file>[^:\n]+):(?P<line>\d+):(?P<column>\d+): (?P<warning>warning: )?(?P<message>.*)$", re.M
)

# The parts of SARIF 2.1.0 that a report uses, closed; what is required and allowed is the standard's.
TEXT = {
    "type": "object",
    "required": ["text"],
    "properties": {"text": {"type": "string", "minLength": 1}},
    "additionalProperties": False,
}
POSITIVE = {"type": "integer", "minimum": 1}
SARIF: dict[str, Any] = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "additionalProperties": False,
                "properties": {
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "additionalProperties": False,
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name"],
                                "additionalProperties": False,
                                "properties": {
                                    "name": {"type": "string"},
                                    "semanticVersion": {"type": "string"},
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {
                                            "type": "object",
                                            "required": ["id"],
                                            "additionalProperties": False,
                                            "properties": {
                                                "id": {"type": "string"},
                                                "shortDescription": TEXT,
                                            },
                                        },
                                    },
                                },
                            }
                        },
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["message", "ruleId", "level"],
                            "additionalProperties": False,
                            "properties": {
                                "message": TEXT,
                                "ruleId": {"type": "string"},
                                "ruleIndex": {"type": "integer", "minimum": 0},
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "locations": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "additionalProperties": False,
                                        "properties": {
                                            "physicalLocation": {
                                                "type": "object",
                                                "required": ["artifactLocation"],
                                                "additionalProperties": False,
                                                "properties": {
                                                    "artifactLocation": {
                                                        "type": "object",
                                                        "required": ["uri"],
                                                        "additionalProperties": False,
                                                        "properties": {
                                                            "uri": {
                                                                "type": "string",
                                                                "pattern": r"^[^\s\\]+$",
                                                            }
                                                        },
                                                    },
                                                    "region": {
                                                        "type": "object",
                                                        "required": ["startLine"],
                                                        "additionalProperties": False,
                                                        "properties": {
                                                            "startLine": POSITIVE,
                                                            "startColumn": POSITIVE,
                                                            "endColumn": POSITIVE,
                                                            "snippet": TEXT,
                                                        },
                                                    },
                                                },
                                            }
                                        },
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
GOOD = """\
version: 1
name: example
vars: {rate: 1e-3}
model:
  language_model: lmsys/vicuna-7b-v1.5
  vision_tower: {source: openai/clip-vit-large-patch14-336}
stages:
  - name: pretrain.v1
    trainable: [projector]
    data: {template: plain, sources: [{annotations: data/a.json, images: data/images}]}
    train: {num_train_epochs: 1, learning_rate: "${rate}"}
    output_dir: runs/pretrain
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD, encoding="utf-8")
    return file


def test_good_and_bad_files_are_distinguished(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = good.with_name("bad.yaml")
    bad.write_text(GOOD.replace("trainable", "trainabel"), encoding="utf-8")
    assert main(["validate", str(good), str(bad), str(good.parent / "none.yaml")]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"ok  {good}\n"
    assert f"{bad}:9:5: unknown key `trainabel`" in printed.err
    assert f"{good.parent / 'none.yaml'}: no such file" in printed.err


def test_a_glob_stands_for_its_files(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(good.parent / "*.yaml")]) == 0
    assert capsys.readouterr().out == f"ok  {good}\n"
    assert main(["validate", str(good.parent / "*.yml")]) == 1


def test_a_folder_is_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path)]) == 1
    assert "this is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override",
    [
        "stages.0.train.max_steps=5",
        "stages.pretrain.v1.train.max_steps=5",
        "stages.0.data.sources.0.images=/elsewhere",
        "vars.rate=2e-3",
        "stages.0.train.learning_rate=2e-3",
        "model.projector.type=linear",
        "stages.0.deepspeed={zero_optimization: {stage: 2}, train_micro_batch_size_per_gpu: auto}",
        "stages.0.trainable=[projector, 'language_model.layers.{0..1}']",
    ],
)
def test_an_override_that_fits(good: Path, override: str) -> None:
    assert main(["validate", str(good), "--set", override]) == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.train.max_steps=many", "`max_steps` needs a whole number, not a string"),
        ("stages.0.train.max_step=5", "has no key `max_step`"),
        ("stages.pretrain.v2.train.max_steps=5", "`stages` has no entry `pretrain`"),
        ("stages.7.name=x", "`stages` has no entry `7`"),
        ("name.first=x", "`name` is a string and has no key `first`"),
        ("model.language_model.source=x", "`model.language_model` is a string"),
        ("stages.0.train.seed.x=1", "`stages[0].train.seed` takes a whole number"),
        ("stages..name=x", "`stages` has no entry ``"),
        ("max_steps", "`--set` needs `path=value`"),
        ("=5", "`--set` needs `path=value`"),
        ("stages.0.train.max_steps=[", "bad YAML"),
        ("stages.0.train.max_steps=.nan", "infinity and NaN"),
        ("vars.unread=1", "the variable `unread` is never used"),
        ("stages.0.output_dir=${nowhere}", "unknown variable `${nowhere}`"),
    ],
)
def test_an_override_that_does_not_fit(
    good: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message points at the command line."""
    assert main(["validate", str(good), "--set", override]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"--set {override}: ")
    assert message in printed


def test_an_override_that_is_no_text(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are not UTF-8, as Python takes them from the shell."""
    assert main(["validate", str(good), "--set", "name=\udcff"]) == 1
    assert "`--set` must be UTF-8" in capsys.readouterr().err


def test_a_secret_is_not_printed(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(good), "--set", "stages.0.train.extra.hub_token=hf_abcdefgh"]) == 1
    assert "hf_abcdefgh" not in capsys.readouterr().err


def test_a_missing_deepspeed_file_is_reported(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data may come later; the DeepSpeed file is part of the recipe."""
    assert main(["validate", str(good), "--set", "stages.0.deepspeed=./none/zero2.json"]) == 1
    assert "--set stages.0.deepspeed=./none/zero2.json" in capsys.readouterr().err


def test_what_the_plan_finds_points_into_the_recipe(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good.write_text(GOOD.replace("[projector]", '["language_model.layers.99"]'), encoding="utf-8")
    assert main(["validate", str(good)]) == 1
    assert f"{good}:9:17: " in capsys.readouterr().err


def test_it_needs_a_file() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["validate"])
    assert stopped.value.code == 2


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["validate", *arguments])
    printed = capsys.readouterr()
    assert printed.err == ""
    return code, printed.out


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The gallery of bad recipes, and what each prints."""
    monkeypatch.chdir(ROOT)
    return [file.relative_to(ROOT).as_posix() for file in GALLERY]


def test_json_says_what_the_text_says(gallery: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out = _run(capsys, *gallery, "--format", "json")
    report = json.loads(out)
    assert code == 1
    assert [file["file"] for file in report["files"]] == gallery
    problems = [problem for file in report["files"] for problem in file["problems"]]
    severities = [problem["severity"] for problem in problems]
    assert report["num_errors"] == severities.count("error") > 100
    assert report["num_warnings"] == severities.count("warning") > 10
    for file in report["files"]:
        assert file["is_valid"] == all(problem["severity"] == "warning" for problem in file["problems"])
        text = (ROOT / file["file"]).with_suffix(".txt").read_text(encoding="utf-8")
        assert [
            (
                found["file"],
                int(found["line"]),
                int(found["column"]),
                bool(found["warning"]),
                found["message"],
            )
            for found in PLACE.finditer(text)
        ] == [
            (
                *(problem["file"], problem["line"], problem["column"]),
                *(problem["severity"] == "warning", problem["message"]),
            )
            for problem in file["problems"]
            if problem["line"] is not None
        ]


def test_sarif_is_sarif(gallery: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out = _run(capsys, *gallery, "--format", "sarif")
    log = json.loads(out)
    assert code == 1
    Draft202012Validator.check_schema(SARIF)
    Draft202012Validator(SARIF).validate(log)
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(set(rules)) == len(rules) > 50
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        (location,) = result["locations"]
        region = location["physicalLocation"].get("region")
        if region and "snippet" in region:
            line = (ROOT / location["physicalLocation"]["artifactLocation"]["uri"]).read_text(
                encoding="utf-8"
            )
            text = line.splitlines()[region["startLine"] - 1]
            assert text[region["startColumn"] - 1 : region["endColumn"] - 1] == region["snippet"]["text"]


def test_github_annotations_are_one_line_each(gallery: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, out = _run(capsys, *gallery, "--format", "github")
    _, as_json = _run(capsys, *gallery, "--format", "json")
    report = json.loads(as_json)
    lines = out.splitlines()
    assert len(lines) == report["num_errors"] + report["num_warnings"]
    annotation = re.compile(
        r"::(error|warning) file=[^,:]+(,line=\d+,col=\d+,endColumn=\d+)?,title=[a-z0-9-]+::[^\n]+"
    )
    assert all(annotation.fullmatch(line) for line in lines)


def test_nothing_to_report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert _run(capsys, "recipes/demo.yaml", "--format", "github") == (0, "")
    code, out = _run(capsys, "recipes/demo.yaml", "--format", "sarif")
    assert code == 0 and json.loads(out)["runs"][0]["results"] == []
    code, out = _run(capsys, "recipes/demo.yaml", "--format", "json")
    assert code == 0 and json.loads(out)["files"] == [
        {"file": "recipes/demo.yaml", "is_valid": True, "problems": []}
    ]


def test_strict_makes_errors_of_warnings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    file = "tests/errors/warning_save_steps.yaml"
    assert _run(capsys, file, "--format", "github")[0] == 0
    code, out = _run(capsys, file, "--format", "github", "--strict")
    assert code == 1 and out.startswith("::error file=")
    assert json.loads(_run(capsys, file, "--format", "json", "--strict")[1])["num_errors"] == 1


def test_what_the_command_line_gave_is_reported_at_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    override = "stages.0.train.max_steps=many"
    file = str(ROOT / "tests" / "errors" / "warning_save_steps.yaml")
    _, out = _run(capsys, file, "--format", "json", "--set", override)
    (problem,) = json.loads(out)["files"][0]["problems"]
    assert (problem["file"], problem["line"], problem["override"]) == (file, None, f"--set {override}")
    _, out = _run(capsys, file, "--format", "sarif", "--set", override)
    (result,) = json.loads(out)["runs"][0]["results"]
    assert result["locations"] == [{"physicalLocation": {"artifactLocation": {"uri": Path(file).as_uri()}}}]
    assert result["message"]["text"].startswith(f"--set {override}: ")


def test_nothing_leaves_its_field() -> None:
    mark = Mark("a b,c:%.yaml", 2, 3, 4, text="x: \x1b[31m")
    problem = Problem("one: 100 %\nof `it`\r", code="test", mark=mark, found="::error::", hint="a\nb")
    report = [FileReport("a b,c:%.yaml", (problem,))]
    assert github_report(report) == (
        "::error file=a b%2Cc%3A%25.yaml,line=2,col=3,endColumn=6,title=test::"
        "one: 100 %25%0Aof `it`%0D%0Afound: ::error::%0Ahint: a%0Ab"
    )
    location = json.loads(sarif_report(report))["runs"][0]["results"][0]["locations"][0]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "a%20b%2Cc%3A%25.yaml"


def test_all_goes_with_deep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "recipes/demo.yaml", "--all"]) == 2
    assert "--all needs --deep" in capsys.readouterr().err


def test_machines_are_reported_what_an_export_will_refuse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    file, rule = "tests/errors/warning_export_projector.yaml", "model-cannot-be-exported"
    code, out = _run(capsys, file, "--format", "json")
    problems = json.loads(out)["files"][0]["problems"]
    assert code == 0 and {problem["severity"] for problem in problems} == {"warning"}
    assert [problem["rule"] for problem in problems] == [rule, rule]
    assert [problem["message"].split("`")[1] for problem in problems] == ["hf", "gguf-ready"]
    (run,) = json.loads(_run(capsys, file, "--format", "sarif")[1])["runs"]
    assert {result["ruleId"] for result in run["results"]} == {rule}
    assert {result["level"] for result in run["results"]} == {"warning"}
