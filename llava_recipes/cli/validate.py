"""`llava-recipe validate FILE…`: report every problem of every file, as text or for machines."""

from __future__ import annotations

import argparse
import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from llava_recipes import __version__
from llava_recipes.cli.options import add_set
from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.exit_codes import USAGE_ERROR
from llava_recipes.recipe.load import load_recipe
from llava_recipes.render import render_problems
from llava_recipes.screen import say, say_document, say_json, say_lines

if TYPE_CHECKING:
    from llava_recipes.runner.deep import StageFindings

Json = dict[str, object]
SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


@dataclass(frozen=True)
class FileReport:
    """What was found in one recipe file."""

    file: str
    problems: tuple[Problem, ...]
    stages: tuple[StageFindings, ...] = ()
    """What `--deep` counted, stage by stage."""

    @property
    def is_valid(self) -> bool:
        """Whether there are no errors; warnings may be left."""
        return all(problem.severity == "warning" for problem in self.problems)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="recipe file, or a glob of recipe files")
    add_set(parser, what="override a value, such as stages.pretrain.train.max_steps=5; may be repeated")
    parser.add_argument(
        "--format",
        choices=("text", "json", "github", "sarif"),
        default="text",
        help="output: text for people, the others for machines (default: %(default)s)",
    )
    parser.add_argument("--strict", action="store_true", help="treat warnings as errors")
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also build the model without weights, match every glob, read the data and some images",
    )
    parser.add_argument("--all", action="store_true", help="with --deep: decode every image")


def run(arguments: argparse.Namespace) -> int:
    if arguments.all and not arguments.deep:
        say("llava-recipe validate: --all needs --deep", to_stderr=True)
        return USAGE_ERROR
    if arguments.deep:
        from llava_recipes.versions import check_versions

        check_versions()
    reports: list[FileReport] = []
    for file in _expand(arguments.files):
        report = _examine(file, arguments)
        if arguments.format == "text":
            _print(report, is_first=all(not earlier.problems for earlier in reports))
        reports.append(report)
    if arguments.format != "text":
        MACHINE_FORMATS[arguments.format](reports)
    return 0 if all(report.is_valid for report in reports) else 1


def _print(report: FileReport, *, is_first: bool) -> None:
    if report.is_valid:
        say(f"ok  {report.file}", *(f"    {stage.summary()}" for stage in report.stages))
    if report.problems:
        say_lines("\n" * (not is_first) + render_problems(report.problems), to_stderr=True)


