"""Read shell text into words, without running any of it."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import replace

from llava_recipes.migrate.word_parts import (
    ARITHMETIC,
    SUBSTITUTION,
    Operator,
    Parameter,
    Part,
    Plain,
    Unread,
    Word,
)
from llava_recipes.recipe.errors import Mark, Problem, RecipeError

MAX_NESTING = 20
MAX_WORDS = 20_000
MAX_SUM_CHARACTERS = 2_000

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME_GOES_ON = re.compile(r"(\\\n)+[A-Za-z0-9_]")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
_PLAIN = re.compile(r"[^\s\\'\"$`;&|<>()#}/]+")
_IN_QUOTES = re.compile(r"[^\\\"$`]+")
_BEFORE_A_COMMAND = frozenset({"if", "then", "else", "elif", "while", "until", "do", "for", "{", "!"})
_OPERATOR = re.compile(r"&&|\|\||;;&?|;&|<<-|<<<|<<|>>|>&|<&|&>>|&>|>\||[;&|<>()\n]")
_ESCAPED = re.compile(r"\\([\\`$])")
_BLANK = re.compile(r"(?:[ \t\r]|\\\r?\n)+")
_CHANGE = re.compile(r":[-=?+]|##|%%|//|/[#%]|\^\^|,,|[-=?+#%/^,:@]")


def read_words(text: str, file: str) -> Iterator[Word | Operator]:
    """The words and operators of a script, comments and here-documents left out.

    Raises RecipeError where a quote, a bracket or a here-document is not closed.
    """
    for number, token in enumerate(_Reader(text, file).tokens()):
        if number >= MAX_WORDS:
            message = f"more than {MAX_WORDS:,} words; this is no training script"
            raise RecipeError(Problem(message, code="script-too-large", mark=token.mark))
        yield token


def read_quoted(text: str, file: str) -> tuple[Part, ...]:
    """The parts of text that is read as if it stood in double quotes. Raises RecipeError."""
    return _Reader(text, file).quoted_parts()


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self._text, self._file, self._at, self._depth = text, file, 0, 0
        self._lines = text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)
        self._documents: list[tuple[str, Mark]] = []

    def mark(self, start: int, width: int = 1) -> Mark:
        line = min(bisect.bisect_right(self._starts, start) - 1, len(self._lines) - 1)
        column = start - self._starts[line]
        shown = self._lines[line].rstrip("\r")
        return Mark(self._file, line + 1, column + 1, max(1, min(width, len(shown) - column)), shown)

    def refuse(
        self, message: str, start: int, hint: str | None = None, width: int = 1, *, code: str
    ) -> RecipeError:
        return RecipeError(Problem(message, code=code, mark=self.mark(start, width), hint=hint))

    def tokens(self) -> Iterator[Word | Operator]:
        text, wants_document = self._text, False
        begins = True
        while True:
            blank = _BLANK.match(text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at >= len(text):
                break
            start = self._at
            if text[start] == "#":
                self._at = _end_of(text, "\n", start)
                continue
            if begins and self._is_sum(start):
                yield from self._sum_command(start)
                begins = False
                continue
            if text.startswith(("<(", ">("), start):
                yield self._word()
                continue
            operator = _OPERATOR.match(text, start)
            if operator is None:
                word = self._word()
                if wants_document:
                    self._documents.append((_unquoted(word), word.mark))
                    wants_document = False
                yield word
                begins = word.plain in _BEFORE_A_COMMAND
                continue
            self._at = operator.end()
            begins = True
            wants_document = operator.group() in ("<<", "<<-")
            yield Operator(operator.group(), self.mark(start, len(operator.group())))
            if operator.group() == "\n":
                self._skip_documents()
        if self._documents:
            raise RecipeError(_not_closed("a here-document", self._documents[0][1]))

    def quoted_parts(self) -> tuple[Part, ...]:
        return tuple(self._parts(stops="", quoted=True))

    def _skip_documents(self) -> None:
        for delimiter, mark in self._documents:
            while True:
                if self._at >= len(self._text):
                    raise RecipeError(_not_closed("a here-document", mark))
                end = _end_of(self._text, "\n", self._at)
                line = self._text[self._at : end].strip("\t\r")
                self._at = min(end + 1, len(self._text))
                if line == delimiter:
                    break
        self._documents.clear()

    def _word(self) -> Word:
        start = self._at
        parts = tuple(self._parts(stops=" \t\r\n;&|<>()", quoted=False))
        entries = None
        is_open = self._text[self._at : self._at + 1] == "("
        name = parts[0].text if len(parts) == 1 and isinstance(parts[0], Plain) else ""
        if is_open and _ASSIGNMENT.fullmatch(name):
            entries = tuple(self._entries())
        if not parts and self._text.startswith(("<(", ">("), self._at):
            parts = (self._command(self._at + 1, start, "a process substitution", quoted=False),)
        return Word(parts, self.mark(start, self._at - start), entries)

    def _entries(self) -> Iterator[Word]:
        opened = self._at
        self._at += 1
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self._at += 1
            blank = _BLANK.match(self._text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at >= len(self._text):
                raise self.refuse(
                    "a list that opens with `(` is not closed",
                    opened,
                    "close it with `)`",
                    code="never-closed",
                )
            letter = self._text[self._at]
            if letter == ")":
                self._at += 1
                return
            if letter == "#":
                self._at = _end_of(self._text, "\n", self._at)
            elif letter in ";&|<>(":
                raise self.refuse(f"`{letter}` has no place inside a list", self._at, code="shell-syntax")
            elif not letter.isspace():
                yield self._word()

    def _parts(self, *, stops: str, quoted: bool) -> Iterator[Part]:
        text = self._text
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise self.refuse(f"nested deeper than {MAX_NESTING} levels", self._at, code="script-too-large")
        while self._at < len(text) and text[self._at] not in stops:
            letter, start = text[self._at], self._at
            if letter == "\\":
                self._at += 2
                if text.startswith("\r\n", start + 1):
                    self._at += 1
                elif text[start + 1 : start + 2] not in ("\n", ""):
                    yield Plain(text[start + 1 : start + 2], quoted=True)
            elif letter == "'" and not quoted:
                yield self._single(start)
            elif letter == '"':
                yield from self._double(start)
            elif letter == "$":
                yield self._dollar(quoted=quoted)
            elif letter == "`":
                self._at = self._close("`", start, "a command substitution with backticks")
                yield self._backticks(start, quoted=quoted)
            else:
                plain = _PLAIN.match(text, start)
                self._at = plain.end() if plain else start + 1
                yield Plain(text[start : self._at], quoted)
        self._depth -= 1

    def _single(self, start: int) -> Plain:
        self._at = self._close("'", start, "a quote")
        return Plain(self._text[start + 1 : self._at - 1], quoted=True)

    def _double(self, start: int) -> Iterator[Part]:
        text = self._text
        self._at += 1
        yield Plain("", quoted=True)
        while self._at < len(text) and text[self._at] != '"':
            at = self._at
            run = _IN_QUOTES.match(text, at)
            if run is not None:
                self._at = run.end()
                yield Plain(run.group(), quoted=True)
            elif text[at] == "\\":
                following = text[at + 1 : at + 2]
                self._at += 2
                if following != "\n":
                    yield Plain(following if following in '$`"\\' else "\\" + following, quoted=True)
            elif text[at] == "$":
                yield self._dollar(quoted=True)
            else:
                self._at = self._close("`", at, "a command substitution with backticks")
                yield self._backticks(at, quoted=True)
        if self._at >= len(text):
            raise self.refuse("a quote that is never closed", start, 'close it with `"`', code="never-closed")
        self._at += 1

    def _is_sum(self, opened: int) -> bool:
        """Whether two brackets open arithmetic: the inner one closes right before the outer one."""
        if not self._text.startswith("((", opened):
            return False
        depth = 0
        for at in range(opened + 1, min(opened + MAX_SUM_CHARACTERS, len(self._text))):
            depth += {"(": 1, ")": -1}.get(self._text[at], 0)
            if depth in (0, MAX_NESTING):
                return depth == 0 and self._text.startswith("))", at)
        return False

    def _sum_command(self, start: int) -> Iterator[Word]:
        """`((…))` as the word `let` and the expression."""
        found = self._command(start, start, ARITHMETIC, quoted=True)
        yield Word((Plain("let", quoted=False),), found.mark)
        source = self._text[start + 2 : self._at - 2]
        yield Word((replace(found, source=source),), found.mark)

    def _backticks(self, start: int, *, quoted: bool) -> Unread:
        source = _ESCAPED.sub(r"\1", self._text[start + 1 : self._at - 1])
        return Unread(SUBSTITUTION, quoted, self.mark(start, self._at - start), source)

    def _dollar(self, *, quoted: bool) -> Part:
        text, start = self._text, self._at
        following = text[start + 1 : start + 2]
        name = _NAME.match(text, start + 1)
        if name is not None:
            self._at = name.end()
            if _NAME_GOES_ON.match(text, self._at):
                return Unread(
                    "a name that goes on in the next line", quoted, self.mark(start, self._at - start)
                )
            return self._parameter(name.group(), start, quoted)
        if following and following in "0123456789@*#?$!-":
            self._at = start + 2
            return self._parameter(following, start, quoted)
        if following == "{":
            return self._braces(start, quoted)
        if following == "(":
            is_sum = self._is_sum(start + 1)
            found = self._command(start + 1, start, ARITHMETIC if is_sum else SUBSTITUTION, quoted=quoted)
            inner = text[start + 2 : self._at - 1]
            return replace(found, source=inner[1:-1] if is_sum else inner)
        self._at = start + 1
        if following == "'" and not quoted:
            plain = self._single(self._at)
            if "\\" not in plain.text:
                return plain
            return Unread("a quote with escapes", False, self.mark(start, self._at - start))
        return Plain("" if following == '"' and not quoted else "$", quoted)

    def _parameter(self, name: str, start: int, quoted: bool) -> Parameter:
        change = f"[{name}]" if name in ("@", "*") else ""
        return Parameter(name, change, (), (), quoted, self.mark(start, self._at - start))

    def _braces(self, start: int, quoted: bool) -> Part:
        text = self._text
        self._at = start + 2
        found = re.compile(
            r"(#(?=[A-Za-z_0-9@*]))?([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?$!-])(\[(?:[@*]|[0-9]{1,4})\])?"
        ).match(text, self._at)
        if found is None:
            self._at = self._close("}", start, "a parameter `${`")
            return Unread("an expansion of this kind", quoted, self.mark(start, self._at - start))
        self._at = found.end()
        length, name, array = found.groups()
        change = _CHANGE.match(text, self._at)
        first: tuple[Part, ...] = ()
        second: tuple[Part, ...] = ()
        kind = array or (f"[{name}]" if name in ("@", "*") else "")
        is_entry = bool(array) and array[1] not in "@*"
        if change is not None and not is_entry:
            kind = change.group()
            self._at = change.end()
            replaces = kind.startswith("/")
            # A pattern is not quoted by quotes around the whole parameter.
            inside = quoted and kind[0] not in "#%/"
            first = tuple(self._parts(stops="/}" if replaces else "}", quoted=inside))
            if replaces and text[self._at : self._at + 1] == "/":
                self._at += 1
                second = tuple(self._parts(stops="}", quoted=quoted))
        if text[self._at : self._at + 1] != "}":
            if "}" in text[self._at :].partition("\n")[0]:
                self._at = self._close("}", start, "a parameter `${`")
                return Unread("an expansion of this kind", quoted, self.mark(start, self._at - start))
            raise self.refuse("`${` is not closed", start, "close it with `}`", code="never-closed", width=2)
        self._at += 1
        mark = self.mark(start, self._at - start)
        if length:
            if change is not None:
                return Unread("the length of a value", quoted, mark)
            return Parameter(name, f"length{kind}", (), (), quoted, mark)
        return Parameter(name, kind, first, second, quoted, mark)

    def _command(self, opened: int, start: int, what: str, *, quoted: bool) -> Unread:
        """Skip to the bracket that closes, past quotes and brackets inside."""
        text, depth, at = self._text, 0, opened
        while at < len(text):
            letter = text[at]
            if letter == "\\":
                at += 1
            elif letter in "'\"":
                at = self._close(letter, at, "a quote") - 1
            elif letter in "()":
                depth += 1 if letter == "(" else -1
                if depth == 0:
                    self._at = at + 1
                    return Unread(what, quoted, self.mark(start, self._at - start))
            at += 1
        raise self.refuse(f"{what} is not closed", start, "close it with `)`", code="never-closed", width=2)

    def _close(self, closing: str, start: int, what: str) -> int:
        """The place after the closing letter."""
        at = start + 1
        while at < len(self._text) and self._text[at] != closing:
            at += 2 if self._text[at] == "\\" and closing != "'" else 1
        if at >= len(self._text):
            named = "a backtick" if closing == "`" else f"`{closing}`"
            raise self.refuse(
                f"{what} that is never closed", start, f"close it with {named}", code="never-closed"
            )
        return at + 1


def _end_of(text: str, letter: str, start: int) -> int:
    found = text.find(letter, start)
    return len(text) if found < 0 else found


def _unquoted(word: Word) -> str:
    return "".join(part.text for part in word.parts if isinstance(part, Plain))


def _not_closed(what: str, mark: Mark) -> Problem:
    return Problem(
        f"{what} that is never closed",
        code="never-closed",
        mark=mark,
        hint="end it with its own word on a line",
    )
