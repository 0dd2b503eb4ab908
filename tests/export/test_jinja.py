"""The Jinja text of a template writes what the template writes."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from llava_recipes.export.jinja import jinja_of, wrapped
from llava_recipes.layouts import LAYOUTS, Template
from llava_recipes.templates import Turn, spell
from tests.export import llama_cpp

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
        expected = "".join(segment.text for segment in ours)
        assert rendered(text, messages_of(texts), open_answer=open_answer) == expected, texts
        # With the little that llama.cpp's Jinja knows, the same.
        assert llama_cpp.render(text, messages_of(texts), open_answer=open_answer) == expected, texts


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


AWKWARD = 'Say "no" \\ \x07\x0b\x85 é 😀 %} }}\r\n\t\u2028{{ x }}'


@pytest.mark.parametrize("template", [name for name, layout in LAYOUTS.items() if layout.system is not None])
def test_any_system_prompt_is_written_as_it_stands(template: Template) -> None:
    """llama.cpp's Jinja has no escapes for code points, and stops at one."""
    turns = [Turn("human", "Hello")]
    ours = spell(template, turns, has_image=False, start_end=False, system_prompt=AWKWARD, open_answer=True)
    text = jinja_of(template, start_end=False, end_of_answer="</s>", system_prompt=AWKWARD, after_image="")
    expected = "".join(segment.text for segment in ours)
    assert AWKWARD in expected
    assert rendered(text, messages_of(("Hello",)), open_answer=True) == expected
    assert llama_cpp.render(text, messages_of(("Hello",)), open_answer=True) == expected
    own = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    around = wrapped(own, start_end=False, system_prompt=AWKWARD, after_image="")
    assert llama_cpp.render(around, messages_of(("Hello",)), open_answer=False) == f"{AWKWARD}|Hello|"


@pytest.mark.parametrize("mark", [llama_cpp.MARK, llama_cpp.SERVERS_MARK])
@pytest.mark.parametrize("template", get_args(Template))
def test_llama_cpps_marks_are_images_as_parts_are(template: Template, mark: str) -> None:
    """llama.cpp joins a message's parts to one text, with a mark for each image and nothing between."""
    image = {"type": "image"}
    messages = (
        (f"{mark}What?", [image, said("What?")]),
        (f"{mark}\nWhat?", [image, said("What?")]),
        (f"What?{mark}", [said("What?"), image]),
        (f"{mark}{mark}Two?", [image, image, said("Two?")]),
        (f"A {mark} B", [said("A "), image, said(" B")]),
        ("None.", [said("None.")]),
    )
    for start_end, (content, parts) in product((False, True), messages):
        options: dict[str, Any] = {"start_end": start_end, "end_of_answer": "</s>", "system_prompt": None}
        theirs = jinja_of(template, reader="llama.cpp", after_image="", **options)
        ours = jinja_of(template, after_image="", **options)
        expected = rendered(ours, [{"role": "user", "content": parts}], open_answer=True)
        written = llama_cpp.render(theirs, [{"role": "user", "content": content}], open_answer=True)
        assert written == expected.replace("<image>", mark), content


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_a_tokenizers_own_template_takes_llama_cpps_marks() -> None:
    own = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    text = wrapped(own, start_end=True, system_prompt=None, after_image="", reader="llama.cpp")
    said = llama_cpp.render(text, [{"role": "user", "content": "<__media__>What?"}], open_answer=False)
    assert said == "<|user|><im_start><__media__><im_end>\nWhat?<|end|>"


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages[0]['content'].count('a') }}",
        "{{ messages[0]['content'].partition('a') }}",
        "{{ messages[0]['content'].replace('a', 'b', 1) }}",
        "{{ messages[0]['content'] | wordcount }}",
        "{{ messages[0]['content'] is lower }}",
        "{{ cycler(1) }}",
        r"{{ '\u00e9' }}",
    ],
)
def test_what_llama_cpp_lacks_is_noticed(text: str) -> None:
    with pytest.raises(AssertionError):
        llama_cpp.render(text, messages_of(("banana",)), open_answer=False)
