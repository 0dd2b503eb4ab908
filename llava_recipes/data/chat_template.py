"""A tokenizer's own chat template, and which characters of what it writes are learned.

Nothing is looked for in the text. The template writes conversations whose turns are marks that cannot occur
otherwise; what stands between the marks is the same for every conversation of as many turns, and what the
template writes as a prompt for an answer tells where an answer begins. A template that does not write so is
refused, unless it says itself, with `{% generation %}`, what the model writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llava_recipes.data.rendering import Rendered, TemplateLimit, render
from llava_recipes.templates import Segment, Turn

_ROLES = {"human": "user", "gpt": "assistant"}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
MAX_TURNS = 1000
"""Longest conversation: what is learned in it is found with as many renderings as it has answers."""

_FILES = ("llava_recipe.json", "chat_template.jinja", "tokenizer_config.json")
# Llama's templates write today's date unless they are told another; this is the one in their own text.
_DATE = "26 Jul 2024"


@dataclass(frozen=True)
class _Skeleton:
    """What a template writes around turns: one text before each of them, one after the last."""

    around: tuple[str, ...]
    cuts: tuple[int, ...]
    """How much of the text after each turn goes with it: after a question what still belongs to the prompt,
    after an answer what ends it and is learned."""


class ChatTemplate:
    """Conversations as a tokenizer's chat template writes them.

    Raises ValueError when the tokenizer has no chat template, or one whose learned part cannot be told, and
    TemplateLimit, for good, once the template has taken more than it may of time, memory or text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, system_prompt: str | None) -> None:
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template")
        try:
            self._text: str = tokenizer.get_chat_template()
        except ValueError as error:
            raise ValueError("the tokenizer has several chat templates and none is the default") from error
        if "strftime_now" in self._text and "date_string" not in self._text:
            raise ValueError("the tokenizer's chat template writes the date, so that no two days are equal")
        self._names = {**tokenizer.special_tokens_map, "date_string": _DATE}
        added = tokenizer.added_tokens_decoder.values()
        self._tokens = re.compile("|".join(sorted(re.escape(token.content) for token in added)) or r"(?!)")
        self._system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        self._marks_answers = _GENERATION.search(self._text) is not None
        self._place = template_place(tokenizer)
        self._limit: TemplateLimit | None = None
        self._prompts: dict[int, tuple[int, int]] = {}
        self._skeletons: dict[int, _Skeleton] = {}
        first = self._skeleton(2)
        if system_prompt is not None and system_prompt.strip() not in first.around[0]:
            raise ValueError("the tokenizer's chat template has no place for a system prompt")
        end = self._tokens.search(first.around[-1])
        self.stop = None if end is None else end.group()
        """The token that ends an answer; None where the template writes none."""

    def spell(self, turns: Sequence[Turn]) -> list[Segment]:
        """The whole conversation. Raises ValueError when its learned part cannot be told."""
        if self._marks_answers:
            return self._spell_by_marks(turns)
        skeleton = self._skeleton(len(turns))
        texts = self._as_written(turns, skeleton)
        segments, before = [], skeleton.around[0]
        for turn, text, after, cut in zip(turns, texts, skeleton.around[1:], skeleton.cuts, strict=True):
            segments.append(Segment(before + text + after[:cut], learn=turn.role == "gpt"))
            before = after[cut:]
        return [*segments, Segment(before, learn=False)]

    def spell_prompt(self, turns: Sequence[Turn]) -> list[Segment]:
        """The conversation up to where its next answer begins."""
        return [Segment(self._render(turns, open_answer=True).text, learn=False)]

    def _render(self, turns: Sequence[Turn], *, open_answer: bool = False) -> Rendered:
        if self._limit is not None:
            raise self._limit
        messages = [*self._system, *({"role": _ROLES[turn.role], "content": turn.text} for turn in turns)]
        try:
            return render(
                self._text,
                messages,
                names=self._names,
                add_generation_prompt=open_answer,
                mark_answers=self._marks_answers,
            )
        except TemplateLimit as error:
            where = f"the tokenizer's chat template in {self._place}"
            self._limit = TemplateLimit(error.reason, where=where)
            raise self._limit from None
        except ValueError as error:
            raise ValueError(f"the tokenizer's chat template refuses it: {error}") from error

    def _skeleton(self, num_turns: int) -> _Skeleton:
        if num_turns > MAX_TURNS:
            most = f"a tokenizer's chat template takes at most {MAX_TURNS:,}"
            raise ValueError(f"the conversation has {num_turns:,} turns; {most}")
        if num_turns not in self._skeletons:
            self._skeletons[num_turns] = self._find_skeleton(num_turns)
        return self._skeletons[num_turns]

    def _find_skeleton(self, num_turns: int) -> _Skeleton:
        turns = [Turn("gpt" if position % 2 else "human", _mark(position)) for position in range(num_turns)]
        whole = self._render(turns).text
        around = []
        rest = whole
        for turn in turns:
            before, mark, rest = rest.partition(turn.text)
            if not mark or turn.text in rest:
                raise ValueError("the tokenizer's chat template does not write every turn once, in its place")
            around.append(before)
        around.append(rest)
        cuts = [len(after) for after in around[1:]]
        if not self._marks_answers:
            for position in range(1, num_turns, 2):
                cuts[position - 1] = self._find_answer(turns[: position + 1], whole)
                end = self._tokens.search(around[position + 1])
                if end is None:
                    raise ValueError("the tokenizer's chat template writes no token that ends an answer")
                cuts[position] = end.end()
        return _Skeleton(tuple(around), tuple(cuts))

    def _find_answer(self, turns: Sequence[Turn], whole: str) -> int:
        """How much of the text before the last of the turns belongs to the prompt for it."""
        *asked, answer = turns
        if len(asked) not in self._prompts:
            # The same for conversations of any length, of which a file may hold hundreds.
            prompt = self._render(asked, open_answer=True).text
            self._prompts[len(asked)] = len(prompt), hash(prompt)
        length, its_hash = self._prompts[len(asked)]
        start = whole.index(asked[-1].text) + len(asked[-1].text)
        if hash(whole[:length]) != its_hash or not start <= length <= whole.index(answer.text):
            raise ValueError(
                "the tokenizer's chat template writes a prompt otherwise than a prompt with its answer, "
                "so that it cannot be told what is learned"
            )
        return length - start

    def _as_written(self, turns: Sequence[Turn], skeleton: _Skeleton) -> list[str]:
        """The turns' texts as the template writes them: as they are, or without white space around them."""
        whole = self._render(turns).text
        texts: list[str] = []
        place = len(skeleton.around[0]) if whole.startswith(skeleton.around[0]) else len(whole) + 1
        for turn, after in zip(turns, skeleton.around[1:], strict=True):
            found = [text for text in _trimmed(turn.text) if whole.startswith(text + after, place)]
            texts += found[:1]
            place += len(found[0] + after) if found else len(whole) + 1
        if place != len(whole):
            raise ValueError(
                "the tokenizer's chat template changes the text of the turns, "
                "so that it cannot be told what is learned"
            )
        return texts

    def _spell_by_marks(self, turns: Sequence[Turn]) -> list[Segment]:
        rendered = self._render(turns)
        whole = rendered.text
        segments, done = [], 0
        for start, end in rendered.spans:
            segments += [Segment(whole[done:start], learn=False), Segment(whole[start:end], learn=True)]
            done = end
        return [segment for segment in (*segments, Segment(whole[done:], learn=False)) if segment.text]


def template_place(tokenizer: PreTrainedTokenizerBase) -> Path:
    """The file of a tokenizer's folder that contains its chat template; the folder where none is found."""
    folder, chat_template = Path(tokenizer.name_or_path), tokenizer.chat_template
    if not isinstance(chat_template, str) or not chat_template:
        return folder
    spellings = {chat_template, *(json.dumps(chat_template, ensure_ascii=each) for each in (True, False))}
    for file in map(folder.joinpath, _FILES):
        with suppress(OSError, UnicodeDecodeError):
            text = file.read_text("utf-8")
            if any(spelling in text for spelling in spellings):
                return file
    return folder


def _trimmed(text: str) -> tuple[str, ...]:
    """A text with more and more of the white space around it cut off, as templates do."""
    return (
        text,
        text.strip("\n"),
        text.lstrip("\n"),
        text.rstrip("\n"),
        text.strip(),
        text.lstrip(),
        text.rstrip(),
    )


def _mark(position: int) -> str:
    """A text that no template holds: characters for private use."""
    return f"\ue000{position}\ue001"
