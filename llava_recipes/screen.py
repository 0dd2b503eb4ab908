"""The one place where text leaves for a terminal, a pipe or a page: nothing in it steers what shows it.

Data may hold anything: names, captions, answers of a model, messages of a library. Whatever is printed goes
through here, where control characters are replaced, secrets are hidden and every stream can take the text.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO, cast

from llava_recipes.masking import mask

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

REPLACED = "\N{REPLACEMENT CHARACTER}"

_NAMED = {"\n": "↵", "\t": "→"}
# Controls; what turns text around, joins or hides; half characters; line and paragraph separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"
# What a workflow of GitHub would obey: as the first thing on a line, and anywhere in it.
_COMMAND = re.compile(r"^(\s*)::", re.MULTILINE)
_OLD_COMMAND = "##["
# What tqdm, which downloads of the hub use, sends to draw its bar again.
_BAR_MOVES = re.compile(r"(\x1b\[A)+|\n+(?:\x1b\[A)*")


class OutputLost(Exception):
    """Standard output or standard error takes no more text."""

    def __init__(self, stream: TextIO, reason: str, *, reader_left: bool) -> None:
        super().__init__(reason)
        self.stream = stream
        self.reader_left = reader_left
        """Whether whoever read it went away, as `head` does: no fault, and nobody to tell."""


def shown(text: str, *, keep: str = "") -> str:
    """A text as one line that moves no cursor, turns nothing around and shows no secret.

    Of each character that could, a visible one takes the place; those in `keep` stay.
    """
    if not text.isprintable():
        text = "".join(
            letter if letter in keep or not _is_unsafe(letter, text, place) else _NAMED.get(letter, REPLACED)
            for place, letter in enumerate(text)
        )
    return mask(text).replace(_OLD_COMMAND, r"##\[")


def escape_json(text: str, *, encoding: str = "utf-8") -> str:
    r"""JSON with `\uXXXX` for what `shown` would replace, and for what `encoding` has no bytes for.

    Values stay equal, but for secrets, which are hidden.
    """
    return mask(_escape(text, encoding, _spell_in_json)).replace(_OLD_COMMAND, r"##\u005b")


def escape_yaml(text: str) -> str:
    """YAML whose special characters stand in double quotes, escaped where `shown` would replace them."""
    return mask(_escape(text, "utf-8", _spell_in_yaml)).replace(_OLD_COMMAND, r"##\u005b")


def say(*lines: str, to_stderr: bool = False) -> None:
    """Print lines for a person. A line break inside one is data, and is shown as such."""
    say_lines("\n".join(shown(line) for line in lines or ("",)), to_stderr=to_stderr)


def say_lines(text: str, *, to_stderr: bool = False, end: str = "\n") -> None:
    """Print a text for a person whose line breaks are meant."""
    _write(_obeyed_by_nobody(shown(text, keep="\n")) + end, to_stderr=to_stderr)


def say_document(text: str) -> None:
    """Print a file: a recipe, a script. Its writer has quoted what could be read as something else."""
    _write(shown(text, keep="\n\t"), to_stderr=False)


def say_json(text: str) -> None:
    """Print JSON: its values stay as they are, spelled so that a terminal of any encoding takes them."""
    stream = _Stream.over(sys.stdout)
    if stream is not None:
        _write(escape_json(text, encoding=stream.encoding) + "\n", to_stderr=False)


def write_log(text: str) -> str:
    """Keep a traceback, which may quote anything, in a file of its own; gives the file's name."""
    import tempfile

    with tempfile.NamedTemporaryFile(
        "w", prefix="llava-recipe-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(shown(text, keep="\n\t"))
    return log.name


class Spoken:
    """An answer, printed as it grows; line breaks are meant."""

    def __init__(self) -> None:
        self._waiting = ""
        self._at_line_start = True

    def add(self, piece: str) -> None:
        """Print what can be judged so far: half a URL may yet turn out to hold a password."""
        whole, self._waiting = _split(self._waiting + piece)
        self._print(whole)

    def finish(self) -> None:
        """Print what waits, and end the line."""
        self._print(self._waiting)
        _write("\n", to_stderr=False)
        self._waiting, self._at_line_start = "", True

    def _print(self, text: str) -> None:
        if not text:
            return
        before = "" if self._at_line_start else "."
        _write(_obeyed_by_nobody(before + shown(text, keep="\n\t"))[len(before) :], to_stderr=False)
        _, has_break, line = text.rpartition("\n")
        self._at_line_start = (self._at_line_start or bool(has_break)) and not line.strip()


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person sits at it; a stream that was closed has nobody."""
    return stream is not None and stream.isatty()


def console(*, to_stderr: bool = False) -> Console:
    """A console of Rich that reads no markup in what it prints; the only kind that is made."""
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        """Shows every text as `shown` has it, and leaves what Rich itself sends to the terminal."""

        def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
            for segment in super().render(*arguments, **options):
                text, style, control = segment
                yield segment if control else Segment(shown(text, keep="\n"), style)

        def render_str(self, text: str, **options: Any) -> Text:
            # Before a table cuts it into lines: a half secret is not seen to be one.
            return super().render_str(shown(text), **options)

    stream = _Stream.over(sys.stderr if to_stderr else sys.stdout)
    file = cast(TextIO, stream) if stream is not None else io.StringIO()
    return Plain(file=file, stderr=to_stderr, markup=False, emoji=False, highlight=False)


def cell(*lines: str, style: str = "") -> Text:
    """Lines for a table or a panel, in a style of ours."""
    from rich.text import Text

    return Text("\n".join(map(shown, lines)), style=style)


def guard_streams(*, outlives_reader: bool = False) -> None:
    """Let what libraries print pass through here too, and what is typed be read in any encoding.

    With `outlives_reader` the process goes on in silence when nobody reads its output any more.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Guard):
            setattr(sys, name, _Guard(stream, outlives_reader=outlives_reader))
    if isinstance(sys.stdin, io.TextIOWrapper):
        encoding = "utf-8" if codecs.lookup(sys.stdin.encoding).name == "ascii" else sys.stdin.encoding
        sys.stdin.reconfigure(encoding=encoding, errors="replace")


