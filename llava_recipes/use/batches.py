"""Answer many questions in batches, and keep the answers in a file that can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from pydantic import JsonValue

from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.files import kind_of_target, name_fault, real_path, replacing
from llava_recipes.model.generate import Answerer, Decoding, Prompt, PromptImage
from llava_recipes.recipe.foreign import unreadable
from llava_recipes.templates import Turn
from llava_recipes.use.questions import Question, raise_first

Line = dict[str, JsonValue]
UNFINISHED = ".unfinished"
_START_AGAIN = "start again with --overwrite instead of --resume"


class Asked(Protocol):
    """A question from a file: its place, the turns up to it, its images."""

    @property
    def index(self) -> int: ...

    @property
    def mark(self) -> Mark: ...

    @property
    def turns(self) -> tuple[Turn, ...]: ...

    @property
    def images(self) -> tuple[str, ...]: ...

    def prepared_images(self, answerer: Answerer) -> list[PromptImage]:
        """The images as the tower takes them. Raises RecipeError when one cannot be used."""
        ...


def check_questions(answerer: Answerer, questions: Sequence[Asked], decoding: Decoding) -> None:
    """Raise RecipeError when the template cannot write a question, or the context has no room for it.

    Images count as the fewest tokens that they can be.
    """
    least = answerer.least_image_tokens
    _check_room(answerer, questions, [[least] * len(question.images) for question in questions], decoding)


def answer_in_batches(
    answerer: Answerer, questions: Sequence[Asked], decoding: Decoding, *, batch_size: int, seed: int
) -> Iterator[list[str]]:
    """The answers of one batch of questions after another.

    Random numbers depend only on `seed` and the batch's first question, so that a part can be repeated.
    Raises RecipeError when an image cannot be decoded, or is too many tokens for the context.
    """
    for first in range(0, len(questions), batch_size):
        batch = questions[first : first + batch_size]
        images = [question.prepared_images(answerer) for question in batch]
        _check_room(answerer, batch, [[image.num_tokens for image in each] for each in images], decoding)
        features = iter(answerer.look([image for each in images for image in each]))
        prompts = [
            Prompt(answerer.prompt_ids(question.turns), tuple(next(features) for _ in question.images))
            for question in batch
        ]
        if decoding.temperature > 0:
            torch.manual_seed(seed + batch[0].index)
        yield answerer.answer(prompts, decoding)


def _check_room(
    answerer: Answerer, questions: Sequence[Asked], counts: Sequence[list[int]], decoding: Decoding
) -> None:
    """Raise RecipeError for questions that do not fit; `counts` are the tokens of each one's images."""
    problems = []
    for question, num_image_tokens in zip(questions, counts, strict=True):
        try:
            num_tokens = answerer.num_tokens(answerer.prompt_ids(question.turns), num_image_tokens)
        except ValueError as error:
            message = f"the question cannot be written: {error}"
            problems.append(Problem(message, code="output-cannot-be-written", mark=question.mark))
            continue
        problem = answerer.does_not_fit(num_tokens, num_image_tokens, decoding)
        if problem is not None:
            problems.append(replace(problem, mark=question.mark))
    raise_first(problems, of=len(questions))


def plain_line(question: Question, answer: str, *, key: str) -> Line:
    """The record as it was read, with the answer under `key`."""
    return {**question.values, key: answer}


def llava_line(question: Question, answer: str, *, model_id: str) -> Line:
    """An answer as the original writes it (llava/eval/model_vqa.py); `answer_id` is a digest, not random."""
    given = question.values.get("question_id", question.values.get("id", question.index))
    name = f"{model_id}\n{given}\n{answer}"
    return {
        "question_id": given,
        "prompt": question.text,
        "text": answer,
        "answer_id": hashlib.sha256(name.encode()).hexdigest()[:22],
        "model_id": model_id,
        "metadata": {},
    }


def check_answer_key(questions: Sequence[Question], key: str) -> None:
    """Raise RecipeError when the answer would replace a value of a record."""
    taken = [question for question in questions if key in question.values]
    if taken:
        raise RecipeError.of(
            f"records already have the key `{key}`, which the answers would replace",
            code="key-exists-in-records",
            mark=taken[0].mark,
            found=f"{len(taken):,} of {len(questions):,} records",
            hint="choose another key with --answer-key",
        )


def model_name(path: Path) -> str:
    """The folder's name, which the original calls `model_id`."""
    return real_path(path).name


