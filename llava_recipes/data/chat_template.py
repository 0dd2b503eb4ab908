"""A tokenizer's own chat template, and which characters of its text are learned.

The template writes conversations whose turns are marks that occur nowhere else. The text between the marks is
the same for every conversation of as many turns, and the prompt that the template writes for an answer shows
where the answer starts. Any other template is refused, unless it marks what the model writes with
`{% generation %}`. Templates run in a process of their own, `render_process`, within bounds of time, memory
and text.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

from transformers import PreTrainedTokenizerBase

from llava_recipes.data import render_process
from llava_recipes.errors import Problem, RecipeError
from llava_recipes.interpreter import python_environment, python_words
from llava_recipes.stop_signals import held_back
from llava_recipes.templates import Segment, Turn

_ROLES = {"human": "user", "gpt": "assistant"}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
MAX_TURNS = 1000
"""Longest conversation: finding what is learned takes one rendering for each of its answers."""
_FILES = ("llava_recipe.json", "chat_template.jinja", "tokenizer_config.json")
# Llama's templates write today's date unless they get another; this is the one in their own text.
_DATE = "26 Jul 2024"
MAX_RENDER_S: Final = 2.0
"""Processor time for one conversation; usual templates take a thousandth of it."""
MAX_RENDER_BYTES: Final = 2**29
"""Memory beyond what the process needs by itself."""
MAX_ADDED_CHARACTERS: Final = 2**20
"""Characters that a template may write beyond four times the conversation."""
_MAX_WAIT_S: Final = 120.0
"""Wall-clock time for a process that neither computes nor answers."""
_VARIABLES = (
    *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH"),
    *("TMPDIR", "TZ"),
)
"""The only environment variables that the process gets: a template that reaches them finds no secrets."""


class TemplateLimit(RecipeError, ValueError):
    """A chat template exceeds its time, memory or text; `reason` says which."""

    def __init__(self, reason: str, *, where: str = "the chat template") -> None:
        self.reason = reason
        hint = (
            "write `template:` with the name of a built-in one, or use a tokenizer with another chat template"
        )
        super().__init__(Problem(f"{where} {reason}", code="chat-template-limit", hint=hint))


@dataclass(frozen=True)
class _Skeleton:
    """The text that a template writes around turns: before each of them, and after the last."""

    around: tuple[str, ...]
    cuts: tuple[int, ...]
    """How much of the text after each turn belongs to it: after a question the rest of the prompt, after an
    answer the learned text that ends it."""


class ChatTemplate:
    """Conversations as a tokenizer's chat template writes them.

    Raises ValueError when the tokenizer has no chat template, or one whose learned part is unclear, and
    TemplateLimit, from then on for every conversation, once the template exceeds its time, memory or text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, system_prompt: str | None) -> None:
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template")
        try:
            self._text: str = tokenizer.get_chat_template()
        except ValueError as error:
            raise ValueError("the tokenizer has several chat templates, and none is the default") from error
        if "strftime_now" in self._text and "date_string" not in self._text:
            raise ValueError(
                "the tokenizer's chat template writes today's date, so it differs from day to day"
            )
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
        """The token that ends an answer; None when the template writes none."""

    def spell(self, turns: Sequence[Turn]) -> list[Segment]:
        """The whole conversation. Raises ValueError when its learned part is unclear."""
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
        """The conversation up to where its next answer starts."""
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
            raise ValueError(f"the tokenizer's chat template refuses the conversation: {error}") from error

    def _skeleton(self, num_turns: int) -> _Skeleton:
        if num_turns > MAX_TURNS:
            most = f"at most {MAX_TURNS:,} are possible with a tokenizer's chat template"
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
                raise ValueError("the tokenizer's chat template does not write every turn once and in order")
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
            # The prompt is the same in every longer conversation, and a file may contain hundreds of lengths.
            prompt = self._render(asked, open_answer=True).text
            self._prompts[len(asked)] = len(prompt), hash(prompt)
        length, its_hash = self._prompts[len(asked)]
        start = whole.index(asked[-1].text) + len(asked[-1].text)
        if hash(whole[:length]) != its_hash or not start <= length <= whole.index(answer.text):
            raise ValueError(
                "the tokenizer's chat template writes a prompt differently with and without its answer, "
                "so it is unclear what is learned"
            )
        return length - start

    def _as_written(self, turns: Sequence[Turn], skeleton: _Skeleton) -> list[str]:
        """The turns' texts as the template writes them: unchanged, or without white space around them."""
        whole = self._render(turns).text
        texts: list[str] = []
        place = len(skeleton.around[0]) if whole.startswith(skeleton.around[0]) else len(whole) + 1
        for turn, after in zip(turns, skeleton.around[1:], strict=True):
            found = [text for text in _trimmed(turn.text) if whole.startswith(text + after, place)]
            texts += found[:1]
            place += len(found[0] + after) if found else len(whole) + 1
        if place != len(whole):
            raise ValueError(
                "the tokenizer's chat template changes the turns' text, so it is unclear what is learned"
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
    """The file of a tokenizer's folder that contains its chat template; the folder if none does."""
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
    """A text without some or all of the white space around it, as templates write it."""
    return (
        *(text, text.strip("\n"), text.lstrip("\n"), text.rstrip("\n")),
        *(text.strip(), text.lstrip(), text.rstrip()),
    )


def _mark(position: int) -> str:
    """A text that no template contains: characters for private use."""
    return f"\ue000{position}\ue001"


@dataclass(frozen=True)
class Rendered:
    """The text that a template writes, and the spans that it marks as written by the model."""

    text: str
    spans: tuple[tuple[int, int], ...]


def render(
    chat_template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    names: Mapping[str, Any],
    add_generation_prompt: bool,
    mark_answers: bool = False,
) -> Rendered:
    """A conversation as a chat template writes it; `names` are the variables it has besides the messages.

    Raises TemplateLimit when it exceeds its time, memory or text, and ValueError with the template's own
    reason when it refuses the conversation.
    """
    conversation = json.dumps(messages, ensure_ascii=False)
    request = {
        "chat_template": chat_template,
        "messages": conversation,
        "names": dict(names),
        "add_generation_prompt": add_generation_prompt,
        "mark_answers": mark_answers,
        "max_characters": MAX_ADDED_CHARACTERS + 4 * len(conversation),
    }
    reply = _RENDERER.ask(json.dumps(request, default=str).encode("ascii"))
    if "error" in reply:
        raise ValueError(reply["error"])
    if "too_long" in reply:
        raise TemplateLimit(
            f"writes more than {MAX_ADDED_CHARACTERS:,} characters beyond four times the conversation"
        )
    return Rendered(reply["text"], tuple((start, end) for start, end in reply["spans"]))


class _Renderer:
    """The process, started when it is first needed and again after it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: bytes) -> dict[str, Any]:
        """The reply to a request. Raises TemplateLimit when the process ends or stays silent."""
        with self._lock:
            try:
                if self._process is None:
                    self._start()
                return self._exchange(request)
            except EOFError:
                reason = _reason(self._exit_code())
                self._kill()
                raise TemplateLimit(reason) from None
            except TimeoutError:
                self._kill()
                raise TemplateLimit(f"keeps its process silent for {_MAX_WAIT_S:g} s") from None
            except BaseException:
                # After an interrupt the reply to this request would be taken for the reply to the next.
                self._kill()
                raise

    def end(self) -> None:
        """End the process; the next request starts another."""
        with self._lock:
            self._kill()

    def forget(self) -> None:
        """In a forked process: leave the parent's process alone."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            _close_pipes(process)
            # It isn't a child of this process, so there is nothing to wait for.
            process.returncode = 0

    def _start(self) -> None:
        given = python_environment()
        environment = {name: given[name] for name in _VARIABLES if name in given}
        # BLAS takes address space for each of its threads.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            with held_back():
                self._process = subprocess.Popen(
                    python_words(render_process.__name__),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    bufsize=0,
                    start_new_session=True,
                )
            self._exchange(json.dumps([MAX_RENDER_BYTES, MAX_RENDER_S]).encode("ascii"))
        except (OSError, EOFError) as error:
            self._kill()
            reason = str(error) or "it exits at once"
            raise ValueError(f"the process that renders chat templates cannot start: {reason}") from None

    def _exchange(self, message: bytes) -> dict[str, Any]:
        """Raises EOFError when the process has ended, TimeoutError when it does not answer."""
        assert self._process is not None
        try:
            _send(cast(IO[bytes], self._process.stdin), struct.pack("<Q", len(message)) + message)
            ends_s = time.monotonic() + _MAX_WAIT_S
            output = cast(IO[bytes], self._process.stdout)
            (length,) = struct.unpack("<Q", _receive(output, 8, ends_s))
            reply: dict[str, Any] = json.loads(_receive(output, length, ends_s))
        except BrokenPipeError:
            raise EOFError from None
        return reply

    def _exit_code(self) -> int:
        """The exit code of a process that has closed its pipes."""
        assert self._process is not None
        try:
            return self._process.wait(timeout=_MAX_WAIT_S)
        except subprocess.TimeoutExpired:
            return 0

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            _close_pipes(process)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        cast(IO[bytes], pipe).close()


def _send(pipe: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[pipe.write(rest) :]


def _receive(pipe: IO[bytes], size: int, ends_s: float) -> bytes:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    parts, missing = [], size
    while missing:
        if not poll.poll(max(0.0, ends_s - time.monotonic()) * 1000):
            raise TimeoutError
        part = os.read(pipe.fileno(), min(missing, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _reason(code: int) -> str:
    if code == -signal.SIGPROF:
        return f"takes more than {MAX_RENDER_S:g} s of processor time for one conversation"
    if code in (render_process.MEMORY_EXIT, -signal.SIGKILL):
        return f"takes more than {MAX_RENDER_BYTES / 2**20:,.0f} MiB of memory for one conversation"
    return f"ends the process that renders it ({'signal' if code < 0 else 'exit code'} {abs(code)})"


_RENDERER = _Renderer()
os.register_at_fork(after_in_child=lambda: _RENDERER.forget())
atexit.register(_RENDERER.end)
