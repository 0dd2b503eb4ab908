"""The syntax of shell scripts: simple commands, words and their parts. Nothing is executed.

Blocks are recognized, not followed: each command says which condition, loop or function it is in.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from llava_recipes.errors import Mark, RecipeError

MAX_NESTING = 20
MAX_WORDS = 20_000
MAX_OPEN_BLOCKS = 100

ARITHMETIC, SUBSTITUTION = "an arithmetic expression", "a command substitution"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9@*#?$!-]")
_NAME_GOES_ON = re.compile(r"(\\\n)+[A-Za-z0-9_]")
_LIST = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
_BRACES = re.compile(
    r"(?P<count>#(?=[A-Za-z_@*]))?(?P<name>[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#])"
    r"(?P<entry>\[(?:[@*]|[0-9]{1,4})\])?(?P<change>:[-=?+]|##|%%|//|[-=?+#%/^,:@[]|(?=}))"
)
_OTHER_BRACES = re.compile(r"[^}\n]*}")
_PLAIN = {
    False: re.compile(r"[^\s\\'\"$`;&|<>()}/]+"),
    True: re.compile(r"[^\\\"$`}/]+"),
}
"""Literal text, by whether it is in quotes."""
_REDIRECTION = re.compile(r"[0-9]*(?:<<-|<<<|<<|>>|>&|<&|>\||[<>](?!\())|&>>|&>")
_OPERATOR = re.compile(rf"{_REDIRECTION.pattern}|&&|\|\||;;&?|;&|[;&|()\n]")
_BLANK = re.compile(r"(?:[ \t\r]|\\\r?\n|#[^\n]*)+")

_OPENS = {
    "if": ("fi", "an `if`"),
    **dict.fromkeys(("for", "while", "until", "select"), ("done", "a loop")),
    "case": ("esac", "a `case`"),
    "{": ("}", ""),
}
_CLOSES = frozenset({"fi", "done", "esac", "}"})
_BETWEEN = frozenset({"then", "else", "elif", "do", "!"})
_KEEPS_ITS_WORD = frozenset({"for", "select", "case"})


@dataclass(frozen=True)
class Plain:
    """Literal text; quoted text is neither split nor read as a pattern."""

    text: str
    quoted: bool


@dataclass(frozen=True)
class Parameter:
    """`$NAME` or `${NAME…}`."""

    name: str
    change: str
    """`:-`, `#`, `//` and the like; empty for the value itself, `[@]`, `[*]` or `[2]` for entries of a list,
    and `length` before any of these for its length."""
    first: tuple[Part, ...]
    second: tuple[Part, ...]
    quoted: bool
    mark: Mark


@dataclass(frozen=True)
class Computed:
    """Arithmetic or a command substitution; `source` is the text inside its brackets, empty if not read."""

    what: str
    source: str
    quoted: bool
    mark: Mark


Part = Plain | Parameter | Computed


@dataclass(frozen=True)
class Word:
    """One word of a command, and its place; `entries` of a list `NAME=(…)`."""

    parts: tuple[Part, ...]
    mark: Mark
    entries: tuple[Word, ...] | None = None

    @property
    def plain(self) -> str | None:
        """The text of a word without quotes and parameters; None for any other."""
        texts = [part.text for part in self.parts if isinstance(part, Plain) and not part.quoted]
        return "".join(texts) if self.entries is None and len(texts) == len(self.parts) else None

    @property
    def head(self) -> str:
        """The text before the first quote or parameter."""
        first = self.parts[0] if self.parts else None
        return first.text if isinstance(first, Plain) and not first.quoted else ""


@dataclass(frozen=True)
class Operator:
    """What separates commands: `;`, `&&`, `|`, a line break, a parenthesis, a redirection."""

    text: str
    mark: Mark


@dataclass(frozen=True)
class Statement:
    """The words of one command; `block` is `an `if``, `a loop`, `a function` around it, or empty."""

    words: tuple[Word, ...]
    block: str
    ended_by: str
    """The operator after it; empty at the end of the text."""
    prints: bool
    """Whether its output is not redirected."""


def written(word: Word) -> str:
    """A word as messages show it, without quotes."""
    return "".join(map(_written, word.parts))


def _written(part: Part) -> str:
    if isinstance(part, Plain):
        return part.text
    if isinstance(part, Parameter):
        return f"${{{part.name}{'…' if part.change else ''}}}"
    if not part.source:
        return "$…"
    return f"$(({part.source}))" if part.what == ARITHMETIC else f"$({part.source})"


def read_quoted(text: str, file: str) -> tuple[Part, ...]:
    """The parts of text read as in double quotes. Raises RecipeError."""
    return tuple(_Reader(text, file).parts("", quoted=True))


def read_statements(text: str, file: str) -> Iterator[Statement]:
    """The commands of a script. Raises RecipeError if a quote, parenthesis or block is never closed."""
    blocks = _Blocks()
    for number, token in enumerate(_Reader(text, file).tokens()):
        if number >= MAX_WORDS:
            message = f"this is not a training script: it has more than {MAX_WORDS:,} words"
            raise _refusal(message, "script-too-large", token.mark)
        if isinstance(token, Operator):
            yield from blocks.operator(token)
        else:
            blocks.word(token)
    yield from blocks.finish()


class _Reader:
    """The words and operators of a text, without comments and here-documents."""

    def __init__(self, text: str, file: str) -> None:
        self._text, self._file, self._at, self._depth = text, file, 0, 0
        self._lines = text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)
        self._documents: list[Word] = []

    def _mark(self, start: int, width: int = 1) -> Mark:
        line = min(bisect.bisect_right(self._starts, start) - 1, len(self._lines) - 1)
        column = start - self._starts[line]
        shown = self._lines[line].rstrip("\r")
        return Mark(self._file, line + 1, column + 1, max(1, min(width, len(shown) - column)), shown)

    def _since(self, start: int) -> Mark:
        return self._mark(start, self._at - start)

    def _never_closed(self, message: str, start: int, closing: str, width: int = 1) -> RecipeError:
        hint = f"close it with {'a backtick' if closing == '`' else f'`{closing}`'}"
        return _refusal(message, "never-closed", self._mark(start, width), hint)

    def tokens(self) -> Iterator[Word | Operator]:
        text, opens_document = self._text, False
        while self._skip_blanks() < len(text):
            start = self._at
            operator = _OPERATOR.match(text, start)
            end = self._bracket_end(start, start, ARITHMETIC) if text.startswith("((", start) else start
            if self._is_sum(start, end):
                self._at, mark = end, self._mark(start, end - start)
                yield Word((Plain("let", quoted=False),), mark)
                yield Word((Computed(ARITHMETIC, text[start + 2 : end - 2], True, mark),), mark)
            elif operator is None:
                word = self._word()
                if opens_document:
                    self._documents.append(word)
                    opens_document = False
                yield word
            else:
                self._at = operator.end()
                opens_document = operator.group() in ("<<", "<<-")
                yield Operator(operator.group(), self._since(start))
                if operator.group() == "\n":
                    self._skip_documents()
        if self._documents:
            raise _open_document(self._documents[0])

    def _skip_blanks(self) -> int:
        blank = _BLANK.match(self._text, self._at)
        self._at = blank.end() if blank else self._at
        return self._at

    def _skip_documents(self) -> None:
        for word in self._documents:
            line = None
            while line != written(word):
                if self._at >= len(self._text):
                    raise _open_document(word)
                end = self._text.find("\n", self._at)
                end = len(self._text) if end < 0 else end
                line, self._at = self._text[self._at : end].strip("\t\r"), end + 1
        self._documents.clear()

    def _word(self) -> Word:
        start = self._at
        if self._text.startswith(("<(", ">("), start):
            what = "a process substitution"
            self._at = self._bracket_end(start + 1, start, what)
            return Word((Computed(what, "", False, self._since(start)),), self._since(start))
        parts = tuple(self.parts(" \t\r\n;&|<>()", quoted=False))
        word = Word(parts, self._since(start))
        if self._text.startswith("(", self._at) and _LIST.fullmatch(word.plain or ""):
            return Word(parts, word.mark, tuple(self._entries()))
        return word

    def _entries(self) -> Iterator[Word]:
        opened = self._at
        self._at += 1
        while not self._text.startswith(")", self._skip_blanks()):
            character = self._text[self._at : self._at + 1]
            if not character:
                raise self._never_closed("this list is never closed", opened, ")")
            if character in ";&|<>(":
                message = f"`{character}` is not allowed inside a list"
                raise _refusal(message, "shell-syntax", self._mark(self._at))
            if character.isspace():
                self._at += 1
            else:
                yield self._word()
        self._at += 1

    def parts(self, stops: str, *, quoted: bool) -> Iterator[Part]:
        """The parts of the text up to one of `stops`."""
        text = self._text
        self._depth += 1
        if self._depth > MAX_NESTING:
            message = f"nested deeper than {MAX_NESTING} levels"
            raise _refusal(message, "script-too-large", self._mark(self._at))
        while self._at < len(text) and text[self._at] not in stops:
            character, start = text[self._at], self._at
            if character == "\\":
                yield from self._escaped(stops, quoted=quoted)
            elif character == "'" and not quoted:
                self._at = self._end("'", start, "this quote")
                yield Plain(text[start + 1 : self._at - 1], quoted=True)
            elif character == '"':
                self._at += 1
                yield Plain("", quoted=True)
                yield from self.parts('"', quoted=True)
                if self._at >= len(text):
                    raise self._never_closed("this quote is never closed", start, '"')
                self._at += 1
            elif character == "$":
                yield self._dollar(quoted=quoted)
            elif character == "`":
                self._at = self._end("`", start, "a command substitution with backticks")
                source = re.sub(r"\\([\\`$])", r"\1", text[start + 1 : self._at - 1])
                yield Computed(SUBSTITUTION, source, quoted, self._since(start))
            else:
                plain = _PLAIN[quoted].match(text, start)
                self._at = plain.end() if plain else start + 1
                yield Plain(text[start : self._at], quoted)
        self._depth -= 1

    def _escaped(self, stops: str, *, quoted: bool) -> Iterator[Plain]:
        following = self._text[self._at + 1 : self._at + 2]
        self._at += 2
        if following == "\r" and self._text.startswith("\n", self._at):
            self._at += 1
        elif quoted and following != "\n":
            yield Plain(following if following in '$`"\\' + stops else "\\" + following, quoted=True)
        elif following not in ("\n", ""):
            yield Plain(following, quoted=True)

    def _dollar(self, *, quoted: bool) -> Part:
        text, start = self._text, self._at
        following = text[start + 1 : start + 2]
        name = _NAME.match(text, start + 1)
        if name is not None:
            self._at = name.end()
            if _NAME_GOES_ON.match(text, self._at):
                return Computed("a name that continues in the next line", "", quoted, self._since(start))
            change = f"[{name.group()}]" if name.group() in ("@", "*") else ""
            return Parameter(name.group(), change, (), (), quoted, self._since(start))
        if following == "{":
            return self._braces(start, quoted=quoted)
        if following == "(":
            self._at = self._bracket_end(start + 1, start, SUBSTITUTION)
            inner = text[start + 2 : self._at - 1]
            if self._is_sum(start + 1, self._at):
                return Computed(ARITHMETIC, inner[1:-1], quoted, self._since(start))
            return Computed(SUBSTITUTION, inner, quoted, self._since(start))
        self._at = start + 1
        if following == "'" and not quoted:
            self._at = self._end("'", start + 1, "this quote")
            inner = text[start + 2 : self._at - 1]
            if "\\" not in inner:
                return Plain(inner, quoted=True)
            return Computed("a quote with escapes", "", False, self._since(start))
        return Plain("" if following == '"' and not quoted else "$", quoted)

    def _braces(self, start: int, *, quoted: bool) -> Part:
        text = self._text
        found = _BRACES.match(text, start + 2)
        if found is None or (found["change"] and (found["count"] or found["entry"])):
            other = _OTHER_BRACES.match(text, start + 2)
            if other is None:
                raise self._never_closed("this `${` is never closed", start, "}", width=2)
            self._at = other.end()
            return Computed("an expansion of this kind", "", quoted, self._since(start))
        self._at = found.end()
        name, change = found["name"], found["change"]
        first: tuple[Part, ...] = ()
        second: tuple[Part, ...] = ()
        if change:
            replaces = change[0] == "/"
            # Quotes around the whole parameter don't quote a pattern.
            first = tuple(self.parts("/}" if replaces else "}", quoted=quoted and change[0] not in "#%/"))
            if replaces and text.startswith("/", self._at):
                self._at += 1
                second = tuple(self.parts("}", quoted=quoted))
        else:
            entry = found["entry"] or (f"[{name}]" if name in ("@", "*") else "")
            change = f"length{entry}" if found["count"] else entry
        if not text.startswith("}", self._at):
            raise self._never_closed("this `${` is never closed", start, "}", width=2)
        self._at += 1
        return Parameter(name, change, first, second, quoted, self._since(start))

    def _is_sum(self, opened: int, end: int) -> bool:
        """Whether the parentheses from one place to another contain arithmetic, not a command."""
        return self._text.startswith("((", opened) and self._text.endswith("))", opened + 2, end)

    def _bracket_end(self, opened: int, start: int, what: str) -> int:
        """The place after the closing parenthesis, past quotes and parentheses inside."""
        text, depth, at = self._text, 0, opened
        while at < len(text):
            character = text[at]
            if character == "\\":
                at += 1
            elif character in "'\"":
                at = self._end(character, at, "this quote") - 1
            elif character in "()":
                depth += 1 if character == "(" else -1
                if depth == 0:
                    return at + 1
            at += 1
        raise self._never_closed(f"{what} is never closed", start, ")", width=2)

    def _end(self, closing: str, start: int, what: str) -> int:
        """The place after the closing character."""
        at = start + 1
        while at < len(self._text) and self._text[at] != closing:
            at += 2 if self._text[at] == "\\" and closing != "'" else 1
        if at >= len(self._text):
            raise self._never_closed(f"{what} is never closed", start, closing)
        return at + 1


def _open_document(word: Word) -> RecipeError:
    message, hint = "this here-document is never closed", "close it with a line that is this word"
    return _refusal(message, "never-closed", word.mark, hint)


def _refusal(message: str, code: str, mark: Mark, hint: str | None = None) -> RecipeError:
    return RecipeError.of(message, code=code, mark=mark, hint=hint)


@dataclass(frozen=True)
class _Block:
    closing: str
    kind: str
    mark: Mark


class _Blocks:
    """Commands from words and operators, with the blocks around them."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._words: list[Word] = []
        self._skips_next = self._in_test = self._in_function_head = False
        self._prints = True

    def operator(self, token: Operator) -> Iterator[Statement]:
        if self._in_test and token.text != "\n":
            return
        if _REDIRECTION.fullmatch(token.text):
            self._prints = self._prints and not token.text.startswith((">", "1>", "&"))
            self._skips_next = True
        elif token.text == "(":
            if len(self._words) == 1 and self._words[0].plain not in _OPENS:
                self._in_function_head = True
                self._words.clear()
            self._open(")", "", token.mark)
        elif token.text == ")" and self._blocks and self._blocks[-1].closing == "esac":
            # The pattern of a case, not a command.
            self._words.clear()
        else:
            yield from self._end_statement(token.text)
            if token.text == ")":
                self._close(")", token.mark)

    def word(self, token: Word) -> None:
        if self._skips_next:
            self._skips_next = False
            return
        plain = None if self._words and not self._in_function_head else token.plain
        if plain == "function":
            self._in_function_head = True
        elif plain in _OPENS:
            closing, kind = _OPENS[plain]
            if plain == "{" and self._in_function_head:
                kind, self._in_function_head = "a function", False
                self._words.clear()
            self._open(closing, kind, token.mark)
            if plain not in _KEEPS_ITS_WORD:
                return
        elif plain in _CLOSES:
            self._close(plain, token.mark)
            return
        elif plain in _BETWEEN:
            return
        self._in_test = token.plain == "[[" or (self._in_test and token.plain != "]]")
        self._words.append(token)

    def finish(self) -> Iterator[Statement]:
        yield from self._end_statement("")
        if self._blocks:
            block = self._blocks[-1]
            what = block.kind or f"a `{'(' if block.closing == ')' else '{'}`"
            hint = f"close it with `{block.closing}`"
            raise _refusal(f"{what} is never closed", "never-closed", block.mark, hint)

    def _end_statement(self, ended_by: str) -> Iterator[Statement]:
        if self._words:
            kind = next((block.kind for block in reversed(self._blocks) if block.kind), "")
            yield Statement(tuple(self._words), kind, ended_by, self._prints)
            self._words.clear()
        self._in_test, self._prints = False, True

    def _open(self, closing: str, kind: str, mark: Mark) -> None:
        if len(self._blocks) >= MAX_OPEN_BLOCKS:
            message = f"more than {MAX_OPEN_BLOCKS} nested blocks"
            raise _refusal(message, "script-too-large", mark)
        self._blocks.append(_Block(closing, kind, mark))

    def _close(self, closing: str, mark: Mark) -> None:
        if self._blocks and self._blocks[-1].closing == closing:
            self._blocks.pop()
            return
        hint = "remove it"
        if self._blocks:
            block = self._blocks[-1]
            hint = f"close {block.kind or 'the bracket'} of line {block.mark.line} with `{block.closing}`"
        raise _refusal(f"this `{closing}` closes nothing", "shell-syntax", mark, hint)