def guard_redirected() -> None:
    """The same for the streams that a live bar of Rich has put in place: it would obey what they are sent."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "rich_proxied_file") and not isinstance(stream, _Guard):
            setattr(sys, name, _Guard(stream))


def flush_streams() -> None:
    """Send what waits in standard output and error; raises OutputLost."""
    for stream in (sys.stdout, sys.stderr):
        whole = _Stream.over(stream)
        if whole is not None:
            whole.flush()


def drop_rest(stream: TextIO) -> None:
    """Send whatever is still to come to nobody, so that the end of the process does not fail as well."""
    nobody = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nobody, stream.fileno())
    finally:
        os.close(nobody)


class _Stream:
    """A text stream that takes every character, and says by OutputLost when it takes no more."""

    def __init__(self, stream: TextIO, *, outlives_reader: bool = False) -> None:
        self._stream = stream
        self._outlives_reader = outlives_reader
        self._is_lost = False

    @classmethod
    def over(cls, stream: TextIO | None) -> _Stream | None:
        """The stream below any guard: for text that is safe already."""
        while stream is not None and not isinstance(stream, _Guard):
            inner = getattr(stream, "rich_proxied_file", None)
            if inner is None:
                return cls(stream)
            stream = inner
        if stream is None:
            return None
        return cls(stream._stream, outlives_reader=stream._outlives_reader)

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if self._is_lost:
            return len(text)
        encoding = self.encoding
        if not text.isascii():
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        if self._is_lost:
            return
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        reader_left = isinstance(error, BrokenPipeError)
        if not (reader_left and self._outlives_reader):
            reason = error.strerror or str(error)
            raise OutputLost(self._stream, reason, reader_left=reader_left) from None
        self._is_lost = True
        drop_rest(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Guard(_Stream):
    """What stands as `sys.stdout`: for the prints, warnings and logs of libraries."""

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


def _write(text: str, *, to_stderr: bool) -> None:
    stream = _Stream.over(sys.stderr if to_stderr else sys.stdout)
    if stream is not None:
        stream.write(text)
        stream.flush()


def _is_unsafe(letter: str, text: str, place: int) -> bool:
    if letter.isprintable() or unicodedata.category(letter) not in _UNSAFE:
        return False
    # Persian and Hindi are not written without joiners, nor is a family in one image.
    between = text[place - 1 : place] + text[place + 1 : place + 2]
    return not (letter in _JOINERS and len(between) == 2 and all(map(_takes_joiners, between)))


def _takes_joiners(letter: str) -> bool:
    return ord(letter) > 0x2FF and unicodedata.category(letter) in ("Lo", "Mn", "Mc", "So", "Sk")


def _obeyed_by_nobody(text: str) -> str:
    r"""The text with a `\` before what GitHub would take for a command of its workflow."""
    return _COMMAND.sub(r"\1\\::", text)


def _split(text: str) -> tuple[str, str]:
    """What may be printed, and the end of it that has to wait for more."""
    place = max(text.rfind(space) for space in " \n\t") + 1
    word = text[place:]
    if "/" in word or word[-1:] in (":", "#", *_JOINERS):
        return text[:place], word
    # A joiner that follows is judged by the letter before it.
    num_held = int(bool(word) and _takes_joiners(word[-1]))
    while 0 < num_held < len(word) and word[-num_held - 1] in _JOINERS:
        num_held += 2
    cut = max(place, len(text) - num_held)
    return text[:cut], text[cut:]


def _escape(text: str, encoding: str, spell: Callable[[str], str]) -> str:
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(
        spell(letter)
        if letter not in "\n\t" and (_is_unsafe(letter, "", 0) or not _fits(letter, encoding))
        else letter
        for letter in text
    )


def _fits(letter: str, encoding: str) -> bool:
    try:
        letter.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _spell_in_json(letter: str) -> str:
    return json.dumps(letter)[1:-1] if letter != "\x7f" else r"\u007f"


def _spell_in_yaml(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
