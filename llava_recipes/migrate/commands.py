"""The training commands of a script: the program, its flags, and what its launcher says."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.migrate.shell import Argument, Command, ReadScript, walk_commands

MAX_COMMANDS = 20

_PROGRAM = re.compile(r"(?:.*/)?[\w.-]*(?:train|finetune)[\w.-]*\.py")
_MODULE = re.compile(r"(?:\w+\.)+\w*train\w*")
_FLAG = re.compile(r"--[A-Za-z][A-Za-z0-9_-]*(?==|$)")

LABELS = frozenset(
    {"run_name", "logging_dir", "cache_dir", "local_rank", "wandb_project", "wandb_name", "wandb_run_name"}
)
"""Flags whose values don't change the training: an unknown one is left out and reported."""

_OF_ACCELERATE = (
    *("config_file", "mixed_precision", "gradient_accumulation_steps", "gradient_clipping", "dynamo_backend"),
    *("use_deepspeed", "deepspeed_config_file", "zero_stage", "offload_optimizer_device"),
    *("offload_param_device", "use_fsdp", "fsdp_sharding_strategy", "fsdp_offload_params"),
)
_SHORT: Mapping[str, str] = {"n": "ntasks", "N": "nodes"}


@dataclass(frozen=True)
class Flag:
    """A flag of a command with its values; none if it stands alone."""

    name: str
    values: tuple[str, ...]
    mark: Mark
    value_mark: Mark

    @property
    def text(self) -> str:
        """The values as they are typed."""
        return " ".join(self.values)


@dataclass(frozen=True)
class UnknownLabel:
    """A flag among LABELS whose value is not known, and why."""

    name: str
    text: str
    problem: Problem


@dataclass(frozen=True)
class TrainingCommand:
    """A training program with its flags, and what its launcher says."""

    program: str
    """Empty for a file of flags alone."""
    flags: Mapping[str, Flag]
    repeated: tuple[Flag, ...]
    """Flags that later ones of the same name replace."""
    num_processes: int | None
    launcher: tuple[tuple[str, str, str], ...]
    """Options of the launcher that change the training: the name, the value, and what is lost."""
    mark: Mark
    problems: tuple[Problem, ...]
    """Why some of its flags are not known; the others are read all the same."""
    labels: tuple[UnknownLabel, ...]
    """Flags that are not among `flags`, because their values are not known."""


def find_training_commands(
    text: str,
    file: str,
    *,
    positional: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    read_script: ReadScript | None = None,
    working_folder: str | None = None,
) -> list[TrainingCommand]:
    """The training commands of a script, or the one of a file of flags alone.

    Raises RecipeError if there is none. A command with unknown flags has problems instead.
    """
    found: list[TrainingCommand] = []
    loose: list[Argument] = []
    is_flag_file = True
    for command in walk_commands(
        text,
        file,
        positional=positional,
        variables=variables,
        read_script=read_script,
        started_in=working_folder,
    ):
        first = command.words[0] if command.words else None
        if first is not None and first.problem is None and _FLAG.match(first.text):
            if not is_flag_file:
                # A problem of the command before may be why it ended there.
                raise RecipeError(*((found[-1].problems if found else ()) or [_cut_off(first)]))
            loose += command.words
            continue
        is_flag_file = False
        place = _program_place(command.words)
        if place is not None:
            found.append(_training_command(command, place))
        if len(found) > MAX_COMMANDS:
            message = f"more than {MAX_COMMANDS} training commands in one script"
            raise RecipeError.of(message, code="script-too-large", mark=command.mark)
    if loose and is_flag_file:
        mark = loose[0].mark
        return [_training_command(Command((Argument("", mark), *loose), mark, "", None), 0)]
    if not found:
        raise RecipeError.of(
            "no training command in this script",
            code="no-training-command",
            mark=Mark(file, 0, 0),
            hint="looked for a program such as llava/train/train_mem.py or `-m llava.train.train` with flags",
        )
    return found


def _program_place(words: Sequence[Argument]) -> int | None:
    """The place of the training program among the words: `…/train_mem.py`, or a module after `-m`."""
    before = ""
    for place, word in enumerate(words):
        text = "" if word.problem else word.text
        if _PROGRAM.fullmatch(text) or (before in ("-m", "--module") and _MODULE.fullmatch(text)):
            has_flags = any(_FLAG.match(other.text) and not other.problem for other in words[place:])
            return place if has_flags else None
        before = text
    return None


def _training_command(command: Command, place: int) -> TrainingCommand:
    """The command whose program is at a place among its words."""
    program = command.words[place]
    flags: dict[str, Flag] = {}
    repeated: list[Flag] = []
    labels: list[UnknownLabel] = []
    unknown: list[Problem] = []
    wrong: list[Problem] = []
    for name, words in _by_flag(command.words[place + 1 :]):
        problems = [word.problem for word in words if word.problem is not None]
        if problems and name in LABELS:
            text = " ".join(word.text for word in words)[len(name) + 3 :]
            labels.append(UnknownLabel(name, text, problems[0]))
            continue
        unknown += problems
        wrong += [problem for word in words if (problem := _misplaced(word, name)) is not None]
        if name and not problems:
            if name in flags:
                repeated.append(flags.pop(name))
            first, *rest = words
            _, has_value, value = first.text.partition("=")
            values = (*([value] if has_value else []), *(word.text for word in rest))
            flags[name] = Flag(name, values, first.mark, rest[0].mark if rest else first.mark)
    launcher = [word.spelled for word in command.words[:place]]
    return TrainingCommand(
        program.text,
        flags,
        tuple(repeated),
        count_processes(launcher, visible_devices=command.visible_devices),
        training_options(launcher),
        program.mark,
        (_inside(command.block, program.mark),) if command.block else tuple(unknown or wrong),
        tuple(labels),
    )


