"""Questions from a file: what is asked about which images, each record as its owner wrote it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from llava_recipes.data.conversation import MalformedRecord, check_letters, images_of
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
    """The images were put at the front, since the record does not say where they go."""

    @property
    def mark(self) -> Mark:
        """Where the record begins."""
        return self.file.mark(self.index)

    @property
    def text(self) -> str:
        """What is asked last, as the record has it."""
        return self.turns[-1].text

    def prepared_images(self, answerer: Answerer) -> list[PromptImage]:
        """The images as the tower takes them. Raises RecipeError when one cannot be used."""
        try:
            return [read_prepared(self.folder, name, answerer.prepare) for name in self.images]
        except BadImage as error:
            raise RecipeError(_bad_image(error, self.mark)) from None


def read_questions(file: str, *, images: str) -> list[Question]:
    """All records of a JSON or JSONL file.

    Raises RecipeError that names the line of every record that cannot be asked: no question in it, roles that
    do not alternate, tags and images that differ in number, an image that is missing or is none.
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
            problems.append(_bad_image(error, records.mark(index)))
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
    """Raise a RecipeError with the first few problems and how many more there are, if there are any."""
    if not problems:
        return
    hidden = len(problems) - NUM_SHOWN_PROBLEMS
    more = (
        [Problem(f"{hidden} more of {of} records have such problems", code="more-problems")]
        if hidden > 0
        else []
    )
    raise RecipeError(*problems[:NUM_SHOWN_PROBLEMS], *more)


def _check_rest(values: dict[str, JsonValue]) -> None:
    """Raise MalformedRecord for what no file can hold: all of a record goes into the answers."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        hint = "remove it, or the record"
        message = "the record holds an unpaired surrogate (invalid Unicode)"
        raise MalformedRecord(message, hint=hint) from None


def _question(index: int, values: dict[str, JsonValue], folder: str, file: AnnotationFile) -> Question:
    turns, images = _turns(values), _images(values)
    check_letters(turns)
    _check_rest(values)
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
            found=f"{num_tags} tags, {len(images)} images",
            hint=f"write {IMAGE} once for every image, or not at all",
        )
    return Question(index, values, tuple(spoken), images, folder, file, had_no_tag)


def _turns(values: dict[str, JsonValue]) -> list[Turn]:
    if "conversations" in values:
        return _turns_before_the_last_answer(values["conversations"])
    given = [key for key in QUESTION_KEYS if key in values]
    if len(given) != 1:
        names = " or ".join(f"`{key}`" for key in QUESTION_KEYS)
        raise MalformedRecord(
            "the record asks nothing" if not given else "the record says in several keys what is asked",
            found=f"keys {', '.join(values) or 'none'}"[:100],
            hint=f"give one of {names}, or `conversations`",
        )
    text = values[given[0]]
    if not isinstance(text, str):
        raise MalformedRecord(f"`{given[0]}` is not text", found=json.dumps(text)[:60])
    return [Turn("human", text)]


def _turns_before_the_last_answer(conversation: JsonValue) -> list[Turn]:
    """A conversation up to its last human turn; what stands after it is what the model is asked for."""
    listed = conversation if isinstance(conversation, list) else []
    turns = []
    for place, turn in enumerate(listed):
        role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if role not in ("human", "gpt") or not isinstance(text, str):
            hint = 'write {"from": "human" or "gpt", "value": "…"}'
            raise MalformedRecord(f"turn {place} is not one", found=json.dumps(turn)[:60], hint=hint)
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


def _bad_image(error: BadImage, mark: Mark) -> Problem:
    hint = "paths start from --images, by default the folder of the input"
    return Problem(
        f"{error.file}: this image cannot be used", code="bad-image", mark=mark, found=error.reason, hint=hint
    )