def _expand(patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        if glob.has_magic(pattern) and not os.path.exists(pattern):
            # A glob that matches nothing is passed on, to be reported as a file that doesn't exist.
            yield from sorted(glob.glob(pattern, recursive=True)) or [pattern]
        else:
            yield pattern


def _examine(file: str, arguments: argparse.Namespace) -> FileReport:
    """Every problem of one recipe file, and what `--deep` counted."""
    stages: tuple[StageFindings, ...] = ()
    try:
        loaded = load_recipe(file, arguments.set)
        # An invalid recipe is reported without importing the plan.
        from llava_recipes.runner.facts import compile_loaded

        compiled = compile_loaded(loaded, world_size=1)
        problems = list(compiled.warnings)
        if arguments.deep:
            from llava_recipes.runner.deep import look_deeply

            deep_problems, stages = look_deeply(loaded, compiled.plan, every_image=arguments.all)
            problems += deep_problems
        found: Sequence[Problem] = loaded.fail(*problems).problems
    except RecipeError as error:
        found = error.problems
    if arguments.strict:
        found = [replace(problem, severity="error") for problem in found]
    return FileReport(file, tuple(found), stages)


def json_report(reports: Sequence[FileReport]) -> str:
    """One JSON object with every problem of every file."""
    everything = [problem for report in reports for problem in report.problems]
    num_errors = sum(problem.severity == "error" for problem in everything)
    values: Json = {
        "version": 1,
        "num_errors": num_errors,
        "num_warnings": len(everything) - num_errors,
        "files": [
            {
                "file": report.file,
                "is_valid": report.is_valid,
                "problems": [_problem_values(problem, report.file) for problem in report.problems],
                **({"stages": [asdict(stage) for stage in report.stages]} if report.stages else {}),
            }
            for report in reports
        ],
    }
    return json.dumps(values, indent=2, ensure_ascii=False)


def _problem_values(problem: Problem, file: str) -> Json:
    place, line, column, width = _place(problem, file)
    return {
        "severity": problem.severity,
        "rule": problem.code,
        "message": problem.message,
        "found": problem.found,
        "hint": problem.hint,
        "path": list(problem.path) if problem.path is not None else None,
        "file": place,
        "line": line,
        "column": column,
        "end_column": column + width if column is not None else None,
        "override": _override(problem.mark, file),
        **({} if problem.mark is None or problem.mark.row is None else {"row": problem.mark.row}),
    }


def _place(problem: Problem, file: str) -> tuple[str, int | None, int | None, int]:
    """File, line, column and width; a problem of the command line belongs to the recipe as a whole."""
    mark = problem.mark
    if mark is None or mark.line == 0:
        return (file if mark is None or _override(mark, file) else mark.file), None, None, 0
    return mark.file, mark.line, mark.column, mark.width


def _override(mark: Mark | None, file: str) -> str | None:
    is_override = mark is not None and mark.line == 0 and mark.file.startswith("--")
    return mark.file if mark is not None and is_override and mark.file != file else None


def _whole_message(problem: Problem, file: str) -> str:
    override = _override(problem.mark, file)
    row = problem.mark.row if problem.mark is not None else None
    where = override or (None if row is None else f"row {row}")
    lines = [f"{where}: {problem.message}" if where else problem.message]
    lines += [f"found: {problem.found}"] if problem.found is not None else []
    lines += [f"hint: {problem.hint}"] if problem.hint is not None else []
    return "\n".join(lines)


def github_report(reports: Sequence[FileReport]) -> str:
    """Workflow commands, which GitHub shows next to the lines of a pull request."""
    return "\n".join(_annotation(problem, report.file) for report in reports for problem in report.problems)


def _annotation(problem: Problem, file: str) -> str:
    place, line, column, width = _place(problem, file)
    properties: dict[str, str | int] = {"file": place}
    if line is not None and column is not None:
        properties |= {"line": line, "col": column, "endColumn": column + width - 1}
    properties["title"] = problem.code
    spelled = ",".join(f"{key}={_escaped(str(value), ':,')}" for key, value in properties.items())
    return f"::{problem.severity} {spelled}::{_escaped(_whole_message(problem, file))}"


def _escaped(text: str, more: str = "") -> str:
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def sarif_report(reports: Sequence[FileReport]) -> str:
    """A SARIF 2.1.0 log, as code scanning services read it."""
    rules = sorted({problem.code for report in reports for problem in report.problems})
    results = [
        _result(problem, report.file, rules.index(problem.code))
        for report in reports
        for problem in report.problems
    ]
    driver: Json = {
        "name": "llava-recipe",
        "semanticVersion": __version__,
        "rules": [{"id": rule, "shortDescription": {"text": rule.replace("-", " ")}} for rule in rules],
    }
    log: Json = {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    }
    return json.dumps(log, indent=2, ensure_ascii=False)


def _result(problem: Problem, file: str, rule_index: int) -> Json:
    place, line, column, width = _place(problem, file)
    physical: Json = {"artifactLocation": {"uri": _uri(place)}}
    if line is not None and column is not None:
        region: Json = {"startLine": line, "startColumn": column, "endColumn": column + width}
        if problem.mark is not None and problem.mark.text is not None:
            region["snippet"] = {"text": problem.mark.text[column - 1 : column - 1 + width]}
        physical["region"] = region
    return {
        "ruleId": problem.code,
        "ruleIndex": rule_index,
        "level": problem.severity,
        "message": {"text": _whole_message(problem, file)},
        "locations": [{"physicalLocation": physical}],
    }


def _uri(file: str) -> str:
    from pathlib import Path
    from urllib.parse import quote

    return Path(file).as_uri() if os.path.isabs(file) else quote(file.replace(os.sep, "/"))


def _say_annotations(reports: Sequence[FileReport]) -> None:
    if text := github_report(reports):
        say_document(text + "\n")


MACHINE_FORMATS: dict[str, Callable[[Sequence[FileReport]], None]] = {
    "json": lambda reports: say_json(json_report(reports)),
    "github": _say_annotations,
    "sarif": lambda reports: say_json(sarif_report(reports)),
}
"""The formats for machines, and what prints each."""