def _by_flag(words: Sequence[Argument]) -> list[tuple[str, list[Argument]]]:
    """The name of each flag with its words; the name is empty before the first flag."""
    groups: list[tuple[str, list[Argument]]] = [("", [])]
    for word in words:
        found = _FLAG.match(word.text)
        if found is not None:
            groups.append((found.group()[2:].replace("-", "_"), []))
        groups[-1][1].append(word)
    return groups


def _misplaced(argument: Argument, name: str) -> Problem | None:
    """Why a word isn't a value of the flag before it, whose name is empty before the first flag."""
    if argument.text.isspace():
        return Problem(
            "a space after the backslash: the line is not continued",
            code="shell-syntax",
            mark=argument.mark,
            hint="make `\\` the last character of the line",
        )
    if name:
        return None
    return Problem(
        f"`{argument.text}` belongs to no flag",
        code="word-belongs-to-no-flag",
        mark=argument.mark,
        hint="a flag starts with `--`",
    )


def _inside(block: str, mark: Mark) -> Problem:
    return Problem(
        f"this training command is inside {block}",
        code="training-command-not-followed",
        mark=mark,
        found="conditions, loops and functions are not followed",
        hint="copy the command, with the variables that it needs, into another script",
    )


def _cut_off(argument: Argument) -> Problem:
    return Problem(
        f"`{argument.text.partition('=')[0]}` starts a new command",
        code="shell-syntax",
        mark=argument.mark,
        found="the line before ends the command: it is a comment, it is empty, or it has no `\\` at its end",
        hint="end every line of the command but the last with `\\`, and move comments out of it",
    )


def count_processes(launcher: Sequence[str], *, visible_devices: str | None) -> int | None:
    """The number of processes that train; None unless the launcher determines it.

    launcher         the words before the training program, with `?` for a value that is not known
    visible_devices  the value of CUDA_VISIBLE_DEVICES if the script sets it
    """
    names = [word.rpartition("/")[2] for word in launcher]
    # A word that is not known and stands alone may be any option.
    if any(
        word == "?" and not (before.startswith("-") and "=" not in before)
        for before, word in itertools.pairwise(["", *launcher])
    ):
        return None
    if "accelerate" in names:
        # The total of all machines.
        return _number(_options(launcher, names.index("accelerate")).get("num_processes"))
    if "deepspeed" in names:
        return _of_deepspeed(_options(launcher, names.index("deepspeed")), visible_devices)
    elastic = next(
        (name for name in ("torchrun", "torch.distributed.run", "torch.distributed.launch") if name in names),
        None,
    )
    if elastic is not None:
        options = _options(launcher, names.index(elastic))
        return _product(options.get("nproc_per_node"), options.get("nnodes", "1"))
    if "srun" in names:
        return _of_srun(_options(launcher, names.index("srun")))
    if any(name.startswith("python") for name in names) and visible_devices is not None:
        # With several devices and no launcher, the Trainer splits each batch between them in one process.
        return 1 if len(_listed(visible_devices)) == 1 else None
    return None


def training_options(launcher: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    """Options of `accelerate launch` that change the training."""
    names = [word.rpartition("/")[2] for word in launcher]
    if "accelerate" not in names:
        return ()
    options = _options(launcher, names.index("accelerate"))
    why = "a setting of accelerate, which can change the run"
    return tuple((f"accelerate --{name}", options[name], why) for name in _OF_ACCELERATE if name in options)


def _of_deepspeed(options: Mapping[str, str], visible_devices: str | None) -> int | None:
    if "include" in options:
        hosts = [host.partition(":") for host in options["include"].split("@")]
        counts = [len(_listed(slots)) if colon else 0 for _, colon, slots in hosts]
        return sum(counts) if all(counts) else None
    if "exclude" in options:
        return None
    if "num_gpus" in options:
        # A hostfile determines the number of machines.
        is_open = "hostfile" in options and "num_nodes" not in options
        return None if is_open else _product(options["num_gpus"], options.get("num_nodes", "1"))
    if {"hostfile", "num_nodes"} & set(options) or visible_devices is None:
        return None
    return len(_listed(visible_devices)) or None


def _of_srun(options: Mapping[str, str]) -> int | None:
    if "ntasks" in options:
        return _number(options["ntasks"])
    return _product(options.get("ntasks_per_node"), options.get("nodes"))


def _options(launcher: Sequence[str], start: int) -> dict[str, str]:
    options: dict[str, str] = {}
    words = [*launcher[start + 1 :], ""]
    for word, following in itertools.pairwise(words):
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            following = "" if following.startswith("--") else following
            options[name.replace("-", "_")] = value if has_value else following
        elif word[:1] == "-" and word[1:2] in _SHORT:
            options[_SHORT[word[1]]] = word[2:].lstrip("=") or following
    return options


def _listed(text: str) -> list[str]:
    """The devices of a list such as `0,1,2`; none if it isn't one."""
    parts = [part.strip() for part in text.split(",")]
    return parts if all(part.isdecimal() for part in parts) else []


def _number(text: str | None) -> int | None:
    return int(text) or None if text is not None and text.isdecimal() and len(text) < 7 else None


def _product(*texts: str | None) -> int | None:
    numbers = [_number(text) for text in texts]
    return prod(number for number in numbers if number is not None) if None not in numbers else None
