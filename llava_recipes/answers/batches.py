"""Answers to many questions, several at a time, in the order of the questions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from pydantic import JsonValue

from llava_recipes.answers.questions import Question, raise_first
from llava_recipes.files import real_path
from llava_recipes.model.answering import Answerer, Prompt, PromptImage
from llava_recipes.model.generate import Decoding
from llava_recipes.recipe.errors import Mark, Problem, RecipeError
from llava_recipes.templates import Turn

Line = dict[str, JsonValue]


class Asked(Protocol):
    """A question from a file: where it stands, what was said before, which pictures it is about."""

    @property
    def index(self) -> int: ...

    @property
    def mark(self) -> Mark: ...

    @property
    def turns(self) -> tuple[Turn, ...]: ...

    @property
    def images(self) -> tuple[str, ...]: ...

    def prepared_images(self, answerer: Answerer) -> list[PromptImage]:
        """The pictures as the tower takes them. Raises RecipeError when one cannot be used."""
        ...


def check_questions(answerer: Answerer, questions: Sequence[Asked], decoding: Decoding) -> None:
    """Raise RecipeError when the template cannot hold a question, or the context its answer."""
    problems = []
    for question in questions:
        try:
            input_ids = answerer.prompt_ids(question.turns)
        except ValueError as error:
            problems.append(
                Problem(f"it cannot be written: {error}", code="output-cannot-be-written", mark=question.mark)
            )
            continue
        counts = [answerer.least_picture_tokens] * len(question.images)
        num_tokens = answerer.num_tokens(input_ids, counts)
        problem = answerer.does_not_fit(num_tokens, counts, decoding)
        if problem is not None:
            problems.append(replace(problem, mark=question.mark))
    raise_first(problems, of=len(questions))


def answer_in_batches(
    answerer: Answerer, questions: Sequence[Asked], decoding: Decoding, *, batch_size: int, seed: int
) -> Iterator[list[str]]:
    """The answers of one batch of questions after another.

    What is drawn depends on `seed` and the batch's first question alone, so that a part can be made again.
    Raises RecipeError when a picture cannot be decoded.
    """
    for first in range(0, len(questions), batch_size):
        batch = questions[first : first + batch_size]
        pictures = [question.prepared_images(answerer) for question in batch]
        _check_room(answerer, batch, pictures, decoding)
        seen = iter(answerer.look([picture for each in pictures for picture in each]))
        prompts = [
            Prompt(answerer.prompt_ids(question.turns), tuple(next(seen) for _ in shown))
            for question, shown in zip(batch, pictures, strict=True)
        ]
        if decoding.temperature > 0:
            torch.manual_seed(seed + batch[0].index)
        yield answerer.answer(prompts, decoding)


def _check_room(
    answerer: Answerer, batch: Sequence[Asked], pictures: Sequence[Sequence[PromptImage]], decoding: Decoding
) -> None:
    """Raise RecipeError when a question's own pictures are too many tokens for the context."""
    problems = []
    for question, shown in zip(batch, pictures, strict=True):
        counts = [picture.num_tokens for picture in shown]
        num_tokens = answerer.num_tokens(answerer.prompt_ids(question.turns), counts)
        problem = answerer.does_not_fit(num_tokens, counts, decoding)
        if problem is not None:
            problems.append(replace(problem, mark=question.mark))
    raise_first(problems, of=len(batch))


def plain_line(question: Question, answer: str, *, key: str) -> Line:
    """The record as it came, with the answer."""
    return {**question.values, key: answer}


def llava_line(question: Question, answer: str, *, model_id: str) -> Line:
    """The original's form of an answer (llava/eval/model_vqa.py); `answer_id` is a digest, not drawn."""
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
    """Raise RecipeError when the answer would take the place of something in a record."""
    taken = [question for question in questions if key in question.values]
    if taken:
        raise RecipeError(
            Problem(
                f"records have the key `{key}` already, which the answers would replace",
                code="key-exists-in-records",
                mark=taken[0].mark,
                found=f"{len(taken)} of {len(questions)} records",
                hint="choose another with --answer-key",
            )
        )


def model_name(path: Path) -> str:
    """What the original calls `model_id`: the folder's name."""
    return real_path(path).name
