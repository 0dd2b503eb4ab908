"""The Jinja text of a template writes what the template writes."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from llava_recipes.layouts import LAYOUTS, Template
from llava_recipes.runs.chat_template import jinja_of, wrapped
from llava_recipes.templates import Turn, spell

CONVERSATIONS = (
    ("<image>\nWhat is this?", "A box.", " And  this? ", "A hat.\n"),
    ("Compare <image> with <image>.", "The same."),
    ("No picture here", " Right.", "", "Still none."),
    ("What is in it? <image>", "Rain."),
)
PARTS = [{"type": "image"}, {"type": "text", "text": "What is this?"}]


def rendered(text: str, messages: list[dict[str, Any]], *, open_answer: bool) -> str:
    texts, _ = render_jinja_template([messages], chat_template=text, add_generation_prompt=open_answer)
    return str(texts[0])


def messages_of(texts: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {"role": ("user", "assistant")[position % 2], "content": text} for position, text in enumerate(texts)
    ]


@pytest.mark.parametrize("template", [name for name in get_args(Template) if name != "plain"])
def test_every_template_is_written_as_in_training(template: Template) -> None:
    for texts, start_end, open_answer in product(CONVERSATIONS, (False, True), (False, True)):
        texts = texts[:-1] if open_answer else texts
        turns = [Turn("gpt" if position % 2 else "human", text) for position, text in enumerate(texts)]
        ours = spell(
            template,
            turns,
            has_image=any("<image>" in text for text in texts),
            start_end=start_end,
            end_of_answer="</s>",
            open_answer=open_answer,
        )
        text = jinja_of(
            template, start_end=start_end, end_of_answer="</s>", system_prompt=None, after_image=""
        )
        assert rendered(text, messages_of(texts), open_answer=open_answer) == "".join(
            segment.text for segment in ours
        ), texts


@pytest.mark.parametrize("template", [name for name, layout in LAYOUTS.items() if layout.system is not None])
def test_a_system_prompt_takes_the_place_of_the_templates(template: Template) -> None:
    turns = [Turn("human", "Hello"), Turn("gpt", "Hi")]
    ours = spell(template, turns, has_image=False, start_end=False, system_prompt='Say "no".')
    expected = "".join(segment.text for segment in ours)
    messages = messages_of(("Hello", "Hi"))
    given = jinja_of(
        template, start_end=False, end_of_answer="</s>", system_prompt='Say "no".', after_image=""
    )
    assert rendered(given, messages, open_answer=False) == expected
    own = jinja_of(template, start_end=False, end_of_answer="</s>", system_prompt=None, after_image="")
    asked = [{"role": "system", "content": 'Say "no".'}, *messages]
    assert rendered(own, asked, open_answer=False) == expected


def test_parts_of_a_message_are_a_picture_and_its_question() -> None:
    for template in ("v1", "qwen", "llama_3"):
        text = jinja_of(template, start_end=False, end_of_answer="</s>", system_prompt=None, after_image="")
        as_parts = rendered(text, [{"role": "user", "content": PARTS}], open_answer=True)
        assert as_parts == rendered(text, messages_of(("<image>\nWhat is this?",)), open_answer=True)


def test_plain_holds_pictures_and_captions() -> None:
    text = jinja_of("plain", start_end=False, end_of_answer="</s>", system_prompt=None, after_image="")
    turns = messages_of(("<image>\nDescribe it.", "A box."))
    assert rendered(text, turns, open_answer=False) == "<image>A box.\n"
    assert rendered(text, turns[:1], open_answer=True) == "<image>"


def test_a_tokenizers_own_template_takes_pictures_too() -> None:
    own = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    text = wrapped(own, start_end=False, system_prompt="Be brief.", after_image=" ")
    said = rendered(text, [{"role": "user", "content": PARTS}], open_answer=False)
    assert said == "<|system|>Be brief.<|end|><|user|><image> \nWhat is this?<|end|>"
