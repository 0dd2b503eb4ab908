"""Print text so that nothing in it controls the terminal, and no secret is shown.

Names, captions, answers of a model and messages of a library may contain anything. All output passes through
here: control characters are replaced, secrets are hidden, and the text fits the encoding of the stream.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import os
import re
import select
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

from llava_recipes.masking import mask

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

REPLACED = "\N{REPLACEMENT CHARACTER}"

_NAMED = {"\n": "↵", "\t": "→"}
# Controls; characters that reverse, join or hide text; surrogates; line and paragraph separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"
# Commands of a GitHub workflow: at the start of a line, and anywhere in it.
_COMMAND = re.compile(r"^(\s*)::", re.MULTILINE)
_OLD_COMMAND = "##["
# What tqdm, which shows downloads from the hub, sends to redraw its bar.
_BAR_MOVES = re.compile(r"(\x1b\[A)+|\n+(?:\x1b\[A)*")
_ROOM_BYTES, _PIECE_BYTES = 2**20, 2**12
_FLUSH_S, _END_S = 1.0, 5.0
"""How long the flush of a line waits for a reader, and the end of a process for one that reads nothing."""


class OutputLost(Exception):
    """Standard output or standard error accepts no more text."""

    def __init__(self, stream: TextIO, reason: str, *, reader_left: bool) -> None:
        super().__init__(reason)
        self.stream = stream
        self.reader_left = reader_left
        """Whether the reader closed its end, as `head` does: not a fault, and nobody sees a message."""


def shown(text: str, *, keep: str = "") -> str:
    """The text as one line that moves no cursor, reverses nothing and shows no secret.

    A visible character replaces each one that could; those in `keep` stay.
    """
    if not text.isprintable():
        text = "".join(
            character
            if character in keep or not _is_unsafe(character, text, place)
            else _NAMED.get(character, REPLACED)
            for place, character in enumerate(text)
        )
    return mask(text).replace(_OLD_COMMAND, r"##\[")


def escape_json(text: str, *, encoding: str = "utf-8") -> str:
    r"""JSON with `\uXXXX` for what `shown` would replace and what `encoding` cannot encode.

    Values stay equal, except for secrets, which are hidden.
    """
    return mask(_escape(text, encoding, _spell_in_json)).replace(_OLD_COMMAND, r"##\u005b")


def escape_yaml(text: str) -> str:
    """YAML with escapes for what `shown` would replace; such characters must be in double quotes."""
    return mask(_escape(text, "utf-8", _spell_in_yaml)).replace(_OLD_COMMAND, r"##\u005b")


def say(*lines: str, to_stderr: bool = False) -> None:
    """Print lines for a person. A line break inside a line is data and shown as a character."""
    say_lines("\n".join(shown(line) for line in lines or ("",)), to_stderr=to_stderr)


def say_lines(text: str, *, to_stderr: bool = False, end: str = "\n") -> None:
    """Print a text for a person, with its line breaks."""
    _write(_without_commands(shown(text, keep="\n")) + end, to_stderr=to_stderr)


def say_document(text: str) -> None:
    """Print a file, such as a recipe or a script. Its writer has quoted what needs quotes."""
    _write(shown(text, keep="\n\t"), to_stderr=False)


def say_json(text: str) -> None:
    """Print JSON with unchanged values, escaped so that a terminal of any encoding can show them."""
    stream = _Stream.over(sys.stdout)
    if stream is not None:
        _write(escape_json(text, encoding=stream.encoding) + "\n", to_stderr=False)


def write_log(text: str) -> str:
    """Write a traceback, which may quote anything, to a new file; returns the file's name."""
    import tempfile

    if not os.path.isdir(tempfile.gettempdir()):
        # Cleaned up since this process has begun: look for another one.
        tempfile.tempdir = None
    with tempfile.NamedTemporaryFile(
        "w", prefix="llava-recipe-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(shown(text, keep="\n\t"))
    return log.name


class Spoken:
    """Prints an answer while it grows, with its line breaks."""

    def __init__(self) -> None:
        self._waiting = ""
        self._at_line_start = True

    def add(self, piece: str) -> None:
        """Print what is safe so far: half a URL may still turn out to contain a password."""
        whole, self._waiting = _split(self._waiting + piece)
        self._print(whole)

    def finish(self) -> None:
        """Print the rest, and end the line."""
        self._print(self._waiting)
        _write("\n", to_stderr=False)
        self._waiting, self._at_line_start = "", True

    def _print(self, text: str) -> None:
        if not text:
            return
        before = "" if self._at_line_start else "."
        _write(_without_commands(before + shown(text, keep="\n\t"))[len(before) :], to_stderr=False)
        _, has_break, line = text.rpartition("\n")
        self._at_line_start = (self._at_line_start or bool(has_break)) and not line.strip()


def is_terminal(stream: TextIO | None) -> bool:
    """Whether the stream is open and a terminal."""
    return stream is not None and stream.isatty()


def console(*, to_stderr: bool = False) -> Console:
    """A Rich console that treats all text as data, never as markup; make no other kind."""
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        """Passes every text through `shown`, but not Rich's own control codes."""

        def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
            for segment in super().render(*arguments, **options):
                text, style, control = segment
                yield segment if control else Segment(shown(text, keep="\n"), style)

        def render_str(self, text: str, **options: Any) -> Text:
            # Before a table breaks it into lines: half a secret is not recognized as one.
            return super().render_str(shown(text), **options)

    stream = _Stream.over(sys.stderr if to_stderr else sys.stdout)
    file = cast(TextIO, stream) if stream is not None else io.StringIO()
    return Plain(file=file, stderr=to_stderr, markup=False, emoji=False, highlight=False)


def cell(*lines: str, style: str = "") -> Text:
    """Lines for a table or a panel, safe and in one style."""
    from rich.text import Text

    return Text("\n".join(map(shown, lines)), style=style)


def guard_streams(*, outlives_reader: bool = False) -> None:
    """Pass what libraries print through here too, and accept typed input in any encoding.

    outlives_reader  as `outlive_readers`
    """
    _open_missing()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Guard):
            setattr(sys, name, _Guard(stream))
    if isinstance(sys.stdin, io.TextIOWrapper):
        encoding = "utf-8" if codecs.lookup(sys.stdin.encoding).name == "ascii" else sys.stdin.encoding
        sys.stdin.reconfigure(encoding=encoding, errors="replace")
    if outlives_reader:
        outlive_readers()


