"""Find the training commands of a script, and read their flags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llava_recipes.migrate.launchers import count_processes, training_options
from llava_recipes.migrate.shell import Argument, Command, ReadScript, Untold, walk_commands
from llava_recipes.recipe.errors import Mark, Problem, RecipeError

MAX_COMMANDS = 20

_PROGRAM = re.compile(r"(?:.*/)?[\w.-]*(?:train|finetune)[\w.-]*\.py")
_MODULE = re.compile(r"(?:\w+\.)+\w*train\w*")
_FLAG = re.compile(r"--[A-Za-z][A-Za-z0-9_-]*(?==|$)")

LABELS = frozenset(
    {"run_name", "logging_dir", "cache_dir", "local_rank", "wandb_project", "wandb_name", "wandb_run_name"}
)
"""Flags whose values no training depends on: one that cannot be told is left out, and reported."""


@dataclass(frozen=True)
class Flag:
    """One flag of a command with its values; none means that it stands alone."""

    name: str
    values: tuple[str, ...]
    mark: Mark
    value_mark: Mark

    @property
    def text(self) -> str:
        """The values as they would be typed."""
        return " ".join(self.values)


@dataclass(frozen=True)
class UntoldLabel:
    """A flag among LABELS whose value cannot be told, and why."""

    name: str
    text: str
    problem: Problem


@dataclass(frozen=True)
class TrainingCommand:
    """A training program with its flags, and what its launcher says."""

    program: str
    """Empty for a file that holds nothing but flags."""
    flags: Mapping[str, Flag]
    repeated: tuple[Flag, ...]
    """Flags that a later one of the same name replaces."""
    num_processes: int | None
    launcher: tuple[tuple[str, str, str], ...]
    """Options of the launcher that change the training: the name, the value, and what is lost with it."""
    mark: Mark
    problems: tuple[Problem, ...] = ()
    """Why its flags cannot be told; they are empty then."""
    labels: tuple[UntoldLabel, ...] = ()
    """Flags that are not among `flags`, since only a shell could tell their values."""


def find_training_commands(
    text: str,
    file: str,
    *,
    positional: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    read_script: ReadScript | None = None,
    working_folder: str | None = None,
) -> list[TrainingCommand]:
    """The training commands of a script, or the one of a file that holds nothing but flags.

    Raises RecipeError where there is none. A command whose flags cannot be told has problems instead.
    """
    found: list[TrainingCommand] = []
    loose: list[Argument] = []
    loose_labels: list[UntoldLabel] = []
    is_flag_file = True
    for command in walk_commands(
        text,
        file,
        positional=positional,
        variables=variables,
        read_script=read_script,
        started_in=working_folder,
    ):
        filled = command.words
        first = filled[0] if filled else None
        if isinstance(first, Argument) and _FLAG.match(first.text):
            if not is_flag_file:
                # What is wrong with the command before may be why it ended there.
                raise RecipeError(*((found[-1].problems if found else ()) or [_cut_off(first)]))
            kept, labels = _set_labels_aside(filled)
            loose += _told(kept)
            loose_labels += labels
            continue
        is_flag_file = False
        place = _program_place(filled)
        if place is not None:
            found.append(_training_command(command, filled, place))
        if len(found) > MAX_COMMANDS:
            message = f"more than {MAX_COMMANDS} training commands in one script"
            raise RecipeError(Problem(message, code="script-too-large", mark=command.mark))
    if loose and is_flag_file:
        flags, repeated = _read_flags(loose)
        mark = loose[0].mark
        return [TrainingCommand("", flags, repeated, None, (), mark, labels=tuple(loose_labels))]
    if not found:
        raise RecipeError(_nothing_found(file))
    return found


def _told(filled: Sequence[Argument | Untold]) -> list[Argument]:
    problems = [entry.problem for entry in filled if isinstance(entry, Untold)]
    if problems:
        raise RecipeError(*dict.fromkeys(problems))
    return [entry for entry in filled if isinstance(entry, Argument)]


def _set_labels_aside(
    filled: Sequence[Argument | Untold],
) -> tuple[list[Argument | Untold], list[UntoldLabel]]:
    """A command without the labels whose values cannot be told, and these."""
    kept: list[Argument | Untold] = []
    labels: list[UntoldLabel] = []
    for words in _by_flag(filled):
        name = _label_name(words[0])
        problem = next((word.problem for word in words if isinstance(word, Untold)), None)
        if name is None or problem is None:
            kept += words
        else:
            text = " ".join(word.text for word in words)
            labels.append(UntoldLabel(name, text[len(name) + 3 :], problem))
    return kept, labels


def _by_flag(filled: Sequence[Argument | Untold]) -> list[list[Argument | Untold]]:
    """Each flag with the words behind it."""
    groups: list[list[Argument | Untold]] = []
    for word in filled:
        if not groups or _FLAG.match(word.text):
            groups.append([])
        groups[-1].append(word)
    return groups


def _label_name(word: Argument | Untold) -> str | None:
    found = _FLAG.match(word.text)
    name = found.group()[2:].replace("-", "_") if found else ""
    return name if name in LABELS else None


def _program_place(filled: Sequence[Argument | Untold]) -> int | None:
    """Which argument names the training program: `…/train_mem.py`, or a module after `-m`."""
    after_module_option = False
    for place, entry in enumerate(filled):
        text = entry.text if isinstance(entry, Argument) else ""
        if (after_module_option and _MODULE.fullmatch(text)) or _PROGRAM.fullmatch(text):
            has_flags = any(
                isinstance(other, Argument) and _FLAG.match(other.text) for other in filled[place:]
            )
            return place if has_flags else None
        after_module_option = text in ("-m", "--module")
    return None


def _training_command(command: Command, filled: Sequence[Argument | Untold], place: int) -> TrainingCommand:
    program = filled[place]
    assert isinstance(program, Argument)
    flags: Mapping[str, Flag] = {}
    repeated: tuple[Flag, ...] = ()
    problems: Sequence[Problem] = ()
    kept, labels = _set_labels_aside(filled[place + 1 :])
    try:
        if command.block:
            raise RecipeError(_inside(command.block, program.mark))
        flags, repeated = _read_flags(_told(kept))
    except RecipeError as error:
        problems = error.problems
    launcher = [word.spelled for word in filled[:place]]
    return TrainingCommand(
        program.text,
        flags,
        repeated,
        count_processes(launcher, visible_devices=command.visible_devices),
        training_options(launcher),
        program.mark,
        tuple(problems),
        tuple(labels),
    )


def _inside(block: str, mark: Mark) -> Problem:
    return Problem(
        f"this training command stands inside {block}",
        code="training-command-not-followed",
        mark=mark,
        found="conditions, loops and functions are not followed",
        hint="copy the command, with the variables that it needs, into a script of its own",
    )


def _read_flags(arguments: Sequence[Argument]) -> tuple[dict[str, Flag], tuple[Flag, ...]]:
    flags: dict[str, Flag] = {}
    repeated: list[Flag] = []
    name, values = "", list[str]()
    mark: Mark | None = None
    value_mark: Mark | None = None
    problems: list[Problem] = []

    def finish() -> None:
        if mark is not None:
            if name in flags:
                repeated.append(flags.pop(name))
            flags[name] = Flag(name, tuple(values), mark, value_mark or mark)

    for argument in arguments:
        found = _FLAG.match(argument.text)
        if found is not None:
            finish()
            name, mark, value_mark = found.group()[2:].replace("-", "_"), argument.mark, None
            values = [argument.text[found.end() + 1 :]] if found.end() < len(argument.text) else []
        elif argument.text.isspace() or argument.text == "\r":
            problems.append(_space_after_backslash(argument))
        elif mark is None:
            message = f"`{argument.text}` belongs to no flag"
            problems.append(
                Problem(
                    message,
                    code="word-belongs-to-no-flag",
                    mark=argument.mark,
                    hint="a flag starts with `--`",
                )
            )
        else:
            values.append(argument.text)
            value_mark = value_mark or argument.mark
    if problems:
        raise RecipeError(*problems)
    finish()
    return flags, tuple(repeated)


def _cut_off(argument: Argument) -> Problem:
    return Problem(
        f"`{argument.text.partition('=')[0]}` starts a command of its own",
        code="shell-syntax",
        mark=argument.mark,
        found="the line before ends the command: a comment line, an empty line, or no `\\` at its end",
        hint="end every line of the command but the last with `\\`, and keep comments out of it",
    )


def _space_after_backslash(argument: Argument) -> Problem:
    return Problem(
        "a space after the backslash: the line is not continued",
        code="shell-syntax",
        mark=argument.mark,
        hint="let `\\` be the last letter of the line",
    )


def _nothing_found(file: str) -> Problem:
    return Problem(
        "no training command in this script",
        code="no-training-command",
        mark=Mark(file, 0, 0),
        hint="looked for a program such as llava/train/train_mem.py, or `-m llava.train.train`, with flags",
    )
