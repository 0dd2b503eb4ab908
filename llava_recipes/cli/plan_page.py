"""A plan as one page of HTML: it loads nothing from elsewhere, and every text is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from llava_recipes.cli.plan_estimate import (
    compute_rows,
    config_sections,
    decay_words,
    disk_rows,
    dtype_words,
    fit_advice,
    gib,
    group_modules,
    merged_parts,
    module_names,
    moments,
    token_rows,
    verdict_words,
)
from llava_recipes.cli.plan_overview import Section
from llava_recipes.errors import Mark, RecipeError
from llava_recipes.estimate.assignment import Assignment
from llava_recipes.estimate.cost import GPUS
from llava_recipes.estimate.estimate import Estimate, Fit, StageEstimate
from llava_recipes.estimate.memory import Memory
from llava_recipes.files import open_ordinary, replacing
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.scalars import say_number
from llava_recipes.screen import shown

_GENERATOR = "llava-recipe plan"
_MARKER = f'<meta name="generator" content="{_GENERATOR}">'
_MARKER_WITHIN = 1000
_CLASSES = {"fits": "fits", "fits at the usual length": "usual", "does not fit": "misfit"}
_COLORS = (
    *("#4878a8", "#6a9fb5", "#8f7bb3", "#b5835a", "#888888", "#a9a9a9", "#c9a227", "#6b9e6b", "#c0655d"),
    *("#3d3d5c", "#d58fb0", "#7a8b3a", "#2f7f7a"),
)


def write_page(
    path: str,
    plan: Plan,
    estimate: Estimate | None,
    *,
    overview: Sequence[Section],
    proposals: Sequence[Section],
    headline: str,
    force: bool,
) -> None:
    """Write the page of a plan. Replaces an earlier page, and any other file only with `force`.

    Raises RecipeError if the file can't be written or isn't such a page.
    """
    file = Path(path)
    if not force:
        _check_ours(file)
    text = page(plan, estimate, overview=overview, proposals=proposals, headline=headline)
    try:
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _refused(file, "the page cannot be written", found=str(error.strerror or error)) from error


def page(
    plan: Plan,
    estimate: Estimate | None,
    *,
    overview: Sequence[Section],
    proposals: Sequence[Section],
    headline: str,
) -> str:
    """The text of the page."""
    import jinja2

    template = files("llava_recipes.cli").joinpath("plan_page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_shown
    )
    advice = fit_advice(bool(proposals))
    return environment.from_string(template).render(
        generator=_GENERATOR,
        plan=plan,
        headline=headline,
        overview=overview,
        estimate=estimate,
        stages=[_stage(stage, estimate, advice) for stage in estimate.stages] if estimate else [],
        proposals=proposals,
        configs=list(config_sections(plan)),
    )


def _shown(value: object) -> object:
    """Every text of the page passes here before it is escaped."""
    return shown(value) if type(value) is str else value


def _check_ours(file: Path) -> None:
    """Raise RecipeError if the file exists and isn't a page of this command."""
    try:
        with open_ordinary(file) as stream:
            start = stream.read(_MARKER_WITHIN)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refused(file, "the page cannot be written", found=str(error.strerror or error)) from error
    if _MARKER.encode() not in start:
        message = "this file was not written by `llava-recipe plan --html`"
        hint = "choose another name, or replace it with --force"
        raise _refused(file, message, found=str(file), hint=hint)


def _refused(file: Path, message: str, *, found: str, hint: str | None = None) -> RecipeError:
    return RecipeError.of(
        message, code="output-cannot-be-written", mark=Mark(f"--html {file}", 0, 0), found=found, hint=hint
    )


def _stage(stage: StageEstimate, estimate: Estimate, advice: str) -> dict[str, object]:
    parts = list(merged_parts(stage.usual, stage.longest))
    colors = {name: _COLORS[number % len(_COLORS)] for number, (name, *_) in enumerate(parts)}
    return {
        "name": stage.name,
        "modules": [_module(members, stage.modules) for members in group_modules(stage.modules)],
        "cost": [
            *token_rows(stage.tokens),
            *compute_rows(stage.compute, estimate),
            *disk_rows(stage.disk),
        ],
        "bars": list(_bars(stage, colors)),
        "key": list(colors.items()),
        "usual_length": f"{stage.usual.length:,}",
        "longest_length": f"{stage.longest.length:,}",
        "parts": [(name, gib(usual), gib(longest), formula) for name, usual, longest, formula in parts],
        "usual_total": gib(stage.usual.total_bytes),
        "longest_total": gib(stage.longest.total_bytes),
        "moment": moments(stage),
        "fits": [_fit(fit, advice) for fit in stage.fits],
    }


def _module(members: Sequence[Assignment], modules: Sequence[Assignment]) -> dict[str, str]:
    first = members[0]
    return {
        "module": ", ".join(module_names(members, modules)),
        "num_parameters": f"{sum(member.num_parameters for member in members):,}",
        "trains": "yes" if first.trains else "no",
        "learning_rate": "" if first.learning_rate is None else say_number(first.learning_rate),
        "weight_decay": decay_words(members) if first.trains else "",
        "dtype": dtype_words(first),
        "rule": first.rule,
    }


def _bars(stage: StageEstimate, colors: Mapping[str, str]) -> Iterator[dict[str, object]]:
    capacity = stage.fits[0].capacity_bytes if len(stage.fits) == 1 else 0
    widest = max(stage.usual.total_bytes, stage.longest.total_bytes, capacity)
    for memory in (stage.usual, stage.longest):
        title = f"{memory.length:,} tokens: {gib(memory.total_bytes)}"
        if capacity:
            title += f" of {gib(capacity)}"
        yield {"title": title, "cuts": list(_cuts(memory, widest, colors))}


def _cuts(memory: Memory, widest: int, colors: Mapping[str, str]) -> Iterator[dict[str, str]]:
    for part in memory.parts:
        yield {
            "title": f"{part.name}: {gib(part.num_bytes)}",
            "percent": f"{100 * part.num_bytes / widest:.3f}",
            "color": colors[part.name],
        }


def _fit(fit: Fit, advice: str) -> dict[str, str]:
    words = verdict_words(fit, advice) + (f"; {fit.caution}" if fit.caution else "")
    return {"gpu": GPUS[fit.gpu].title, "words": words, "kind": _CLASSES[fit.verdict]}
