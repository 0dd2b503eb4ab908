"""Read questions and their images from a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from llava_recipes.data.conversation import MalformedRecord, check_characters, images_of
from llava_recipes.data.images import BadImage, check_image, read_prepared
from llava_recipes.data.records import NUM_SHOWN_PROBLEMS
from llava_recipes.data.scan import AnnotationFile
from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.layouts import IMAGE
from llava_recipes.model.generate import Answerer, PromptImage
from llava_recipes.templates import Turn, spoken_turns

QUESTION_KEYS = ("prompt", "question", "text")


@dataclass(frozen=True)
class Question:
    """One record: a conversation that ends with a question, and its images inside `folder`."""

    index: int
    values: dict[str, JsonValue]
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    folder: str
    file: AnnotationFile
    had_no_tag: bool
    """The images were put in front, since the record has no image tag."""

    @property
    def mark(self) -> Mark:
        """The place of the record in its file."""
        return self.file.mark(self.index)

    @property
    def text(self) -> str:
        """The last question, as in the record."""
        return self.turns[-1].text

    def prepared_images(self, answerer: Answerer) -> list[PromptImage]:
        """The images as the tower takes them. Raises RecipeError when one cannot be used."""
        try:
            return [read_prepared(self.folder, name, answerer.prepare) for name in self.images]
        except BadImage as error:
            raise RecipeError(_image_problem(error, self.mark)) from None


def read_questions(file: str, *, images: str) -> list[Question]:
    """All records of a JSON or JSONL file.

    Raises RecipeError with the line of every bad record: no question, roles that do not alternate, numbers of
    tags and images that differ, an image that is missing or isn't one.
    """
    records = AnnotationFile(file)
    questions: list[Question] = []
    problems: list[Problem] = []
    for index in range(len(records)):
        try:
            question = _question(index, json.loads(records.text(index)), images, records)
            for name in question.images:
                check_image(images, name)
        except BadImage as error:
            problems.append(_image_problem(error, records.mark(index)))
        except MalformedRecord as error:
            mark = records.mark(index)
            problems.append(
                Problem(error.message, code="malformed-record", mark=mark, found=error.found, hint=error.hint)
            )
        else:
            questions.append(question)
    raise_first(problems, of=len(records))
    return questions


def raise_first(problems: Sequence[Problem], *, of: int) -> None:
    """Raise RecipeError with the first few problems, if any, and the number of the others."""
    shown, num_hidden = list(problems[:NUM_SHOWN_PROBLEMS]), len(problems) - NUM_SHOWN_PROBLEMS
    if num_hidden > 0:
        verb = "has" if num_hidden == 1 else "have"
        message = f"{num_hidden:,} more of {of:,} records {verb} such problems"
        shown.append(Problem(message, code="more-problems"))
    if shown:
        raise RecipeError(*shown)


def _question(index: int, values: dict[str, JsonValue], folder: str, file: AnnotationFile) -> Question:
    turns, images = _turns(values), _images(values)
    check_characters(turns)
    try:
        # The whole record is written with its answer.
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        message = "the record contains an unpaired surrogate (invalid Unicode)"
        raise MalformedRecord(message, hint="remove it, or the record") from None
    try:
        spoken = spoken_turns(turns)
    except ValueError as error:
        raise MalformedRecord(str(error)) from None
    num_tags = sum(turn.text.count(IMAGE) for turn in spoken)
    had_no_tag = bool(images) and num_tags == 0
    if had_no_tag:
        spoken[0] = Turn("human", f"{IMAGE}\n" * len(images) + spoken[0].text)
    elif num_tags != len(images):
        raise MalformedRecord(
            f"{IMAGE} tags and images differ in number",
            found=f"{num_tags} tag{'s' * (num_tags != 1)}, {len(images)} image{'s' * (len(images) != 1)}",
            hint=f"write {IMAGE} once for every image, or not at all",
        )
    return Question(index, values, tuple(spoken), images, folder, file, had_no_tag)


def _turns(values: dict[str, JsonValue]) -> list[Turn]:
    if "conversations" in values:
        return _turns_to_last_question(values["conversations"])
    given = [key for key in QUESTION_KEYS if key in values]
    if len(given) != 1:
        names = " or ".join(f"`{key}`" for key in QUESTION_KEYS)
        raise MalformedRecord(
            "the record has no question" if not given else "the record has several questions",
            found=f"keys {', '.join(values) or 'none'}"[:100],
            hint=f"write one of {names}, or `conversations`",
        )
    text = values[given[0]]
    if not isinstance(text, str):
        raise MalformedRecord(f"`{given[0]}` is not a string", found=json.dumps(text)[:60])
    return [Turn("human", text)]


def _turns_to_last_question(conversation: JsonValue) -> list[Turn]:
    """A conversation up to its last human turn; the model is to write what comes after it."""
    listed = conversation if isinstance(conversation, list) else []
    turns = []
    for place, turn in enumerate(listed):
        role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if role not in ("human", "gpt") or not isinstance(text, str):
            hint = 'write {"from": "human" or "gpt", "value": "…"}'
            raise MalformedRecord(f"turn {place} is malformed", found=json.dumps(turn)[:60], hint=hint)
        turns.append(Turn("human" if role == "human" else "gpt", text))
    while turns and turns[-1].role == "gpt":
        turns.pop()
    if not turns:
        raise MalformedRecord("`conversations` has no human turn", found=json.dumps(conversation)[:60])
    return turns


def _images(values: dict[str, JsonValue]) -> tuple[str, ...]:
    if None not in (values.get("image"), values.get("images")):
        raise MalformedRecord("the record has both `image` and `images`", hint="keep one of the two")
    return images_of(values)


def _image_problem(error: BadImage, mark: Mark) -> Problem:
    message = f"the image {error.file} cannot be used"
    hint = "paths start from --images, by default the folder of the input"
    return Problem(message, code="bad-image", mark=mark, found=error.reason, hint=hint)
