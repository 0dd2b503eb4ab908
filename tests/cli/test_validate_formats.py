"""`llava-recipe validate --format`: what machines read says what the text for people says."""

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
