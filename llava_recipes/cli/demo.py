"""`llava-recipe demo`: draw images, train the demo recipe on them, describe held-out images."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.cli.options import add_set, positive
from llava_recipes.exit_codes import USAGE_ERROR
from llava_recipes.screen import say, say_lines

if TYPE_CHECKING:
    from llava_recipes.plan.types import Plan

NUM_HELD_OUT, NUM_UNSEEN, NUM_NOTES, SEED = 224, 96, 6000, 0
CHAT_IMAGE, CHAT_TOKENS = 5, 16
"""The held-out image that the final chat is about, and the most tokens of an answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", metavar="FILE", help="recipe file (default: the gallery's demo)")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("demo/data"),
        metavar="DIR",
        help="folder of the drawn images (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs (default: the recipe's)")
    add_set(parser)
    parser.add_argument(
        "--images",
        type=positive,
        default=3000,
        metavar="N",
        help="images to train on (default: %(default)s)",
    )
    # Its name before 0.10.
    parser.add_argument(
        "--pictures", type=positive, dest="images", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted demo")
    parser.add_argument("--redraw", action="store_true", help="replace images drawn with other settings")


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.authoring.gallery import gallery_folder
    from llava_recipes.demo.drawn_data import DatasetSettings, write_dataset
    from llava_recipes.runner.world import NodeOptions, find_world, is_first

    if find_world(os.environ, NodeOptions()) is not None:
        if is_first(os.environ):
            say("llava-recipe demo: it trains in one process; start it without a launcher", to_stderr=True)
        return USAGE_ERROR
    recipe = arguments.recipe or os.path.relpath(gallery_folder() / "demo.yaml")
    started_s = time.monotonic()
    # With matrices this small, threads wait for each other longer than they compute.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings = DatasetSettings(
        num_train=arguments.images,
        num_held_out=NUM_HELD_OUT,
        num_unseen=NUM_UNSEEN,
        num_notes=NUM_NOTES,
        seed=SEED,
    )
    drawn = write_dataset(arguments.data, settings, redraw=arguments.redraw)
    num_images = f"{arguments.images:,} images to train on, {NUM_HELD_OUT + NUM_UNSEEN} held out"
    say(f"{num_images}: {'drawn' if drawn else 'drawn before'}, in {arguments.data}")
    overrides = _overrides(arguments)
    code = _train(recipe, overrides, resume=arguments.resume)
    if code == 0:
        plan = _compile(recipe, overrides)
        _score(plan, arguments.data)
        _chat(plan, arguments.data)
        say("", f"the whole demo took {time.monotonic() - started_s:.0f} s")
    return code


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """The folders as variables of the recipe, quoted, then the user's own overrides."""
    folders: dict[str, Path | None] = {"data": arguments.data, "out": arguments.out}
    given: list[str] = arguments.set
    return [
        f"vars.{name}={json.dumps(str(path))}" for name, path in folders.items() if path is not None
    ] + given


def _train(recipe: str, overrides: Sequence[str], *, resume: bool) -> int:
    """Run the recipe as `llava-recipe run` does, on one process."""
    from llava_recipes.cli import run as run_command

    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    options = ["--resume"] * resume + [f"--set={override}" for override in overrides]
    return run_command.run(parser.parse_args([recipe, "--processes=1", *options]))


def _compile(recipe: str, overrides: Sequence[str]) -> Plan:
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.runner.facts import plan_recipe

    return plan_recipe(load_recipe(recipe, overrides), world_size=1)


def _score(plan: Plan, folder: Path) -> None:
    """Caption the held-out images after each stage; print and save the scores."""
    import torch

    from llava_recipes.demo.drawn_data import caption_held_out, read_held_out
    from llava_recipes.demo.score import render_examples, render_scores, score_captions, scores_as_json
    from llava_recipes.files import write_text
    from llava_recipes.use.opened import open_run

    held_out = read_held_out(folder)
    said = {}
    for stage in plan.stages:
        opened = open_run(stage.output_dir, dtype=torch.float32, device=torch.device("cpu"))
        said[stage.name] = caption_held_out(opened.assembled, stage.data, folder)
    scores = score_captions(held_out, said)
    last = plan.stages[-1]
    write_text(Path(last.output_dir).parent / "score.json", scores_as_json(scores))
    say("", *render_examples(held_out, said[last.name]), "")
    say_lines(render_scores(scores))


def _chat(plan: Plan, folder: Path) -> None:
    """Ask the finished model about a held-out image, and print how to continue."""
    from llava_recipes.demo.drawn_data import read_held_out
    from llava_recipes.demo.vocabulary import PLACE, WHAT
    from llava_recipes.model.generate import Decoding
    from llava_recipes.use.chat import Chat
    from llava_recipes.use.opened import open_to_ask

    last = plan.stages[-1].output_dir
    opened = open_to_ask(last, precision="fp32", device="cpu", base=None)
    image = read_held_out(folder)[CHAT_IMAGE]
    conversation = Chat(opened.answerer, Decoding(max_new_tokens=CHAT_TOKENS), say=say)
    conversation.show(str(image.image))
    say("", f"a chat about {image.image}, {image.caption}")
    for question in (f"<image>\n{WHAT}", PLACE):
        say(f"  you>   {question.partition(chr(10))[2] or question}")
        say(f"  model> {conversation.ask(question)}")
    say(f"continue with: llava-recipe chat {last} --image {image.image}")
