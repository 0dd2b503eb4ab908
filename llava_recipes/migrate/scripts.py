"""Shell scripts of LLaVA, LLaVA-NeXT and TinyLLaVA as recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llava_recipes.migrate.combine import Migration, combine
from llava_recipes.migrate.commands import TrainingCommand, find_training_commands
from llava_recipes.migrate.deepspeed_files import ReadText
from llava_recipes.migrate.draft import Draft
from llava_recipes.migrate.flags import Flags
from llava_recipes.migrate.llava import NEXT_FLAGS, translate_llava
from llava_recipes.migrate.shell import ReadScript
from llava_recipes.migrate.tinyllava import TINY_FLAGS, translate_tinyllava
from llava_recipes.recipe.errors import Mark, Problem, RecipeError


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
) -> Migration:
    """The recipe of a script's training commands, or of the one numbered `only`, from 1.

    Nothing is executed. Raises RecipeError, with places in the script, where it cannot be read.
    """
    commands = find_training_commands(
        text, file, positional=positional, variables=variables, read_script=read_script
    )
    if only is not None:
        if not 1 <= only <= len(commands):
            counted = "1 training command" if len(commands) == 1 else f"{len(commands)} training commands"
            raise RecipeError(
                Problem(
                    f"the script has {counted}, and no number {only}",
                    code="script-no-number",
                    mark=Mark(file, 0, 0),
                )
            )
        commands = [commands[only - 1]]
    drafts = [_translate(command, read_text) for command in commands]
    return combine(drafts, file=file, recipe_file=recipe_file, marks=[command.mark for command in commands])


def _translate(command: TrainingCommand, read_text: ReadText) -> Draft:
    flags = Flags(command.flags)
    if command.program.startswith("tinyllava") or flags.has_any(TINY_FLAGS):
        draft = translate_tinyllava(flags, read_text=read_text)
    else:
        draft = translate_llava(flags, is_next=flags.has_any(NEXT_FLAGS), read_text=read_text)
    for flag in command.repeated:
        why = f"`--{flag.name}` stands again further on, and the last one holds"
        draft.needless(f"--{flag.name}", flag.text, why, flag.mark)
    draft.num_processes = command.num_processes
    return draft
