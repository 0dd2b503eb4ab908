"""Shell words as simple commands, each with the condition, loop or function that it stands in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llava_recipes.migrate.word_parts import Operator, Word
from llava_recipes.migrate.words import read_words
from llava_recipes.recipe.errors import Mark, Problem, RecipeError

MAX_OPEN_BLOCKS = 100

_OPENS = {
    "if": ("fi", "an `if`"),
    "for": ("done", "a loop"),
    "while": ("done", "a loop"),
    "until": ("done", "a loop"),
    "select": ("done", "a loop"),
    "case": ("esac", "a `case`"),
    "{": ("}", ""),
}
_CLOSES = frozenset({"fi", "done", "esac", "}"})
_BETWEEN = frozenset({"then", "else", "elif", "do", "!"})
_KEEPS_ITS_WORD = frozenset({"for", "select", "case"})
_REDIRECTIONS = frozenset({"<", ">", ">>", ">&", "<&", "&>", "&>>", ">|", "<<", "<<-", "<<<"})


@dataclass(frozen=True)
class Statement:
    """The words of one command; `block` is empty, or `an `if``, `a loop`, `a function` around it."""

    words: tuple[Word, ...]
    block: str


@dataclass(frozen=True)
class _Block:
    closing: str
    kind: str
    mark: Mark


def read_statements(text: str, file: str) -> Iterator[Statement]:
    """The commands of a script; raises RecipeError where a quote, bracket or block is not closed."""
    parser = _Parser()
    for token in read_words(text, file):
        yield from parser.operator(token) if isinstance(token, Operator) else parser.word(token)
    yield from parser.finish()


class _Parser:
    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._words: list[Word] = []
        self._skips_next = False
        self._in_test = False
        self._function: Mark | None = None

    def _statement(self) -> Iterator[Statement]:
        if self._words:
            kind = next((block.kind for block in reversed(self._blocks) if block.kind), "")
            yield Statement(tuple(self._words), kind)
            self._words.clear()
        self._in_test = False

    def _open(self, closing: str, kind: str, mark: Mark) -> None:
        if len(self._blocks) >= MAX_OPEN_BLOCKS:
            raise RecipeError(
                Problem(
                    f"more than {MAX_OPEN_BLOCKS} blocks inside each other",
                    code="script-too-large",
                    mark=mark,
                )
            )
        self._blocks.append(_Block(closing, kind, mark))

    def operator(self, token: Operator) -> Iterator[Statement]:
        if self._in_test and token.text != "\n":
            return
        if token.text in _REDIRECTIONS:
            self._drop_descriptor(token.mark)
            self._skips_next = True
        elif token.text == "(":
            if len(self._words) == 1 and self._words[0].plain not in _OPENS:
                self._function = token.mark
                self._words.clear()
            self._open(")", "", token.mark)
        elif token.text == ")":
            in_case = bool(self._blocks) and self._blocks[-1].closing == "esac"
            if in_case:
                # The pattern of a case, not a command.
                self._words.clear()
                return
            yield from self._statement()
            self._close(")", token.mark)
        else:
            yield from self._statement()

    def word(self, token: Word) -> Iterator[Statement]:
        if self._skips_next:
            self._skips_next = False
            return
        plain = None if self._words else token.plain
        if plain == "function":
            self._function = token.mark
        if plain in _OPENS:
            closing, kind = _OPENS[plain]
            if plain == "{" and self._function is not None:
                kind, self._function = "a function", None
            self._open(closing, kind, token.mark)
            if plain not in _KEEPS_ITS_WORD:
                return
        elif plain in _CLOSES:
            self._close(plain, token.mark)
            return
        elif plain in _BETWEEN:
            return
        elif self._function is not None and token.plain == "{":
            self._words.clear()
            self._open("}", "a function", token.mark)
            self._function = None
            return
        self._in_test = token.plain == "[[" or (self._in_test and token.plain != "]]")
        self._words.append(token)
        yield from ()

    def finish(self) -> Iterator[Statement]:
        yield from self._statement()
        if self._blocks:
            block = self._blocks[-1]
            what = block.kind or f"a `{'(' if block.closing == ')' else '{'}`"
            hint = f"close it with `{block.closing}`"
            raise RecipeError(
                Problem(f"{what} that is never closed", code="never-closed", mark=block.mark, hint=hint)
            )

    def _close(self, closing: str, mark: Mark) -> None:
        if self._blocks and self._blocks[-1].closing == closing:
            self._blocks.pop()
            return
        hint = "remove it"
        if self._blocks:
            block = self._blocks[-1]
            hint = f"line {block.mark.line} opens {block.kind or 'a bracket'}, which `{block.closing}` closes"
        raise RecipeError(
            Problem(f"this `{closing}` closes nothing", code="shell-syntax", mark=mark, hint=hint)
        )

    def _drop_descriptor(self, mark: Mark) -> None:
        """Forget the `2` of `2>file`."""
        if not self._words:
            return
        last = self._words[-1]
        is_beside = last.mark.line == mark.line and last.mark.column + last.mark.width == mark.column
        if is_beside and (last.plain or "").isdigit():
            self._words.pop()
