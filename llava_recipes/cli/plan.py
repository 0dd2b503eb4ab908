"""`llava-recipe plan FILE`: show what a run does and costs; loads no weights and writes nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.cli.options import add_recipe, add_world_size, positive, world_size_of
from llava_recipes.cli.plan_overview import Section, headline_of, sections_of
from llava_recipes.errors import RecipeError
from llava_recipes.exit_codes import USAGE_ERROR
from llava_recipes.plan.types import Plan
from llava_recipes.screen import cell, console, is_terminal, say, say_json

if TYPE_CHECKING:
    from rich.console import Console

    from llava_recipes.estimate.cost import Gpu
    from llava_recipes.estimate.estimate import Estimate, Estimator
    from llava_recipes.plan.compile import Compiled
    from llava_recipes.recipe.load import LoadedRecipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_world_size(parser)
    parser.add_argument("--gpu", type=_gpu, metavar="NAME", help="GPU to estimate for: a100-80g, …")
    parser.add_argument("--fit", action="store_true", help="with --gpu: suggest changes until the run fits")
    for option, what in (("--text-tokens", "text tokens"), ("--label-tokens", "learned tokens")):
        parser.add_argument(
            option, type=positive, metavar="N", help=f"{what} of a usual sample (default: an assumption)"
        )
    parser.add_argument(
        "--show-config", action="store_true", help="add TrainingArguments and DeepSpeed config"
    )
    parser.add_argument("--json", action="store_true", help="print the plan and its estimate as JSON")
    parser.add_argument("--html", metavar="FILE", help="write an HTML page; replaces only a page of its own")
    parser.add_argument("--force", action="store_true", help="let --html replace any file")


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.runner.facts import compile_loaded

    if arguments.fit and arguments.gpu is None:
        say("llava-recipe plan: --fit needs --gpu", to_stderr=True)
        return USAGE_ERROR
    loaded = load_recipe(arguments.file, arguments.set)
    compiled = compile_loaded(loaded, world_size=world_size_of(arguments))
    plan, estimator = compiled.plan, _estimator(compiled, arguments)
    estimate = estimator.estimate() if estimator else None
    overview = list(sections_of(plan))
    proposals = list(_proposals(plan, estimator, arguments.gpu)) if estimator and arguments.fit else []
    sections = [*overview, *_folder_section(loaded, plan)]
    sections += [*_estimate_sections(estimate, fitted=bool(proposals)), *proposals]
    if arguments.show_config:
        from llava_recipes.cli.plan_estimate import config_sections

        sections += config_sections(plan)
    if arguments.html is not None:
        from llava_recipes.cli.plan_page import write_page

        write_page(
            arguments.html,
            plan,
            estimate,
            overview=overview,
            proposals=proposals,
            headline=headline_of(plan),
            force=arguments.force,
        )
        say(f"wrote {arguments.html}", to_stderr=True)
    if arguments.json:
        from llava_recipes.estimate.estimate import PlanReport

        say_json(PlanReport(**dict(plan), estimate=estimate).model_dump_json(indent=2))
    elif arguments.html is None:
        print_sections(headline_of(plan), sections)
    return 0


def _folder_section(loaded: LoadedRecipe, plan: Plan) -> Iterator[Section]:
    """What `run` does with the folders that contain a run already."""
    rows = [
        (stage.name, words)
        for stage, words in zip(plan.stages, folders_of(loaded, plan), strict=True)
        if words is not None
    ]
    if rows:
        yield "run folders", rows


def folders_of(loaded: LoadedRecipe, plan: Plan) -> Iterator[str | None]:
    """What `run` does with the folder of each stage, in a line; None where it has none yet."""
    from llava_recipes.runner.inputs import compare_inputs
    from llava_recipes.runner.refusals import describe_folder
    from llava_recipes.runner.run_folder import read_folder_state, stage_plan

    for index, stage in enumerate(plan.stages):
        folder, own = Path(stage.output_dir), stage_plan(plan, index)
        try:
            moved = compare_inputs(folder, own).moved
            state = read_folder_state(folder, own, loaded.recipe, index, moved=moved)
        except RecipeError as error:
            yield error.problems[0].message
        except OSError as error:
            yield f"{stage.output_dir} cannot be read: {error.strerror}"
        else:
            yield describe_folder(state, stage)


def _estimator(compiled: Compiled, arguments: argparse.Namespace) -> Estimator | None:
    if compiled.model.outline is None:
        return None
    from llava_recipes.estimate.estimate import Assumptions, Estimator

    given = Assumptions(arguments.gpu, arguments.text_tokens, arguments.label_tokens)
    return Estimator(compiled, given)


def _estimate_sections(estimate: Estimate | None, *, fitted: bool) -> Iterator[Section]:
    if estimate is None:
        yield "estimate", [("–", "none: a config isn't available, so nothing can be counted")]
        return
    from llava_recipes.cli.plan_estimate import estimate_sections

    yield from estimate_sections(estimate, fitted=fitted)


def _proposals(plan: Plan, estimator: Estimator, gpu: Gpu) -> Iterator[Section]:
    from llava_recipes.cli.plan_estimate import proposal_sections
    from llava_recipes.estimate.fit import propose

    found = [(stage, propose(estimator, stage, gpu=gpu, world_size=plan.world_size)) for stage in plan.stages]
    yield from proposal_sections(found, gpu.name)


def print_plan(plan: Plan) -> None:
    """Print a plan without its estimate."""
    print_sections(headline_of(plan), list(sections_of(plan)))


def print_sections(headline: str, sections: Sequence[Section]) -> None:
    """Print sections in columns that fit the terminal, or as plain lines elsewhere."""
    if is_terminal(sys.stdout):
        show_sections(headline, sections, console())
    else:
        say(*plain_lines(headline, sections))


def plain_lines(headline: str, sections: Iterable[Section]) -> Iterator[str]:
    """Sections as plain text, one line for each fact."""
    yield headline
    for title, rows in sections:
        yield from ("", title)
        widest = max(len(label) for label, _ in rows)
        yield from (f"  {label:<{widest}}  {text}".rstrip() for label, text in rows)


def show_sections(headline: str, sections: Iterable[Section], console: Console) -> None:
    """Print sections on a terminal, long facts folded inside their column."""
    from rich.table import Table

    console.print(cell(headline, style="bold"))
    for title, rows in sections:
        console.print()
        console.print(cell(title, style="bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for label, text in rows:
            table.add_row(cell(f"  {label}", style="cyan"), cell(text))
        console.print(table)


def _gpu(text: str) -> Gpu:
    from llava_recipes.estimate.cost import UnknownGpuError, find_gpu

    try:
        return find_gpu(text)
    except UnknownGpuError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
