"""`llava-recipe generate RUN --input FILE -o OUT`: answer many questions, in batches."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.cli.options import (
    add_decoding,
    add_opening,
    add_run,
    decoding_of,
    positive,
    progress,
    quiet_libraries,
)
from llava_recipes.exit_codes import USAGE_ERROR
from llava_recipes.files import real_path
from llava_recipes.screen import say

if TYPE_CHECKING:
    from pydantic import JsonValue

    from llava_recipes.use.questions import Question

EPILOG = """\
A record of FILE (JSONL, or a JSON list) has its images in `image` or `images` (a path or a list) and its \
question in `prompt`, `question` or `text`, as LLaVA's question.jsonl; or it has `conversations`, whose last \
human turn is asked after the turns before it. <image> marks the place of an image; by default \
images come first.

OUT gets a line for each record, in the same order: the record with its answer. --format llava writes \
LLaVA's question_id, prompt, text, answer_id, model_id and metadata.

One process on one device answers. To use several GPUs, split FILE and run the command once for each part, \
with --device cuda:0, cuda:1, …"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_run(parser)
    parser.add_argument("--input", required=True, metavar="FILE", help="file of questions (JSONL or JSON)")
    parser.add_argument("--images", metavar="DIR", help="folder of the images (default: that of FILE)")
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="OUT", help="file of answers, JSONL"
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=8,
        metavar="N",
        help="questions at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--format",
        choices=("records", "llava"),
        default="records",
        help="format of OUT (default: %(default)s)",
    )
    parser.add_argument(
        "--answer-key",
        default="answer",
        metavar="KEY",
        help="key of the answer in a record (default: %(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted OUT")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing OUT")
    add_decoding(parser, max_new_tokens=512)
    add_opening(parser)


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.use.batches import (
        AnswersFile,
        answer_in_batches,
        check_answer_key,
        check_place,
        check_questions,
        llava_line,
        model_name,
        plain_line,
    )
    from llava_recipes.use.questions import read_questions

    decoding = decoding_of(arguments)
    if arguments.resume and arguments.overwrite:
        say("llava-recipe generate: --resume and --overwrite exclude each other", to_stderr=True)
        return USAGE_ERROR
    quiet_libraries()
    images = arguments.images if arguments.images is not None else str(Path(arguments.input).parent)
    questions = read_questions(arguments.input, images=images)
    as_llava = arguments.format == "llava"
    if not as_llava:
        check_answer_key(questions, arguments.answer_key)

    check_place(arguments.output, resume=arguments.resume, overwrite=arguments.overwrite)

    from llava_recipes.use.opened import open_to_ask

    answerer = open_to_ask(
        arguments.run, precision=arguments.dtype, device=arguments.device, base=arguments.base
    ).answerer
    check_questions(answerer, questions, decoding)
    model_id = model_name(Path(arguments.run))
    with AnswersFile(
        arguments.output,
        settings=_settings(arguments, questions),
        batch_size=arguments.batch_size,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    ) as file:
        _note(questions, file.num_done)
        left = questions[file.num_done :]
        batches = answer_in_batches(
            answerer, left, decoding, batch_size=arguments.batch_size, seed=arguments.seed
        )
        with progress("answering", total=len(questions), done=file.num_done) as advance:
            start = 0
            for answers in batches:
                asked = left[start : start + len(answers)]
                start += len(answers)
                file.append(
                    [
                        llava_line(question, answer, model_id=model_id)
                        if as_llava
                        else plain_line(question, answer, key=arguments.answer_key)
                        for question, answer in zip(asked, answers, strict=True)
                    ]
                )
                advance(len(answers))
        file.finish()
    say(f"{len(questions):,} answers in {arguments.output}")
    return 0


def _settings(arguments: argparse.Namespace, questions: Sequence[Question]) -> dict[str, JsonValue]:
    """Everything that the answers depend on, for --resume to compare."""
    import hashlib
    import json

    asked = json.dumps([question.values for question in questions], sort_keys=True)
    return {
        "run": str(real_path(arguments.run)),
        "base": arguments.base,
        "questions_sha256": hashlib.sha256(asked.encode()).hexdigest(),
        "images": arguments.images,
        "batch_size": arguments.batch_size,
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "seed": arguments.seed,
        "dtype": arguments.dtype,
        "format": arguments.format,
        "answer_key": arguments.answer_key,
    }


def _note(questions: Sequence[Question], num_done: int) -> None:
    from llava_recipes.layouts import IMAGE

    if num_done:
        say(f"note: {num_done:,} of {len(questions):,} answers exist already", to_stderr=True)
    num_without = sum(question.had_no_tag for question in questions)
    if num_without:
        what = f"{num_without:,} of {len(questions):,} records have images but no {IMAGE}"
        say(f"note: {what}: their images come first", to_stderr=True)
