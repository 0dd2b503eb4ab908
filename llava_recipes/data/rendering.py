"""Chat templates, rendered as transformers renders them, in a process that can be ended.

One process of `render_process` serves all templates of this one; data loaders' workers start their own.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, cast

from llava_recipes.data import render_process
from llava_recipes.interpreter import python_environment, python_words
from llava_recipes.recipe.errors import Problem, RecipeError

MAX_RENDER_S: Final = 2.0
"""Processor time for one conversation; usual ones take a thousandth of it."""
MAX_RENDER_BYTES: Final = 2**29
"""Memory beyond what the process takes by itself."""
MAX_ADDED_CHARACTERS: Final = 2**20
"""What a template may write beyond four times the conversation."""
_MAX_WAIT_S: Final = 120.0
"""Time on the clock, for a process that neither computes nor answers."""
_VARIABLES = (
    *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH"),
    *("TMPDIR", "TZ"),
)
"""All of the environment that the process gets: what a template might reach holds no secrets."""


class TemplateLimit(RecipeError, ValueError):
    """A chat template that was ended, or whose text is not taken: what it takes too much of."""

    def __init__(self, reason: str, *, where: str = "the chat template") -> None:
        self.reason = reason
        hint = "write `template:` with the name of one of ours, or use a tokenizer with another chat template"
        super().__init__(Problem(f"{where} {reason}", code="chat-template-limit", hint=hint))


@dataclass(frozen=True)
class Rendered:
    """What a template writes, and the spans that it marks as written by the model."""

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
    """A conversation as a chat template writes it; `names` are what it can use besides the messages.

    Raises TemplateLimit when it takes more than it may of time, memory or text, and ValueError with the
    template's own reason when it refuses the conversation.
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
    """The process, started when it is first needed and again after it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: bytes) -> dict[str, Any]:
        """The reply to a request. Raises TemplateLimit when the process ends over it."""
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
                # After an interrupt the answer to this request would be taken for that to the next.
                self._kill()
                raise

    def end(self) -> None:
        """End the process; the next request starts another."""
        with self._lock:
            self._kill()

    def forget(self) -> None:
        """In a forked process: leave the parent's to the parent."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            _close_pipes(process)
            # It is no child of this process, so nothing is to be waited for.
            process.returncode = 0

    def _start(self) -> None:
        given = python_environment()
        environment = {name: given[name] for name in _VARIABLES if name in given}
        # A BLAS of many threads would take address space for each of them.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
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
            reason = str(error) or "it ended at once"
            raise ValueError(f"the process that renders chat templates cannot be started: {reason}") from None

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
        """How the process ended that has closed its pipes."""
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
