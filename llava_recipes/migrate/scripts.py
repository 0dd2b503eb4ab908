"""Shell scripts of LLaVA, LLaVA-NeXT and TinyLLaVA as recipes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llava_recipes.migrate.commands import TrainingCommand, find_training_commands
from llava_recipes.migrate.deepspeed_files import ReadText
from llava_recipes.migrate.draft import Draft, IsFolder, Migration, combine
from llava_recipes.migrate.llava import put_total_batch, tell_untold_labels, translate_llava
from llava_recipes.migrate.programs import identify, refuse_preferences
from llava_recipes.migrate.settings import Flags
from llava_recipes.migrate.shell import ReadScript
from llava_recipes.migrate.tinyllava import translate_tinyllava
from llava_recipes.recipe.errors import Mark, Problem, RecipeError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def migrate_script(
    text: str,
    file: str,
    *,
    positional: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    only: int | None = None,
    recipe_file: str,
    read_script: ReadScript | None = None,
    read_text: ReadText,
    is_folder: IsFolder,
    working_folder: str | None,
) -> Migration:
    """The recipe of a script's training commands, or of the one numbered `only`, from 1.

    Nothing is executed. Raises RecipeError, with places in the script, where it cannot be read.
    """
    seen = _Names(text)

    def read_and_see(path: str, caller: str) -> tuple[str, str] | None:
        found = read_script(path, caller) if read_script is not None else None
        if found is not None:
            seen.add(found[1])
        return found

    commands = find_training_commands(
        text,
        file,
        positional=positional,
        variables=variables,
        read_script=read_and_see if read_script is not None else None,
        working_folder=working_folder,
    )
    if only is not None:
        if not 1 <= only <= len(commands):
            counted = "1 training command" if len(commands) == 1 else f"{len(commands)} training commands"
            raise RecipeError(
                Problem(
                    f"the script has {counted}, and no number {only}",
                    code="no-such-command",
                    mark=Mark(file, 0, 0),
                )
            )
        commands = [commands[only - 1]]
    problems = [problem for command in commands for problem in _problems(command)]
    if problems:
        raise RecipeError(*dict.fromkeys(problems))
    drafts = [_translate(command, read_text) for command in commands]
    for name, value in (variables or {}).items():
        if name not in seen:
            drafts[0].needless(f"--var {name}", value, "no script that is read has such a variable")
    marks = [command.mark for command in commands]
    return combine(drafts, file=file, recipe_file=recipe_file, marks=marks, is_folder=is_folder)


class _Names:
    """The names in the text of scripts, among them those of all their variables."""

    def __init__(self, text: str) -> None:
        self._names = set(_NAME.findall(text))

    def add(self, text: str) -> None:
        self._names.update(_NAME.findall(text))

    def __contains__(self, name: str) -> bool:
        return name in self._names


def _problems(command: TrainingCommand) -> Sequence[Problem]:
    """Why a command is no recipe; of a program that is refused, its flags don't matter."""
    refused = refuse_preferences(command.program, command.mark)
    return command.problems if refused is None else [refused]


def _translate(command: TrainingCommand, read_text: ReadText) -> Draft:
    flags = Flags(command.flags)
    program = identify(command.program, flags, command.mark.file)
    translate = translate_tinyllava if program.kind == "tiny" else translate_llava
    translate(flags, program=program, read_text=read_text)
    draft = flags.draft
    draft.program = program.shown
    if not program.is_known:
        why = (
            f"it is {program.name}: its flags are read as another program's, and its model, its data and the "
            "text of its conversations may differ"
        )
        draft.lost("program", program.path, why, command.mark)
    for name, value, why in command.launcher:
        draft.lost(name, value, why, command.mark)
    put_total_batch(flags, command.num_processes)
    tell_untold_labels(command.labels, flags)
    flags.finish()
    for flag in command.repeated:
        why = f"`--{flag.name}` stands again further on, and the last one holds"
        draft.needless(f"--{flag.name}", flag.text, why, flag.mark)
    draft.num_processes = command.num_processes
    return draft
