"""`llava-recipe eval --tasks`: run lmms-eval on the exported model, next to published scores."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.cli.options import SHARD_SIZE, report, writing_of
from llava_recipes.files import expanded, real_path
from llava_recipes.screen import console, say

if TYPE_CHECKING:
    from pydantic import JsonValue

    from llava_recipes.use.benchmarks import BenchmarkScore, PublishedScores


def run_tasks(arguments: argparse.Namespace, output: Path) -> int:
    """Export the model where needed, run lmms-eval, print and save its scores."""
    from llava_recipes.estimate.assignment import DTYPE_NAMES
    from llava_recipes.files import write_text
    from llava_recipes.model.placing import usual_device
    from llava_recipes.use.benchmarks import (
        check_lmms_eval,
        command,
        read_published,
        run_benchmarks,
        scores_of,
    )

    check_lmms_eval()
    published = read_published()
    logs = output.parent / "lmms_eval"
    with _exported(arguments) as model:
        words = command(
            model,
            arguments.tasks,
            output=logs,
            device=arguments.device or str(usual_device()),
            dtype=DTYPE_NAMES.get(arguments.dtype),
            limit=arguments.limit,
            include=arguments.include_path,
        )
        results = run_benchmarks(words, logs)
    scores = scores_of(results, published)
    write_text(output, json.dumps(_values(arguments, results, scores, published), indent=2) + "\n")
    _print(scores, published, limit=arguments.limit)
    say(f"wrote {output}; lmms-eval's own files are in {logs}")
    return 0


@contextmanager
def _exported(arguments: argparse.Namespace) -> Iterator[Path]:
    """The folder that lmms-eval loads: RUN, its export, or else a temporary export."""
    from llava_recipes.recipe.foreign import check_model_folder
    from llava_recipes.use.benchmarks import is_exported

    folder = expanded(arguments.run)
    for place in (folder, folder / "export-hf"):
        if is_exported(place):
            check_model_folder(place, ())
            say(f"model: {place}")
            yield real_path(place)
            return
    from llava_recipes.export.export import export_run

    with tempfile.TemporaryDirectory(prefix="llava-recipe-") as parent:
        target = Path(parent) / real_path(folder).name
        say(f"model: {folder}, exported for lmms-eval into a temporary folder")
        report(export_run(folder, target, to="hf", **writing_of(arguments, shard_size=SHARD_SIZE)))
        yield target


def _values(
    arguments: argparse.Namespace,
    results: dict[str, JsonValue],
    scores: Sequence[BenchmarkScore],
    published: PublishedScores,
) -> dict[str, JsonValue]:
    rows: list[JsonValue] = [
        {
            "task": score.task,
            "metric": score.metric,
            "value": score.value,
            "published": dict(zip(published.models, score.published.scores, strict=True))
            if score.published
            else None,
        }
        for score in scores
    ]
    return {
        "run": arguments.run,
        "tasks": arguments.tasks,
        "limit": arguments.limit,
        "lmms_eval_version": results.get("lmms_eval_version"),
        "scores": rows,
        "published_source": published.source,
    }


def _print(scores: Sequence[BenchmarkScore], published: PublishedScores, *, limit: int | None) -> None:
    from rich.table import Table

    table = Table()
    for name in ("task", "measure"):
        table.add_column(name, overflow="fold")
    for name in ("this model", *(name for model in published.models for name in (model, "diff"))):
        table.add_column(name, justify="right")
    notes = []
    for score in scores:
        known = score.published
        cells = [cell for value in known.scores for cell in _compared(score.value, value)] if known else []
        name = known.name if known else score.task
        if known and known.note:
            notes.append(f"{known.name}: {known.note}")
        table.add_row(
            name, score.metric, f"{score.value:,.4g}" if not known else f"{score.value:,.1f}", *cells
        )
    console().print(table)
    if limit:
        notes.append(f"the first {limit} samples of each task only; published scores are on all")
    if any(score.published for score in scores):
        notes.append(f"published: {published.source}")
    if notes:
        say(*notes)


def _compared(value: float, published: float) -> tuple[str, str]:
    return f"{published:,.1f}", f"{value - published:+,.1f}"
