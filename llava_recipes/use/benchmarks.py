"""Run benchmarks of lmms-eval in a process of its own, next to LLaVA-1.5's published scores."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pydantic import JsonValue

from llava_recipes.errors import RecipeError
from llava_recipes.interpreter import python_environment, python_words
from llava_recipes.recipe.foreign import read_object
from llava_recipes.versions import check_versions

# lmms-eval's llava_hf imports decord, which it does not declare.
NEEDED = ("lmms_eval", "decord")
_RESULTS = "_results.json"


@dataclass(frozen=True)
class Published:
    """LLaVA-1.5's scores on a task, in the order of `models`; `metric` is lmms-eval's name for them."""

    name: str
    metric: str
    scale: float
    scores: tuple[float, ...]
    note: str


@dataclass(frozen=True)
class PublishedScores:
    source: str
    models: tuple[str, ...]
    tasks: dict[str, Published]


@dataclass(frozen=True)
class BenchmarkScore:
    """One score of a task, in the unit of the published score if there is one."""

    task: str
    metric: str
    value: float
    published: Published | None


def read_published() -> PublishedScores:
    values = json.loads((files(__package__) / "published.json").read_text("utf-8"))
    tasks = {
        task: Published(**{"note": "", **entry, "scores": tuple(entry["scores"])})
        for task, entry in values["tasks"].items()
    }
    return PublishedScores(values["source"], tuple(values["models"]), tasks)


def check_lmms_eval() -> None:
    """Raise RecipeError when lmms-eval cannot be started."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError.of(
            "--tasks needs lmms-eval, which is not installed",
            code="library-not-installed",
            found=f"no module {', '.join(missing)}",
            hint="pip install '.[eval]' in the checkout; `--data FILE` measures without it",
        )
    check_versions("eval")


def is_exported(folder: Path) -> bool:
    """Whether a folder has the layout that lmms-eval's llava_hf loads, by its config.json."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    classes = config.get("architectures") if isinstance(config, dict) else None
    return isinstance(classes, list) and any(
        str(each).startswith("Llava") and "Conditional" in str(each) for each in classes
    )


def command(
    model: Path,
    tasks: str,
    *,
    output: Path,
    device: str,
    dtype: str | None,
    limit: int | None,
    include: str | None,
) -> list[str]:
    """The command that starts lmms-eval. Raises RecipeError for a folder whose name it would split."""
    if any(character in str(model) for character in ",='\"{}"):
        raise RecipeError.of(
            "lmms-eval cannot read a folder with this name",
            code="lmms-eval-folder-name",
            found=str(model),
            hint="use a path without commas, quotes, braces or equals signs",
        )
    # Without a device map it passes an empty one, which transformers 5 refuses.
    arguments = f"pretrained={model},device_map={device},trust_remote_code=False"
    arguments += f",dtype={dtype}" if dtype else ""
    words = [*python_words("lmms_eval"), "--model", "llava_hf", "--model_args", arguments]
    # Its llava_hf only takes batches of one question.
    words += ["--tasks", tasks, "--batch_size", "1", "--output_path", str(output)]
    words += ["--device", device]
    words += ["--include_path", include] if include else []
    return words + (["--limit", str(limit)] if limit else [])


def run_benchmarks(words: list[str], output: Path) -> dict[str, JsonValue]:
    """Run lmms-eval, and read the results that it writes under `output`.

    Raises RecipeError when it leaves no results: it ends with exit code 0 even after an error.
    """
    before = set(output.rglob(f"*{_RESULTS}"))
    # Its llava_hf reads the config without trust_remote_code, so transformers would ask on standard input.
    code = subprocess.run(words, check=False, env=python_environment(), stdin=subprocess.DEVNULL).returncode
    written = sorted(set(output.rglob(f"*{_RESULTS}")) - before, key=lambda file: file.stat().st_mtime)
    if code != 0 or not written:
        raise RecipeError.of(
            "lmms-eval left no results",
            code="lmms-eval-failed",
            found=f"exit code {code}; nothing new in {output}" if not written else f"exit code {code}",
            hint="its own output above says why; it downloads benchmarks from the hub",
        )
    return read_results(written[-1])


def read_results(file: Path) -> dict[str, JsonValue]:
    """A results file of lmms-eval. Raises RecipeError when it is damaged or something else."""
    try:
        values = read_object(file)
    except RecipeError as error:
        message, found = f"the results in {file} cannot be read", error.problems[0].found
        raise RecipeError.of(message, code="results-unreadable", found=found) from None
    if not isinstance(values.get("results"), dict):
        raise RecipeError.of(f"{file} has no `results`", code="results-are-missing")
    return values


def scores_of(results: dict[str, JsonValue], published: PublishedScores) -> list[BenchmarkScore]:
    """The scores of every task: first those with a published counterpart, then all others.

    lmms-eval names a score `metric,filter`; its standard errors are left out.
    """
    tasks = results["results"]
    assert isinstance(tasks, dict)
    found = []
    for task, values in tasks.items():
        known = published.tasks.get(task)
        scores = []
        for key, value in values.items() if isinstance(values, dict) else ():
            metric = key.partition(",")[0]
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                continue
            if "_stderr" in metric or "," not in key:
                continue
            counterpart = known if known is not None and known.metric == metric else None
            scale = counterpart.scale if counterpart is not None else 1
            scores.append(BenchmarkScore(task, metric, value * scale, counterpart))
        found += sorted(scores, key=lambda score: score.published is None)
    return found
