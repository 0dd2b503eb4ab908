"""Walk through a shell script without running it: which commands it gives, with which words.

Variables are followed; conditions and loops are not, so what stands inside one is not known to happen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llava_recipes.migrate.expand import Scope, UnknownValue, Variable, expand_text, expand_word
from llava_recipes.migrate.statements import Statement, read_statements
from llava_recipes.migrate.word_parts import Parameter, Part, Plain, Word
from llava_recipes.recipe.errors import Mark, Problem, RecipeError

MAX_COMMAND_CHARACTERS = 100_000
MAX_CALLS_DEEP = 8
MAX_CALLS = 50
MAX_KEPT_CHARACTERS = 2_000_000

ReadScript = Callable[[str, str], tuple[str, str] | None]
"""From a path in a script, and the script's own file, to the file found and its text."""

_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<adds>\+?)=")
_DECLARES = frozenset({"export", "declare", "local", "readonly", "typeset"})
_SHELLS = frozenset({"bash", "sh", "zsh"})
_RUNS_SCRIPTS = _SHELLS | {"source", "."}


@dataclass(frozen=True)
class Argument:
    """One argument of a command as the program would get it, and the place of the word it comes from."""

    text: str
    mark: Mark


@dataclass(frozen=True)
class Command:
    """A command of the script: its words, not yet filled in, and what they refer to.

    The variables move on with the script: fill words in before the next command is asked for.
    """

    words: tuple[Word, ...]
    scope: Scope
    block: str
    """`an `if``, `a loop` or `a function` where the command stands inside one, else empty."""

    def fill(self) -> list[Argument | Problem]:
        """The words filled in; a problem in the place of each value that cannot be told."""
        filled = list[Argument | Problem]()
        num_characters = 0
        for word in self.words:
            try:
                texts = expand_word(word, self.scope)
            except UnknownValue as unknown:
                filled.append(unknown.problem)
                continue
            num_characters += sum(map(len, texts))
            if num_characters > MAX_COMMAND_CHARACTERS:
                message = f"a command longer than {MAX_COMMAND_CHARACTERS:,} characters"
                raise RecipeError(Problem(message, code="command-longer-than-characters", mark=word.mark))
            filled += [Argument(text, word.mark) for text in texts]
        return filled


def walk_commands(
    text: str,
    file: str,
    *,
    positional: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    read_script: ReadScript | None = None,
) -> Iterator[Command]:
    """The commands of a script in the order they stand, those of scripts that it calls in their place.

    `variables` come from outside, and win over what the script sets inside conditions. Raises RecipeError
    for text that is not well-formed.
    """
    given = dict[str, Variable](variables or {})
    walk = _Walk(file, tuple(positional), given, frozenset(given), read_script, (file,), _Spent())
    return walk.commands(text)


@dataclass
class _Spent:
    """What a script and all that it calls have used of the limits."""

    kept_characters: int = 0
    calls: int = 0


