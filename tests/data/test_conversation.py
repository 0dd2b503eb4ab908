"""Records of both kinds, and what is wrong with those that are none."""

from __future__ import annotations

from typing import Any

import pytest

from llava_recipes.data.conversation import MalformedRecord, parse_record, word_length
from llava_recipes.templates import Turn

PART: dict[str, Any] = {"type": "image"}


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def parsed(**values: Any) -> Any:
    return parse_record(values, index=0, folder="images")


def test_messages_are_conversations() -> None:
    record = parsed(
        id=7,
        images=["a.png", "b.png", "c.png"],
        messages=[
            message("user", [PART, {"type": "text", "text": "What?", "image": None}, PART]),
            message("assistant", "A cat."),
            message("user", "<image>\nAnd this?"),
            message("assistant", [{"type": "text", "text": "A dog."}]),
        ],
    )
    assert record.id == "7"
    assert record.images == ("a.png", "b.png", "c.png")
    assert record.turns == (
        Turn("human", "<image>\nWhat?\n<image>"),
        Turn("gpt", "A cat."),
        Turn("human", "<image>\nAnd this?"),
        Turn("gpt", "A dog."),
    )


def test_conversations_are_read_where_both_are_there() -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    assert parsed(conversations=turns, messages=[message("user", "other")]).turns[0].text == "Hi"
    assert parsed(conversations=None, messages=[message("user", "other")]).turns[0].text == "other"


@pytest.mark.parametrize(
    ("values", "length"),
    [
        ({"conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]}, -3),
        ({"image": "a.png", "conversations": [{"from": "human", "value": "<image>\na b"}]}, 3),
        ({"images": [], "messages": [message("user", [PART, {"type": "text", "text": "a b"}])]}, -2),
        ({"images": ["a"], "messages": [message("user", "a"), message("assistant", "b c d")]}, 4),
        ({"messages": [3, message("user", 4)]}, 0),
    ],
)
def test_words_are_counted(values: dict[str, Any], length: int) -> None:
    assert word_length(values) == length


@pytest.mark.parametrize(
    ("values", "reported", "hint"),
    [
        ({"messages": []}, "`messages` is not a list of turns, or is empty", None),
        ({"messages": ["a"]}, "message 0 is not a mapping", None),
        (
            {"messages": [message("system", "a")]},
            "message 0 has an unknown role",
            "remove it: the template writes the system text",
        ),
        ({"messages": [message("human", "a")]}, "message 0 has an unknown role", 'did you mean "user"?'),
        (
            {"messages": [message("tool", "a")]},
            "message 0 has an unknown role",
            'write "user" or "assistant"',
        ),
        ({"messages": [message("user", None)]}, "the `content` of message 0 is not a string", None),
        (
            {"messages": [message("user", [{"type": "video"}])]},
            "message 0 has a part that is neither text nor an image",
            'parts are {"type": "image"} and {"type": "text", "text": …}',
        ),
        (
            {"messages": [message("assistant", "<image>"), message("user", "a")]},
            "an answer contains the tag",
            None,
        ),
        (
            {"image": "a.png", "images": ["a.png"], "messages": [message("user", "<image>")]},
            "it has both `image` and `images`",
            "keep one of them",
        ),
        (
            {"images": [{"path": "a.png"}], "messages": [message("user", "<image>")]},
            "`images` is not a path or a list of paths",
            None,
        ),
        (
            {"images": ["a.png"] * 3, "messages": [message("user", [PART, PART])]},
            "<image> tags and images differ in number",
            "write one <image> tag in a human turn for every image",
        ),
    ],
)
def test_what_is_no_record(values: dict[str, Any], reported: str, hint: str | None) -> None:
    with pytest.raises(MalformedRecord) as caught:
        parsed(**values)
    assert reported in caught.value.message
    assert caught.value.hint == hint
