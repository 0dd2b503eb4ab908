"""Ask a model the same questions by `llava-recipe generate` and by another program, and compare the answers.

What the scripts beside this file share: their arguments, the questions, our own answers, the report. A script
ends with 0 when enough answers are equal, with 1 when too few are, with 2 when nothing could be compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from llava_recipes import __version__

NUM_QUESTIONS = 40
IMAGE_TAG = "<image>"
_QUESTION_KEYS = ("prompt", "question", "text")


class Refused(Exception):
    """What the caller has to put right before anything can be compared, in one line."""


@dataclass(frozen=True)
class Question:
    """One question about one image; `name` is the image's path inside the folder of images."""

    name: str
    image: Path
    text: str


@dataclass(frozen=True)
class Answered:
    """Answers in the order of the questions, and who gave them: a program and its versions."""

    engine: str
    answers: tuple[str, ...]


Engine = Callable[[Sequence[Question], int], Answered]
"""Answers questions greedily with at most so many new tokens each."""


def make_parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that every script takes."""
    parser = argparse.ArgumentParser(prog, description=(doc or "").partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="what `llava-recipe generate` opens")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="JSON or JSONL")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="where image paths start")
    parser.add_argument(
        "--limit", type=int, default=NUM_QUESTIONS, metavar="N", help="questions to ask (default %(default)s)"
    )
    parser.add_argument(
        "--at-least", type=int, metavar="N", help="equal answers for exit code 0 (default: all of them)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=32, metavar="N", help="of an answer (default %(default)s)"
    )
    parser.add_argument("--base", metavar="MODEL", help="language model beneath RUN, as `generate --base`")
    return parser


def compare(
    arguments: argparse.Namespace, prog: str, open_engine: Callable[[argparse.Namespace], Engine]
) -> int:
    """Ask both sides and print the report; gives the exit code.

    `open_engine` raises Refused for what is missing, before anything is asked.
    """
    try:
        existing_folder(arguments.run, "RUN")
        questions = read_questions(arguments.questions, images=arguments.images, limit=arguments.limit)
        engine = open_engine(arguments)
        ours = own_answers(
            arguments.run, questions, arguments.images, arguments.max_new_tokens, base=arguments.base
        )
        theirs = engine(questions, arguments.max_new_tokens)
        if len(theirs.answers) != len(questions):
            raise Refused(f"{theirs.engine} gave {len(theirs.answers)} answers to {len(questions)} questions")
    except Refused as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    lines, num_equal = report(questions, ours, theirs)
    print("\n".join(lines))
    wanted = len(questions) if arguments.at_least is None else arguments.at_least
    return 0 if num_equal >= wanted else 1


def existing_folder(path: Path, what: str, *, hint: str = "") -> Path:
    """The path as it is. Raises Refused where no folder is there."""
    if not path.is_dir():
        raise Refused(f"{what}: {path} is not a folder" + (f"; {hint}" if hint else ""))
    return path


def existing_file(path: Path, what: str, *, hint: str = "") -> Path:
    """The path as it is. Raises Refused where no file is there."""
    if not path.is_file():
        raise Refused(f"{what}: {path} is not a file" + (f"; {hint}" if hint else ""))
    return path


def read_questions(file: Path, *, images: Path, limit: int) -> list[Question]:
    """The first questions of a file, each about one image.

    Raises Refused for a file that cannot be read or is empty, and for a record without exactly one image and
    one question.
    """
    existing_file(file, "--questions")
    existing_folder(images, "--images")
    try:
        text = file.read_text("utf-8")
        is_list = text.lstrip().startswith("[")
        records = (
            json.loads(text) if is_list else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except ValueError as error:
        raise Refused(f"{file}: not JSON or JSONL ({error})") from error
    questions = [
        _question(record, f"{file}: record {at}", images) for at, record in enumerate(records[:limit])
    ]
    if not questions:
        raise Refused(f"{file}: no questions to ask")
    return questions


def _question(record: object, where: str, images: Path) -> Question:
    values = record if isinstance(record, dict) else {}
    name = values.get("image")
    texts = [values[key] for key in _QUESTION_KEYS if isinstance(values.get(key), str)]
    if not isinstance(name, str) or len(texts) != 1:
        raise Refused(f"{where} needs `image`, a path, and one of {', '.join(_QUESTION_KEYS)}")
    image = existing_file(images / name, where)
    return Question(name=name, image=image, text=texts[0].replace(IMAGE_TAG, "").strip())


def own_answers(
    run: Path, questions: Sequence[Question], images: Path, max_new_tokens: int, *, base: str | None
) -> Answered:
    """What `llava-recipe generate` says, greedily, in float32 on the CPU. Raises Refused where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "questions.jsonl", Path(folder) / "answers.jsonl"
        records = [{"image": each.name, "prompt": f"{IMAGE_TAG}\n{each.text}"} for each in questions]
        asked.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        argv = [sys.executable, "-m", "llava_recipes", "generate", str(run), "--input", str(asked)]
        argv += ["--images", str(images), "-o", str(answered), "--max-new-tokens", str(max_new_tokens)]
        argv += ["--temperature", "0", "--dtype", "fp32", "--device", "cpu"]
        argv += [] if base is None else ["--base", base]
        done = subprocess.run(argv, capture_output=True, text=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise Refused(f"llava-recipe generate ended with {done.returncode}: {done.stderr.strip()}")
        lines = answered.read_text("utf-8").splitlines()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    answers = tuple(json.loads(line)["answer"].strip() for line in lines)
    return Answered(f"llava-recipes {__version__} ({versions})", answers)


def report(questions: Sequence[Question], ours: Answered, theirs: Answered) -> tuple[list[str], int]:
    """A line for each difference, a summary with the versions, and how many answers are equal.

    Space around an answer does not count. How many different answers there are is in the summary, since a
    model that says the same to everything compares well with anything.
    """
    pairs = list(zip(questions, ours.answers, theirs.answers, strict=True))
    lines = [
        f"{at}. {question.name}, {json.dumps(question.text, ensure_ascii=False)}: "
        f"{json.dumps(our, ensure_ascii=False)} here, {json.dumps(their, ensure_ascii=False)} there"
        for at, (question, our, their) in enumerate(pairs, start=1)
        if our.strip() != their.strip()
    ]
    num_equal = len(pairs) - len(lines)
    lines.append(f"{num_equal} of {len(pairs)} equal ({len(set(ours.answers))} different answers)")
    return [*lines, f"here   {ours.engine}", f"there  {theirs.engine}"], num_equal
