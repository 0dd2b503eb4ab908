"""A conversation template as the Jinja text that transformers and vLLM render for chat requests.

It writes what `templates.spell` writes: pictures where training had them, its system prompt unless the
request brings one. A message's content is a text with `<image>` tags, or a list of parts.
"""

from __future__ import annotations

import json
from dataclasses import replace

from llava_recipes.layouts import IMAGE, LAYOUTS, Layout, Template
from llava_recipes.templates import IMAGE_END, IMAGE_START

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
"""

_PLAIN = (
    _PARTS
    + """\
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- '<image>' * words(message).count('<image>') -}}
  {%- else -%}
    {{- words(message) + '\\n' -}}
  {%- endif -%}
{%- endfor -%}
"""
)

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
  {%- if message['role'] == 'user' -%}
    {%- set num_images = text.count('<image>') -%}
    {%- if num_images -%}
      {%- if INTERLEAVED and (num_images > 1 or text.startswith('<image>')) -%}
        {%- set text = text.replace('<image>', TAG) -%}
      {%- else -%}
        {%- set text = ((TAG + '\\n') * num_images + text.replace('<image>', '').strip()).strip() -%}
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

# A tokenizer's own template takes texts; `<image>` stands in them as training had it.
_FLATTEN = (
    _PARTS
    + """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- set text = words(message) -%}
  {%- if message['content'] is not string -%}{%- set text = text.strip() -%}{%- endif -%}
  {%- set text = text.replace('<image>', TAG) -%}
  {%- set flat.messages = flat.messages + [{'role': message['role'], 'content': text}] -%}
{%- endfor -%}
{%- set messages = SYSTEM_MESSAGE + flat.messages -%}
"""
)


def jinja_of(
    template: Template, *, start_end: bool, end_of_answer: str, system_prompt: str | None, after_image: str
) -> str:
    """The Jinja text of a template.

    end_of_answer  the tokenizer's end-of-sequence text
    system_prompt  in place of the template's own
    start_end      put `<im_start>` and `<im_end>` around every image
    after_image    written after every `<image>`: a space, for tokenizers that spell the text behind a picture
                   as the beginning of a text and have to be told
    """
    if template == "plain":
        tag = IMAGE_START + IMAGE + IMAGE_END if start_end else IMAGE
        return _PLAIN.replace(f"'{IMAGE}' *", f"'{tag}' *")
    layout = LAYOUTS[template]
    if system_prompt is not None:
        layout = replace(layout, system=system_prompt)
    text = _PARTS + (_NO_SYSTEM if layout.system is None else _SYSTEM) + _TURNS
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
        "TAG": _tag(layout, start_end) + ("" if start_end else after_image),
        "INTERLEAVED": layout.interleaved,
        "TRIMS": layout.trims,
        "BARE": layout.bare_when_empty,
        "LEADING": layout.leading_answer,
    }
    constants = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}\n" for name, value in values.items())
    return constants + text


def wrapped(own: str, *, start_end: bool, system_prompt: str | None, after_image: str) -> str:
    """A tokenizer's own chat template, made to take messages with pictures."""
    tag = IMAGE_START + IMAGE + IMAGE_END if start_end else IMAGE + after_image
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    constants = (
        f"{{%- set TAG = {json.dumps(tag)} -%}}\n{{%- set SYSTEM_MESSAGE = {json.dumps(system)} -%}}\n"
    )
    return constants + _FLATTEN + own


def _tag(layout: Layout, start_end: bool) -> str:
    tag = IMAGE_START + IMAGE + IMAGE_END if start_end else IMAGE
    return f"<Image>{tag}</Image>" if layout.mmtag else tag
