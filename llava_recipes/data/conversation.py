"""From the values of one record, as JSON or Parquet has them, to its turns and images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from llava_recipes.layouts import IMAGE
from llava_recipes.templates import Turn, spoken_turns

_ROLES: dict[str, Literal["human", "gpt"]] = {"human": "human", "gpt": "gpt"}
_MESSAGE_ROLES: dict[str, Literal["human", "gpt"]] = {"user": "human", "assistant": "gpt"}
_OTHER_NAMES = {"user": "human", "assistant": "gpt", "model": "gpt", "bot": "gpt"}
_OTHER_MESSAGE_NAMES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


@dataclass(frozen=True)
class Record:
    """One sample as its owner wrote it.

    `index` counts over all sources, `images` are paths inside `folder`. With `embedded` the annotation file
    may contain the images themselves, and `images` are names for them.
    """

    index: int
    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    folder: str | None
    embedded: bool = False


class MalformedRecord(Exception):
    """What is wrong with a record, without saying which record it is."""

    def __init__(self, message: str, *, found: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.found, self.hint = message, found, hint


def parse_record(
    values: Mapping[str, object], *, index: int, folder: str | None, embedded: bool = False
) -> Record:
    """The record with these values. Raises MalformedRecord."""
    turns = _turns(values)
    images = images_of(values, embedded=embedded)
    try:
        spoken_turns(turns)
    except ValueError as error:
        raise MalformedRecord(str(error)) from None
    if images and folder is None and not embedded:
        raise MalformedRecord(
            "it has an image, but its source has no image folder", hint="set `images` in the source"
        )
    num_tags = sum(turn.text.count(IMAGE) for turn in turns)
    if num_tags != len(images):
        raise MalformedRecord(
            f"{IMAGE} tags and images differ in number",
            found=f"{_count(num_tags, 'tag')}, {_count(len(images), 'image')}",
            hint=f"write one {IMAGE} tag in a human turn for every image",
        )
    return Record(index, record_id(values), images, turns, folder, embedded)


def record_id(values: Mapping[str, object]) -> str:
    """The record's id as a string; empty where it has none."""
    return str(values.get("id", ""))


def has_conversation(values: Mapping[str, object]) -> bool:
    """Whether a mapping could be a record at all."""
    return "conversations" in values or "messages" in values


def word_length(values: Mapping[str, object]) -> int:
    """The original's length: words of all turns, negative without an image. Malformed parts count 0."""
    num_words = sum(len(text.split()) for text in _texts(values))
    has_images = any(values.get(key) not in (None, []) for key in ("image", "images"))
    return num_words if has_images else -num_words


def _texts(values: Mapping[str, object]) -> Iterator[str]:
    key, text_key = ("conversations", "value") if "conversations" in values else ("messages", "content")
    conversation = values.get(key)
    for turn in conversation if isinstance(conversation, list) else []:
        content = turn.get(text_key) if isinstance(turn, dict) else None
        for text in (
            [part.get("text") for part in content if isinstance(part, dict)]
            if isinstance(content, list)
            else [content]
        ):
            if isinstance(text, str):
                yield text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _shown(value: object) -> str:
    return json.dumps(value, default=repr)[:60]


def images_of(values: Mapping[str, object], *, embedded: bool = False) -> tuple[str, ...]:
    """Paths of a record's images, names for those inside the file. Raises MalformedRecord."""
    given, several = values.get("image"), values.get("images")
    if given is not None and several is not None:
        raise MalformedRecord("it has both `image` and `images`", hint="keep one of them")
    key = "image" if several is None else "images"
    given = several if given is None else given
    listed = given if isinstance(given, list) else [] if given is None else [given]
    return tuple(_image(image, number, key, embedded=embedded) for number, image in enumerate(listed))


def _image(image: object, number: int, key: str, *, embedded: bool) -> str:
    if isinstance(image, dict) and embedded:
        image = image.get("path") or f"image {number}"
    if not isinstance(image, str) or not image:
        raise MalformedRecord(f"`{key}` is not a path or a list of paths", found=_shown(image))
    return image


def _turns(values: Mapping[str, object]) -> tuple[Turn, ...]:
    if not has_conversation(values):
        raise MalformedRecord("it has no `conversations`", found=f"keys {', '.join(values) or 'none'}"[:80])
    key = "conversations" if values.get("conversations") is not None else "messages"
    key = key if key in values else "conversations"
    conversation = values[key]
    if not isinstance(conversation, list) or not conversation:
        raise MalformedRecord(f"`{key}` is not a list of turns, or is empty", found=_shown(conversation))
    read = _turn if key == "conversations" else _message
    turns = tuple(read(value, position) for position, value in enumerate(conversation))
    check_characters(turns)
    return turns


def check_characters(turns: Iterable[Turn]) -> None:
    """Raise MalformedRecord for an unpaired surrogate, which JSON can spell and no tokenizer takes."""
    for position, turn in enumerate(turns):
        try:
            turn.text.encode()
        except UnicodeEncodeError as error:
            raise MalformedRecord(
                f"the text of turn {position} contains an unpaired surrogate (invalid Unicode)",
                found=_shown(turn.text[max(0, error.start - 20) : error.end]),
                hint="remove it, or the record",
            ) from None


def _turn(value: object, position: int) -> Turn:
    if not isinstance(value, dict):
        raise MalformedRecord(f"turn {position} is not a mapping", found=_shown(value))
    role, text = value.get("from"), value.get("value")
    if not isinstance(role, str) or role not in _ROLES:
        near = _OTHER_NAMES.get(str(role))
        hint = f'did you mean "{near}"?' if near else 'write "human" or "gpt"'
        raise MalformedRecord(f"turn {position} has an unknown role", found=_shown(role), hint=hint)
    if not isinstance(text, str):
        raise MalformedRecord(f"the `value` of turn {position} is not a string", found=_shown(text))
    return Turn(_ROLES[role], text)


def _message(value: object, position: int) -> Turn:
    """A turn as chat data sets write it: `role`, and `content` as a string or a list of typed parts."""
    if not isinstance(value, dict):
        raise MalformedRecord(f"message {position} is not a mapping", found=_shown(value))
    role = value.get("role")
    if not isinstance(role, str) or role not in _MESSAGE_ROLES:
        near = _OTHER_MESSAGE_NAMES.get(str(role))
        hint = f'did you mean "{near}"?' if near else 'write "user" or "assistant"'
        if role == "system":
            hint = "remove it: the template writes the system text"
        raise MalformedRecord(f"message {position} has an unknown role", found=_shown(role), hint=hint)
    return Turn(_MESSAGE_ROLES[role], _content(value.get("content"), position))


def _content(content: object, position: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise MalformedRecord(f"the `content` of message {position} is not a string", found=_shown(content))
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = IMAGE if kind == "image" else part.get("text") if kind == "text" else None
        if not isinstance(text, str):
            hint = 'parts are {"type": "image"} and {"type": "text", "text": …}'
            message = f"message {position} has a part that is neither text nor an image"
            raise MalformedRecord(message, found=_shown(part), hint=hint)
        texts.append(text)
    return "\n".join(texts)