class AnswersFile:
    """Answers that are written to `path` once all of them exist.

    Until then they are in `path.unfinished`, whose first line has the settings that they were made with.
    `num_done` is the number of answers from an earlier call.

    Raises RecipeError as `check_place` does, and when unfinished answers were made with other settings.
    """

    def __init__(
        self, path: Path, *, settings: dict[str, JsonValue], batch_size: int, resume: bool, overwrite: bool
    ) -> None:
        self.path = path
        self.unfinished = path.with_name(path.name + UNFINISHED)
        self._settings = json.dumps(settings, ensure_ascii=False)
        check_place(path, resume=resume, overwrite=overwrite)
        lines = self._lines_before() if resume else []
        # A batch that was cut short is repeated whole, so that its answers stay the same.
        self.num_done = len(lines) - len(lines) % batch_size
        with replacing(self.unfinished) as temporary:
            text = "".join(f"{line}\n" for line in [self._settings, *lines[: self.num_done]])
            temporary.write_text(text, encoding="utf-8")
        self._file = self.unfinished.open("a", encoding="utf-8")

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, lines: list[dict[str, JsonValue]]) -> None:
        """Add one batch of answers, and flush them to the disk."""
        self._file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Move the answers to `path`."""
        self._file.close()
        with replacing(self.path) as temporary, self.unfinished.open("rb") as source:
            source.readline()
            with temporary.open("wb") as target:
                while block := source.read(1 << 20):
                    target.write(block)
        self.unfinished.unlink()

    def _lines_before(self) -> list[str]:
        if not self.unfinished.exists():
            return []
        try:
            text = self.unfinished.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise unreadable(self.unfinished, error, hint=_START_AGAIN) from error
        whole = text[: text.rfind("\n") + 1].splitlines()
        if whole and whole[0] != self._settings:
            raise RecipeError.of(
                "these answers were started with other settings",
                code="answers-of-other-settings",
                mark=Mark(str(self.unfinished), 0, 0),
                found="\n".join(_differences(whole[0], self._settings)),
                hint=f"use the same settings, or {_START_AGAIN}",
            )
        for number, line in enumerate(whole[1:], start=2):
            if not _is_object(line):
                mark = Mark(str(self.unfinished), number, 1)
                message = "this line is not an answer: the file is damaged"
                raise RecipeError.of(message, code="answer-damaged", mark=mark, hint=_START_AGAIN)
        return whole[1:]


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def check_place(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise RecipeError when no answers can be written to `path`, or unfinished ones must not be replaced."""
    check_output(path, overwrite=overwrite)
    unfinished = path.with_name(path.name + UNFINISHED)
    _check_name(unfinished)
    if unfinished.exists() and not (resume or overwrite):
        raise RecipeError.of(
            f"{unfinished} contains unfinished answers",
            code="unfinished-answers",
            hint="continue with --resume, or start again with --overwrite",
        )


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise RecipeError when no file can be written to `path`, or an existing one must not be replaced."""
    if not os.path.isdir(path.parent):
        raise RecipeError.of(
            f"the folder of {path} does not exist",
            code="folder-does-not-exist",
            hint="create it, or choose another -o",
        )
    if os.path.isdir(path):
        raise RecipeError.of(
            f"{path} is a folder", code="path-is-a-folder", hint="pass the name of a file to -o"
        )
    _check_name(path)
    if path.exists() and not overwrite:
        hint = "choose another file, or replace it with --overwrite"
        raise RecipeError.of(f"{path} already exists", code="file-exists", hint=hint)


def _check_name(file: Path) -> None:
    """Raise RecipeError when no ordinary file can be written to this path."""
    fault = name_fault(file)
    if fault is not None:
        raise RecipeError.of(f"{file}: {fault}", code="output-cannot-be-written")
    kind = kind_of_target(file)
    if kind is not None:
        message = f"{file} is {kind}, not an ordinary file"
        raise RecipeError.of(message, code="not-an-ordinary-file", hint="pass the name of a file to -o")


def _differences(then: str, now: str) -> list[str]:
    try:
        before = json.loads(then)
    except (ValueError, RecursionError):
        before = None
    if not isinstance(before, dict):
        return ["the first line has no settings"]
    after: dict[str, JsonValue] = json.loads(now)
    return [
        f"{key}: {json.dumps(before.get(key))} then, {json.dumps(after.get(key))} now"
        for key in {**after, **before}
        if before.get(key) != after.get(key)
    ]
