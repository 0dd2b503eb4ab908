"""A conversation template as the Jinja text that transformers, vLLM and llama.cpp render for chat requests.

It writes what `templates.spell` writes: images as in training, and its system prompt unless the request has
one. A message's content is text with `<image>` tags, or a list of parts; for llama.cpp it is text with
llama.cpp's marks instead of the tags.

llama.cpp has another Jinja (common/jinja/value.cpp), with some methods of strings (not `count`), and the
escapes of `_ESCAPES`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from llava_recipes.data.prompts import Prompts
from llava_recipes.export.checking import QUESTION
from llava_recipes.layouts import LAYOUTS, Layout, Template
from llava_recipes.templates import IMAGE_END, IMAGE_START, Turn
from llava_recipes.use.opened import OpenedRun

Reader = Literal["hf", "llama.cpp"]
"""What renders the text: transformers and vLLM, or llama.cpp."""

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}

_PARTS = """\
{%- macro words(message) -%}
  {%- if message['content'] is string -%}
    {{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] in ('image', 'image_url') -%}
        {{- '<image>\\n' -}}
      {%- elif part['type'] == 'text' -%}
        {{- part['text'] -}}
      {%- else -%}
        {{- raise_exception('this model takes text and images') -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set IMAGE = '<image>' -%}
"""

# llama-mtmd-cli marks an image as <__media__>, its server as <__media_ and a random word.
_MARKS = """\
  {%- set pieces = text.split('<__media') -%}
  {%- if pieces | length > 1 -%}
    {%- set IMAGE = '<__media' + pieces[1].split('__>')[0] + '__>' -%}
    {%- set text = text.replace(IMAGE, IMAGE + '\\n').replace(IMAGE + '\\n\\n', IMAGE + '\\n') -%}
  {%- endif -%}
"""

_PLAIN = """\
{%- for message in messages -%}
  {%- set text = words(message) -%}
  # MARKS
  {%- if message['role'] == 'user' -%}
    {{- (BEFORE_IMAGE + IMAGE + BEHIND_IMAGE) * (text.split(IMAGE) | length - 1) -}}
  {%- else -%}
    {{- text + '\\n' -}}
  {%- endif -%}
{%- endfor -%}
"""

_SYSTEM = """\
{%- set turns = messages -%}
{%- set system = SYSTEM -%}
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set system = words(messages[0]) -%}
  {%- set turns = messages[1:] -%}
{%- endif -%}
{{- BEFORE_SYSTEM + system + AFTER_SYSTEM -}}
"""

_NO_SYSTEM = """\
{%- set turns = messages -%}
"""

_TURNS = """\
{%- for message in turns -%}
  {%- set text = words(message) -%}
  # MARKS
  {%- if message['role'] == 'user' -%}
    {%- set num_images = text.split(IMAGE) | length - 1 -%}
    {%- if num_images > 0 -%}
      {%- set tag = BEFORE_IMAGE + IMAGE + BEHIND_IMAGE -%}
      {%- if INTERLEAVED and (num_images > 1 or text.startswith(IMAGE)) -%}
        {%- set text = text.replace(IMAGE, tag) -%}
      {%- else -%}
        {%- set text = ((tag + '\\n') * num_images + text.replace(IMAGE, '').strip()).strip() -%}
      {%- endif -%}
    {%- endif -%}
    {%- if TRIMS -%}{%- set text = text.strip() -%}{%- endif -%}
    {%- set before = FIRST_HUMAN if loop.first else HUMAN -%}
    {%- if BARE and not text -%}
      {{- MARK + before.rstrip() -}}
    {%- else -%}
      {{- MARK + before + text + AFTER_HUMAN -}}
    {%- endif -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- if TRIMS -%}{%- set text = text.strip() -%}{%- endif -%}
    {%- if LEADING or not loop.first -%}
      {{- MARK + GPT + ('' if BARE and not text else GAP) + text + END + AFTER -}}
    {%- endif -%}
  {%- else -%}
    {{- raise_exception('conversations have the roles system (first), user and assistant') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- MARK + GPT -}}
{%- elif MARK -%}
  {{- MARK + ' ' -}}
{%- endif -%}
"""

# A tokenizer's template takes text, with `<image>` as in training.
_FLATTEN = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- set text = words(message) -%}
  # MARKS
  {%- if TRIMS -%}{%- set text = text.strip() -%}{%- endif -%}
  {%- set text = text.replace(IMAGE, BEFORE_IMAGE + IMAGE + BEHIND_IMAGE) -%}
  {%- set flat.messages = flat.messages + [{'role': message['role'], 'content': text}] -%}
{%- endfor -%}
{%- set messages = SYSTEM_MESSAGE + flat.messages -%}
"""
_IS_LIST, _HAS_MARKS = "message['content'] is not string", "pieces | length > 1"