class _Walk:
    """One script's variables as they stand while its commands are listed."""

    def __init__(
        self,
        file: str,
        positional: tuple[str, ...],
        variables: dict[str, Variable],
        given: frozenset[str],
        read_script: ReadScript | None,
        callers: tuple[str, ...],
        spent: _Spent,
    ) -> None:
        self._file, self._positional, self._variables = file, positional, variables
        self._given, self._read_script, self._callers = given, read_script, callers
        self._spent = spent

    def commands(self, text: str) -> Iterator[Command]:
        # All of it first, so that what is not closed is told before anything else.
        for statement in list(read_statements(text, self._file)):
            words = statement.words
            declares = words[0].plain in _DECLARES
            rest = (
                [word for word in words[1:] if not (word.plain or "").startswith("-")] if declares else words
            )
            first = next((at for at, word in enumerate(rest) if not _assigned_name(word)), len(rest))
            if declares or first == len(rest):
                for word in rest:
                    if _assigned_name(word):
                        self._assign(word, statement)
                continue
            yield from self._command(tuple(rest[first:]), statement)

    def _command(self, words: tuple[Word, ...], statement: Statement) -> Iterator[Command]:
        name = words[0].plain
        if name in ("for", "select", "read", "mapfile", "readarray"):
            for word in words[1:]:
                self._forget(word.plain or "", word.mark, f"`{name}` sets it, which is not followed")
            if name in ("for", "select"):
                return
        elif name == ":" and not statement.block:
            self._keep_defaults(words)
        elif name == "unset" and not statement.block:
            for word in words[1:]:
                self._variables.pop(word.plain or "", None)
        elif name == "shift" and not statement.block:
            count = words[1].plain if len(words) > 1 else "1"
            self._positional = self._positional[int(count) :] if count and count.isdigit() else ()
        elif (
            name in _RUNS_SCRIPTS
            and self._read_script is not None
            and len(words) > 1
            and words[1].plain != "-c"
        ):
            called = self._called(words, statement)
            if called is not None:
                yield from called
                return
        inner = self._inner_script(words)
        if inner is not None:
            yield from self._walk_into(self._file, inner, dict(self._variables), (), words[0].mark, statement)
            return
        scope = Scope(self._variables, self._positional, self._file)
        yield Command(words, scope, statement.block)

    def _inner_script(self, words: tuple[Word, ...]) -> str | None:
        """The text of `bash -c '…'`, behind whatever launcher, moved to where it stands in the file."""
        for shell, option, script in zip(words, words[1:], words[2:], strict=False):
            if shell.plain in _SHELLS and option.plain in ("-c", "-lc", "-ec"):
                try:
                    text = " ".join(expand_word(script, Scope(self._variables, self._positional, self._file)))
                except UnknownValue as unknown:
                    raise RecipeError(unknown.problem) from None
                return "\n" * (script.mark.line - 1) + " " * script.mark.column + text
        return None

    def _keep_defaults(self, words: tuple[Word, ...]) -> None:
        """`: ${NAME:=value}` sets what is not set yet."""
        for part in (part for word in words[1:] for part in word.parts):
            if isinstance(part, Parameter) and part.change in (":=", "="):
                scope = Scope(self._variables, self._positional, self._file)
                try:
                    self._keep(part.name, expand_text((part,), scope), part.mark)
                except UnknownValue as unknown:
                    self._variables[part.name] = unknown

    def _called(self, words: tuple[Word, ...], statement: Statement) -> Iterator[Command] | None:
        """The commands of a script that this one calls; None where it is not at hand."""
        scope = Scope(self._variables, self._positional, self._file)
        try:
            options = [word for word in words[1:] if not (word.plain or "").startswith("-")]
            path = "".join(expand_word(options[0], scope)) if options else ""
            assert self._read_script is not None
            found = self._read_script(path, self._file) if path else None
            if found is None:
                return None
            arguments = tuple(text for word in options[1:] for text in expand_word(word, scope))
        except UnknownValue as unknown:
            raise RecipeError(unknown.problem) from None
        file, text = found
        if file in self._callers:
            raise RecipeError(
                Problem(f"the script {file} calls itself", code="script-calls-itself", mark=words[0].mark)
            )
        shares = words[0].plain in ("source", ".")
        variables = self._variables if shares else dict(self._variables)
        positional = arguments if arguments or not shares else self._positional
        return self._walk_into(file, text, variables, positional, words[0].mark, statement)

    def _walk_into(
        self,
        file: str,
        text: str,
        variables: dict[str, Variable],
        positional: tuple[str, ...],
        mark: Mark,
        statement: Statement,
    ) -> Iterator[Command]:
        self._spent.calls += 1
        if len(self._callers) >= MAX_CALLS_DEEP or self._spent.calls > MAX_CALLS:
            message = (
                f"more than {MAX_CALLS_DEEP} scripts call each other, or more than {MAX_CALLS} are called"
            )
            raise RecipeError(Problem(message, code="more-than-scripts-call-each-other", mark=mark))
        callers = (*self._callers, file)
        walk = _Walk(file, positional, variables, self._given, self._read_script, callers, self._spent)
        return (replace(command, block=command.block or statement.block) for command in walk.commands(text))

    def _assign(self, word: Word, statement: Statement) -> None:
        name = _assigned_name(word)
        if statement.block:
            self._forget(name, word.mark, f"it is set inside {statement.block}, which is not followed")
            return
        adds = "+=" in _head(word)
        scope = Scope(self._variables, self._positional, self._file)
        value: Variable
        try:
            if word.entries is not None:
                value = tuple(text for entry in word.entries for text in expand_word(entry, scope))
            else:
                value = expand_text(_value_parts(word), scope)
            before = self._variables.get(name) if adds else None
            if isinstance(before, UnknownValue):
                value = before
            elif isinstance(before, tuple):
                value = before + (value if isinstance(value, tuple) else (value,))
            elif before is not None:
                value = (before, *value) if isinstance(value, tuple) else before + value
        except UnknownValue as unknown:
            value = unknown
        self._keep(name, value, word.mark)

    def _keep(self, name: str, value: Variable, mark: Mark) -> None:
        if not isinstance(value, UnknownValue):
            self._spent.kept_characters += sum(map(len, value)) if isinstance(value, tuple) else len(value)
        if self._spent.kept_characters > MAX_KEPT_CHARACTERS:
            message = f"the variables hold more than {MAX_KEPT_CHARACTERS:,} characters"
            raise RecipeError(Problem(message, code="variables-hold-more-than-characters", mark=mark))
        self._variables[name] = value

    def _forget(self, name: str, mark: Mark, why: str) -> None:
        if name and name not in self._given:
            message = f"the value of the variable `{name}` is needed and not known: {why}"
            hint = f"give it: --var {name}=VALUE"
            self._variables[name] = UnknownValue(
                Problem(message, code="value-variable-needed-not-known", mark=mark, hint=hint)
            )


def _head(word: Word) -> str:
    """What stands before the first quote or parameter of a word."""
    first = word.parts[0] if word.parts else None
    return first.text if isinstance(first, Plain) and not first.quoted else ""


def _assigned_name(word: Word) -> str:
    found = _ASSIGNMENT.match(_head(word))
    return found["name"] if found else ""


def _value_parts(word: Word) -> tuple[Part, ...]:
    first, *rest = word.parts
    assert isinstance(first, Plain), "an assignment starts with its name"
    return (Plain(first.text.partition("=")[2], quoted=False), *rest)
