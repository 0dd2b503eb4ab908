"""`migrate`: from the text of a script or config to a recipe, and what became of every setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.migrate.commands import TrainingCommand, find_training_commands
from llava_recipes.migrate.deepspeed_files import ReadText
from llava_recipes.migrate.draft import Draft, IsFolder, Migration, combine
from llava_recipes.migrate.llava import put_total_batch, report_labels, translate_llava
from llava_recipes.migrate.programs import identify, refuse_preferences
from llava_recipes.migrate.settings import Flags
from llava_recipes.migrate.shell import ReadScript
from llava_recipes.migrate.tinyllava import translate_tinyllava
from llava_recipes.migrate.xtuner import migrate_xtuner
from llava_recipes.migrate.yaml_configs import migrate_yaml
from llava_recipes.recipe.variables import VARIABLE_NAME


def migrate(
    text: str,
    file: str,
    *,
    positional: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    only: int | None = None,
    recipe_file: str = "recipe.yaml",
    read_beside: ReadScript | None = None,
    is_folder: IsFolder = lambda _: False,
    working_folder: str | None = None,
) -> Migration:
    """The recipe of another program's file. The content decides which program it is; nothing is executed.

    positional      the script's arguments
    variables       values from outside, which replace those that the script sets
    only            the number of the one training command to take, from 1
    read_beside     finds the files that this one names
    is_folder       whether a path is a folder here
    working_folder  where the script would be started; None if that is not known

    Raises RecipeError with places in the file.
    """
    seen = set(VARIABLE_NAME.findall(text))

    def read_text(path: str, caller: str = file) -> tuple[str, str] | None:
        found = read_beside(path, caller) if read_beside is not None else None
        if found is not None:
            seen.update(VARIABLE_NAME.findall(found[1]))
        return found

    ending = file.lower().rpartition(".")[2]
    if ending == "py":
        return migrate_xtuner(text, file, recipe_file=recipe_file, is_folder=is_folder)
    if ending in ("yaml", "yml"):
        return migrate_yaml(text, file, recipe_file=recipe_file, read_text=read_text, is_folder=is_folder)
    commands = find_training_commands(
        text,
        file,
        positional=positional,
        variables=variables,
        read_script=read_text if read_beside is not None else None,
        working_folder=working_folder,
    )
    if only is not None:
        if not 1 <= only <= len(commands):
            counted = "1 training command" if len(commands) == 1 else f"{len(commands)} training commands"
            message = f"the script has {counted}, but no number {only}"
            raise RecipeError.of(message, code="no-such-command", mark=Mark(file, 0, 0))
        commands = [commands[only - 1]]
    problems: list[Problem] = []
    for command in commands:
        # Of a program that is refused, the flags don't matter.
        refused = refuse_preferences(command.program, command.mark)
        problems += command.problems if refused is None else [refused]
    if problems:
        raise RecipeError(*dict.fromkeys(problems))
    unused = {name: value for name, value in (variables or {}).items() if name not in seen}
    drafts = [_translate(command, read_text) for command in commands]
    for name, value in unused.items():
        drafts[0].report("needless", f"--var {name}", value, "no script that was read has this variable")
    marks = [command.mark for command in commands]
    return combine(drafts, file=file, recipe_file=recipe_file, marks=marks, is_folder=is_folder)


def _translate(command: TrainingCommand, read_text: ReadText) -> Draft:
    flags = Flags(command.flags)
    program = identify(command.program, flags, command.mark.file)
    translate = translate_tinyllava if program.kind == "tiny" else translate_llava
    translate(flags, program=program, read_text=read_text)
    draft = flags.draft
    draft.program = program.shown
    if not program.is_known:
        why = (
            f"it is {program.name}: its flags are read as another program's, but its model, data and "
            "conversations may differ"
        )
        draft.report("lost", "program", program.path, why, command.mark)
    for name, value, why in command.launcher:
        draft.report("lost", name, value, why, command.mark)
    put_total_batch(flags, command.num_processes)
    report_labels(command.labels, flags)
    flags.finish()
    for flag in command.repeated:
        why = f"`--{flag.name}` is repeated further on, and the last one counts"
        draft.report("needless", f"--{flag.name}", flag.text, why, flag.mark)
    draft.num_processes = command.num_processes
    return draft