def jinja_of(
    template: Template,
    *,
    start_end: bool,
    end_of_answer: str,
    system_prompt: str | None,
    after_image: str,
    before_all: str = "",
    reader: Reader = "hf",
) -> str:
    """The Jinja text of a template.

    end_of_answer  the tokenizer's end-of-sequence token
    system_prompt  replaces the template's
    start_end      put `<im_start>` and `<im_end>` around every image
    after_image    written after every `<image>`: a space, for tokenizers that treat the text after an image
                   as a beginning
    before_all     written first: a space, if llama.cpp must not put one
    """
    layout = LAYOUTS[template]
    is_plain = template == "plain"
    # No text follows an image in `plain`.
    before, behind = _around_image(layout, start_end=start_end, after_image="" if is_plain else after_image)
    if is_plain:
        constants = _constants({"BEFORE_IMAGE": before, "BEHIND_IMAGE": behind})
        return constants + _PARTS + _first(before_all) + _for_reader(_PLAIN, reader)
    if system_prompt is not None:
        layout = replace(layout, system=system_prompt)
    text = (
        _PARTS
        + _first(before_all)
        + (_NO_SYSTEM if layout.system is None else _SYSTEM)
        + _for_reader(_TURNS, reader)
    )
    values: dict[str, str | bool] = {
        "BEFORE_SYSTEM": layout.opening[0],
        "AFTER_SYSTEM": layout.opening[1],
        "SYSTEM": layout.system or "",
        "FIRST_HUMAN": layout.human[0] if layout.first_human is None else layout.first_human,
        "AFTER_HUMAN": layout.human[1],
        "HUMAN": layout.human[0],
        "GPT": layout.gpt,
        "GAP": layout.gap,
        "END": end_of_answer if layout.end is None else layout.end,
        "AFTER": layout.after,
        "MARK": layout.mark,
        "BEFORE_IMAGE": before,
        "BEHIND_IMAGE": behind,
        "INTERLEAVED": layout.interleaved,
        "TRIMS": layout.trims,
        "BARE": layout.bare_when_empty,
        "LEADING": layout.leading_answer,
    }
    return _constants(values) + text


def wrapped(
    own: str,
    *,
    start_end: bool,
    system_prompt: str | None,
    after_image: str,
    before_all: str = "",
    reader: Reader = "hf",
) -> str:
    """A tokenizer's chat template, extended to messages with images."""
    before, behind = (IMAGE_START, IMAGE_END) if start_end else ("", after_image)
    message = "" if system_prompt is None else f"{{'role': 'system', 'content': {_literal(system_prompt)}}}"
    constants = _constants({"BEFORE_IMAGE": before, "BEHIND_IMAGE": behind})
    constants += f"{{%- set SYSTEM_MESSAGE = [{message}] -%}}\n"
    trims = _IS_LIST if reader == "hf" else f"{_IS_LIST} or {_HAS_MARKS}"
    flatten = _for_reader(_FLATTEN, reader).replace("TRIMS", trims)
    return constants + _PARTS + _first(before_all) + flatten + own


def _first(text: str) -> str:
    return f"{{{{- {_literal(text)} -}}}}\n" if text else ""


def _for_reader(text: str, reader: Reader) -> str:
    return text.replace("  # MARKS\n", _MARKS if reader == "llama.cpp" else "")


def _around_image(layout: Layout, *, start_end: bool, after_image: str) -> tuple[str, str]:
    before, behind = (IMAGE_START, IMAGE_END) if start_end else ("", "")
    if layout.mmtag:
        before, behind = f"<Image>{before}", f"{behind}</Image>"
    return before, behind + ("" if start_end else after_image)


def _constants(values: dict[str, str | bool]) -> str:
    return "".join(f"{{%- set {name} = {_literal(value)} -%}}\n" for name, value in values.items())


def _literal(value: str | bool) -> str:
    """A constant that both kinds of Jinja read; llama.cpp's has no escapes for code points."""
    if isinstance(value, bool):
        return str(value).lower()
    return '"' + "".join(_ESCAPES.get(character, character) for character in value) + '"'


def writes_first_token(run: OpenedRun) -> bool:
    """Whether the chat template writes the first token of a text, as tokenizers' templates often do."""
    token = run.assembled.tokenizer.bos_token
    if run.data.template is not None or not token:
        return False
    prompts = Prompts(run.data, run.assembled.tokenizer, start_end=False)
    first, *_ = prompts.spell_prompt([Turn("human", QUESTION)], has_image=False)
    return first.text.startswith(str(token))


def chat_template_of(run: OpenedRun, *, reader: Reader, after_image: str = "", before_all: str = "") -> str:
    """The Jinja text that writes the run's prompts; for `after_image` and `before_all` see `jinja_of`."""
    tokens, system = run.plan.image_tokens, run.data.system_prompt
    if run.data.template is None:
        return wrapped(
            run.assembled.tokenizer.get_chat_template(),
            start_end=tokens.start_end,
            system_prompt=system,
            after_image=after_image,
            before_all=before_all,
            reader=reader,
        )
    # `plain` has the tokens only if they were trained.
    is_written = run.data.template != "plain" or run.data.tokens_in_plain
    return jinja_of(
        run.data.template,
        start_end=tokens.start_end and is_written,
        end_of_answer=str(run.assembled.tokenizer.eos_token or "</s>"),
        system_prompt=system,
        after_image=after_image,
        before_all=before_all,
        reader=reader,
    )