def outlive_readers() -> None:
    """Let this process continue when its guarded output is lost, silently where only its reader has left.

    Nor does it wait for one that does not read: a pager, a terminal after Ctrl-S, a frozen connection.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _Guard):
            stream.outlive()


def _open_missing() -> None:
    """Lead closed standard streams nowhere: the next file that is opened would take the place of one."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            nobody = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(nobody, True)


def guard_redirected() -> None:
    """The same for the streams that a live bar of Rich has installed, which would obey control codes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "rich_proxied_file") and not isinstance(stream, _Guard):
            setattr(sys, name, _Guard(stream))


def flush_streams() -> None:
    """Flush standard output and standard error at the end of a process; raises OutputLost."""
    for stream in (sys.stdout, sys.stderr):
        whole = _Stream.over(stream)
        if whole is not None:
            whole.flush()
            whole.drain()


def drop_rest(stream: TextIO) -> None:
    """Redirect a lost stream to nowhere, so that the process does not fail again at its end."""
    nobody = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nobody, stream.fileno())
    finally:
        os.close(nobody)


class _Outlet:
    """Writes what a stream is given in a thread of its own: whoever prints never waits for the reader.

    What has no room is left out, and the reader is told so.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._handle = stream, stream.fileno()
        self.is_lost = False
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._waiting = bytearray()
        self._num_left_out, self._is_full, self._is_stuck, self._has_thread = 0, False, False, False

    def write(self, text: bytes) -> None:
        if self._pid != os.getpid():
            # A fork has no threads, and somebody may have held the lock.
            self._begin()
        with self._changed:
            self._is_full |= bool(self._waiting) and len(self._waiting) + len(text) > _ROOM_BYTES
            if self._is_full:
                self._num_left_out += text.count(b"\n")
            elif not self.is_lost:
                self._waiting += text
            if b"\n" in text:
                self._wake()

    def flush(self) -> None:
        """Wait a little until everything is written; not again before the reader has read something."""
        if self._pid != os.getpid():
            # Nothing of a fork's own waits, and somebody may have held the lock.
            return
        with self._changed:
            if self._waiting and not self._is_stuck:
                self._wake()
                self._is_stuck = not self._changed.wait_for(lambda: not self._waiting, _FLUSH_S)

    def drain(self) -> None:
        """Wait until everything is written, as long as somebody reads."""
        if self._pid != os.getpid():
            return
        with self._changed:
            while self._waiting:
                self._wake()
                if not self._changed.wait(_END_S):
                    return

    def _wake(self) -> None:
        self._changed.notify_all()
        if not self._has_thread:
            self._has_thread = True
            threading.Thread(target=self._run, name="output", daemon=True).start()

    def _run(self) -> None:
        # They are for the other threads.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                # Whole lines, so that those of several processes do not mix.
                end = self._waiting.rfind(b"\n", 0, _PIECE_BYTES) + 1
                piece = bytes(self._waiting[: end or _PIECE_BYTES])
            try:
                num_written = os.write(self._handle, piece)
            except BlockingIOError:
                # Somebody else made it so that it does not wait.
                select.select([], [self._handle], [])
                continue
            except OSError as error:
                num_written, self.is_lost = _ROOM_BYTES * 2, True
                _forget(self._stream, error)
            with self._changed:
                del self._waiting[:num_written]
                self._is_stuck = False
                if self._is_full and not self._waiting:
                    if not self.is_lost:
                        words = f"[{self._num_left_out:,} lines are left out here, since nobody read]\n"
                        self._waiting += words.encode()
                    self._num_left_out, self._is_full = 0, False
                self._changed.notify_all()


