"""Walk through a shell script without running it: which commands it gives, with which words.

Variables are followed; conditions and loops are not, so what stands inside one is not known to happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llava_recipes.migrate.expand import Scope, UnknownValue, Variable, expand_word
from llava_recipes.migrate.statements import Statement, read_statements
from llava_recipes.migrate.variables import Spent, Variables, assigned_name, head_of
from llava_recipes.migrate.word_parts import Word, written
from llava_recipes.recipe.errors import Mark, Problem, RecipeError

MAX_COMMAND_CHARACTERS = 100_000
MAX_CALLS_DEEP = 8
MAX_CALLS = 50

ReadScript = Callable[[str, str], tuple[str, str] | None]
"""From a path in a script, and the script's own file, to the file found and its text."""

_DECLARES = frozenset({"export", "declare", "local", "readonly", "typeset"})
_SHELLS = frozenset({"bash", "sh", "zsh"})
_RUNS_SCRIPTS = _SHELLS | {"source", "."}


@dataclass(frozen=True)
class Argument:
    """One argument of a command as the program would get it, and the place of the word it comes from."""

    text: str
    mark: Mark


@dataclass(frozen=True)
class Untold:
    """A word of a command that cannot be told without running the script."""

    text: str
    """As it is written, with `$` before what is not filled in."""
    problem: Problem


@dataclass(frozen=True)
class Command:
    """A command of the script: its words, not yet filled in, and what they refer to.

    The variables move on with the script: fill words in before the next command is asked for.
    """

    words: tuple[Word, ...]
    scope: Scope
    block: str
    """`an `if``, `a loop` or `a function` where the command stands inside one, else empty."""
    visible_devices: str | None = None
    """What CUDA_VISIBLE_DEVICES is for this command, where the script says it."""

    def fill(self) -> list[Argument | Untold]:
        """The words filled in; a problem in the place of each value that cannot be told."""
        filled = list[Argument | Untold]()
        num_characters = 0
        for word in self.words:
            try:
                texts = expand_word(word, self.scope)
            except UnknownValue as unknown:
                filled.append(Untold(written(word), unknown.problem))
                continue
            num_characters += sum(map(len, texts))
            if num_characters > MAX_COMMAND_CHARACTERS:
                message = f"a command longer than {MAX_COMMAND_CHARACTERS:,} characters"
                raise RecipeError(Problem(message, code="script-too-large", mark=word.mark))
            filled += [Argument(text, word.mark) for text in texts]
        return filled

    def spell(self) -> list[str]:
        """The words filled in, with `?` in the place of each value that cannot be told."""
        spelled: list[str] = []
        for word in self.words:
            try:
                spelled += expand_word(word, self.scope)
            except UnknownValue:
                spelled.append(f"{head_of(word)}?")
        return spelled


def walk_commands(
    text: str,
    file: str,
    *,
    positional: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    read_script: ReadScript | None = None,
    started_in: str | None = None,
) -> Iterator[Command]:
    """The commands of a script in the order they stand, those of scripts that it calls in their place.

    `variables` come from outside, and win over what the script sets. Raises RecipeError for text that is
    not well-formed.
    """
    given = dict[str, Variable](variables or {})
    start = given if started_in is None else {"PWD": started_in, **given}
    kept = Variables(file, tuple(positional), start, frozenset(given), Spent())
    return _Walk(file, kept, read_script, (file,)).commands(text)


class _Walk:
    """One script's variables as they stand while its commands are listed."""

    def __init__(
        self,
        file: str,
        variables: Variables,
        read_script: ReadScript | None,
        callers: tuple[str, ...],
    ) -> None:
        self._file, self._variables = file, variables
        self._read_script, self._callers = read_script, callers

    def commands(self, text: str) -> Iterator[Command]:
        # All of it first, so that what is not closed is told before anything else.
        for statement in list(read_statements(text, self._file)):
            words = statement.words
            declares = words[0].plain in _DECLARES
            rest = (
                [word for word in words[1:] if not (word.plain or "").startswith("-")] if declares else words
            )
            first = next((at for at, word in enumerate(rest) if not assigned_name(word)), len(rest))
            if declares or first == len(rest):
                for word in rest:
                    if assigned_name(word):
                        self._variables.assign(word, statement)
                continue
            yield from self._command(tuple(rest[first:]), statement, before=tuple(rest[:first]))

    def _command(
        self, words: tuple[Word, ...], statement: Statement, *, before: tuple[Word, ...]
    ) -> Iterator[Command]:
        name = words[0].plain
        if name in ("for", "select", "read", "mapfile", "readarray"):
            for word in words[1:]:
                self._variables.forget(
                    word.plain or "", word.mark, f"`{name}` sets it, which is not followed"
                )
            if name in ("for", "select"):
                return
        elif name == ":" and not statement.block:
            self._variables.keep_defaults(words)
        elif name == "unset" and not statement.block:
            for word in words[1:]:
                self._variables.unset(word.plain or "")
        elif name == "shift" and not statement.block:
            count = words[1].plain if len(words) > 1 else "1"
            self._variables.shift(int(count) if count and count.isdigit() else None)
        elif name in ("cd", "pushd", "popd"):
            self._variables.change_folder(words, statement)
            return
        elif name == "let":
            for word in words[1:]:
                self._variables.set_sum(word, statement)
            return
        elif name == "printf" and len(words) > 2 and words[1].plain == "-v":
            self._variables.forget(
                words[2].plain or "", words[2].mark, "`printf` sets it, which is not followed"
            )
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
            kept = self._variables.copied(self._file, ())
            yield from self._walk_into(self._file, inner, kept, words[0].mark, statement)
            return
        yield Command(
            words, self._variables.scope(), statement.block, self._variables.visible_devices(before)
        )

    def _inner_script(self, words: tuple[Word, ...]) -> str | None:
        """The text of `bash -c '…'`, behind whatever launcher, moved to where it stands in the file."""
        for shell, option, script in zip(words, words[1:], words[2:], strict=False):
            if shell.plain in _SHELLS and option.plain in ("-c", "-lc", "-ec"):
                try:
                    text = " ".join(expand_word(script, self._variables.scope()))
                except UnknownValue as unknown:
                    raise RecipeError(unknown.problem) from None
                return "\n" * (script.mark.line - 1) + " " * script.mark.column + text
        return None

    def _called(self, words: tuple[Word, ...], statement: Statement) -> Iterator[Command] | None:
        """The commands of a script that this one calls; None where it is not at hand."""
        scope = self._variables.scope()
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
                Problem(f"the script {file} calls itself", code="script-circular", mark=words[0].mark)
            )
        shares = words[0].plain in ("source", ".")
        kept = self._variables.shared(file, arguments) if shares else self._variables.copied(file, arguments)
        return self._walk_into(file, text, kept, words[0].mark, statement)

    def _walk_into(
        self,
        file: str,
        text: str,
        variables: Variables,
        mark: Mark,
        statement: Statement,
    ) -> Iterator[Command]:
        if len(self._callers) >= MAX_CALLS_DEEP or variables.count_call() > MAX_CALLS:
            message = (
                f"more than {MAX_CALLS_DEEP} scripts call each other, or more than {MAX_CALLS} are called"
            )
            raise RecipeError(Problem(message, code="script-too-large", mark=mark))
        callers = (*self._callers, file)
        walk = _Walk(file, variables, self._read_script, callers)
        return (replace(command, block=command.block or statement.block) for command in walk.commands(text))
