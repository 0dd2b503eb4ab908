"""The process in which chat templates run: a program of its own, which `chat_template` starts.

It reads requests from standard input and replies on standard output, each as a length and JSON. A template is
somebody else's program: two lines of it loop for days or ask for terabytes. The kernel's timer ends a slow
one in the middle of any instruction, and the limit of the address space one that takes too much memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import sys
from typing import Any, BinaryIO

from llava_recipes.stop_signals import STOP_SIGNALS

MEMORY_EXIT = 77
_SHOWN_CHARACTERS = 2000


def main() -> None:
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Ctrl-C and a stop signal to the group are for the process that asks; when it ends, the pipe closes.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    from transformers.utils.chat_template_utils import render_jinja_template

    max_bytes, max_s = json.loads(_read(requests) or b"null")
    _limit(max_bytes)
    _write(replies, {"ready": True})
    try:
        while (text := _read(requests)) is not None:
            # Only the time that the template computes counts, not the time that this process waits.
            signal.setitimer(signal.ITIMER_PROF, max_s)
            reply = _render(render_jinja_template, json.loads(text))
            signal.setitimer(signal.ITIMER_PROF, 0)
            _write(replies, reply)
    except MemoryError:
        os._exit(MEMORY_EXIT)


def _render(render_jinja_template: Any, request: dict[str, Any]) -> dict[str, Any]:
    max_characters = request["max_characters"]
    try:
        (text,), found = render_jinja_template(
            conversations=[json.loads(request["messages"])],
            chat_template=request["chat_template"],
            return_assistant_tokens_mask=request["mark_answers"],
            add_generation_prompt=request["add_generation_prompt"],
            **request["names"],
        )
    except MemoryError:
        raise
    except Exception as error:
        # A chat template may fail in any way.
        return {"error": (str(error).strip() or type(error).__name__)[:_SHOWN_CHARACTERS]}
    spans = found[0] if found else []
    if max(len(text), len(spans)) > max_characters:
        return {"too_long": True}
    return {"text": text, "spans": spans}


def _limit(max_bytes: int) -> None:
    """Limit this process to `max_bytes` more memory than it has, and to writing no file."""
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(kind, (0, 0))
    # A kernel may not say how much that is, or have no such limit: then only time is limited.
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = taken + max_bytes
        resource.setrlimit(
            resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def _read(file: BinaryIO) -> bytes | None:
    """The next message; None at the end."""
    head = file.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    return file.read(length)


def _write(file: BinaryIO, values: dict[str, Any]) -> None:
    data = json.dumps(values).encode("ascii")
    file.write(struct.pack("<Q", len(data)) + data)
    file.flush()


if __name__ == "__main__":
    main()