class _Stream:
    """A text stream that accepts every character, and raises OutputLost when it accepts no more text.

    With an outlet it raises nothing.
    """

    def __init__(self, stream: TextIO, *, outlet: _Outlet | None = None) -> None:
        self._stream, self._outlet = stream, outlet

    @classmethod
    def over(cls, stream: TextIO | None) -> _Stream | None:
        """The stream below all guards, for text that is safe already."""
        while stream is not None and not isinstance(stream, _Guard):
            inner = getattr(stream, "rich_proxied_file", None)
            if inner is None:
                return cls(stream)
            stream = inner
        if stream is None:
            return None
        return cls(stream._stream, outlet=stream._outlet)

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        encoding = self.encoding
        if self._outlet is not None:
            self._outlet.write(text.encode(encoding, "backslashreplace"))
            return len(text)
        if not text.isascii():
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        with self._raising_lost():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._outlet is not None:
            self._outlet.flush()
            return
        with self._raising_lost():
            self._stream.flush()

    def drain(self) -> None:
        """Wait for a reader that reads, at the end of a process."""
        if self._outlet is not None:
            self._outlet.drain()

    def outlive(self) -> None:
        """From now on, continue when the stream accepts no more text."""
        if self._outlet is None:
            with contextlib.suppress(io.UnsupportedOperation):
                outlet = _Outlet(self._stream)
                self.flush()
                self._outlet = outlet

    @contextlib.contextmanager
    def _raising_lost(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputLost(self._stream, reason, reader_left=_has_left(error)) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Guard(_Stream):
    """Replaces `sys.stdout` and `sys.stderr` for the prints, warnings and logs of libraries."""

    def write(self, text: str) -> int:
        if self._stream.isatty() and (_BAR_MOVES.fullmatch(text) or text == "\r"):
            return super().write(text)
        start = "\r" if text.startswith("\r") else ""
        rest = shown(text[len(start) :].replace("\r\n", "\n"), keep="\n\t")
        super().write((start if self._stream.isatty() else "") + rest)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


def _has_left(error: OSError) -> bool:
    # EIO: the terminal was closed.
    return isinstance(error, BrokenPipeError) or error.errno == errno.EIO


def _forget(stream: TextIO, error: OSError) -> None:
    """Lead a lost stream nowhere, and say so on the other one unless only its reader has left."""
    drop_rest(stream)
    if _has_left(error):
        return
    reason = error.strerror or str(error)
    is_output = sys.stdout is not None and stream.fileno() == sys.stdout.fileno()
    lost = "standard output" if is_output else "standard error"
    with contextlib.suppress(OutputLost, OSError, ValueError):
        say(f"{lost} cannot be written: {reason}; the run goes on without it", to_stderr=is_output)


def _write(text: str, *, to_stderr: bool) -> None:
    stream = _Stream.over(sys.stderr if to_stderr else sys.stdout)
    if stream is not None:
        stream.write(text)
        stream.flush()


def _is_unsafe(character: str, text: str, place: int) -> bool:
    if character.isprintable() or unicodedata.category(character) not in _UNSAFE:
        return False
    # Persian, Hindi and composed emoji need joiners.
    between = text[place - 1 : place] + text[place + 1 : place + 2]
    return not (character in _JOINERS and len(between) == 2 and all(map(_takes_joiners, between)))


def _takes_joiners(character: str) -> bool:
    return ord(character) > 0x2FF and unicodedata.category(character) in ("Lo", "Mn", "Mc", "So", "Sk")


def _without_commands(text: str) -> str:
    r"""The text with a `\` before what GitHub would read as a workflow command."""
    return _COMMAND.sub(r"\1\\::", text)


def _split(text: str) -> tuple[str, str]:
    """What can be printed, and the end, which has to wait for more text."""
    place = max(text.rfind(space) for space in " \n\t") + 1
    word = text[place:]
    if "/" in word or word[-1:] in (":", "#", *_JOINERS):
        return text[:place], word
    # Whether a following joiner is safe depends on the character before it.
    num_waiting = int(bool(word) and _takes_joiners(word[-1]))
    while 0 < num_waiting < len(word) and word[-num_waiting - 1] in _JOINERS:
        num_waiting += 2
    cut = max(place, len(text) - num_waiting)
    return text[:cut], text[cut:]


def _escape(text: str, encoding: str, spell: Callable[[str], str]) -> str:
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(
        spell(character)
        if character not in "\n\t" and (_is_unsafe(character, "", 0) or not _fits(character, encoding))
        else character
        for character in text
    )


def _fits(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _spell_in_json(character: str) -> str:
    return json.dumps(character)[1:-1] if character != "\x7f" else r"\u007f"


def _spell_in_yaml(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"
