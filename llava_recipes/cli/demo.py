"""`llava-recipe demo`: draw pictures, run the demo recipe on them, describe pictures that it never saw."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.cli.options import add_set, positive
from llava_recipes.screen import say, say_lines

if TYPE_CHECKING:
    from llava_recipes.plan.types import Plan

NUM_HELD_OUT, NUM_UNSEEN, NUM_NOTES, SEED = 224, 96, 6000, 0
CHAT_PICTURE, CHAT_TOKENS = 5, 16
"""Which held-out picture the chat at the end is about, and how long an answer may be."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", help="the recipe (default: the gallery's demo)")
    parser.add_argument(
        "--data", type=Path, default=Path("demo/data"), help="folder of the pictures (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder that the stages write into (default: the recipe's)")
    add_set(parser)
    parser.add_argument(
        "--pictures", type=positive, default=3000, metavar="N", help="to train on (default: %(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="continue a demo that was stopped")
    parser.add_argument(
        "--redraw", action="store_true", help="replace pictures that were drawn with other settings"
    )


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.authoring.gallery import gallery_folder
    from llava_recipes.demo.drawn_data import DatasetSettings, write_dataset

    recipe = arguments.recipe or os.path.relpath(gallery_folder() / "demo.yaml")
    started_s = time.monotonic()
    # On matrices this small, threads wait for each other longer than they compute.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings = DatasetSettings(
        num_train=arguments.pictures,
        num_held_out=NUM_HELD_OUT,
        num_unseen=NUM_UNSEEN,
        num_notes=NUM_NOTES,
        seed=SEED,
    )
    drawn = write_dataset(arguments.data, settings, redraw=arguments.redraw)
    num_pictures = f"{arguments.pictures:,} pictures to train on, {NUM_HELD_OUT + NUM_UNSEEN} held out"
    say(f"{num_pictures}: {'drawn' if drawn else 'there already'}, in {arguments.data}")
    overrides = _overrides(arguments)
    code = _train(recipe, overrides, resume=arguments.resume)
    if code == 0:
        plan = _compile(recipe, overrides)
        _score(plan, arguments.data)
        _chat(plan, arguments.data)
        say("", f"the whole demo took {time.monotonic() - started_s:.0f} s")
    return code


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """The folders as variables of the recipe, quoted, then what the user set."""
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
    """Caption the held-out pictures after each stage; print and keep the scores."""
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
    """Show a held-out picture to the finished model, ask about it, and say how to go on."""
    from llava_recipes.demo.drawn_data import read_held_out
    from llava_recipes.demo.vocabulary import PLACE, WHAT
    from llava_recipes.model.generate import Decoding
    from llava_recipes.use.chat import Chat
    from llava_recipes.use.opened import open_to_ask

    last = plan.stages[-1].output_dir
    opened = open_to_ask(last, precision="fp32", device="cpu", base=None)
    picture = read_held_out(folder)[CHAT_PICTURE]
    conversation = Chat(opened.answerer, Decoding(max_new_tokens=CHAT_TOKENS), say=say)
    conversation.show(str(picture.image))
    say("", f"a chat about {picture.image}, {picture.caption}")
    for question in (f"<image>\n{WHAT}", PLACE):
        say(f"  you>   {question.partition(chr(10))[2] or question}")
        say(f"  model> {conversation.ask(question)}")
    say(f"go on with: llava-recipe chat {last} --image {picture.image}")
