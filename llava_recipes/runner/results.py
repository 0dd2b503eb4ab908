"""What a finished run left: DONE with the list of its files, and whether they are as the run wrote them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from llava_recipes.errors import KeyPath, Mark, RecipeError
from llava_recipes.files import odd_kind, read_settings
from llava_recipes.screen import say
from llava_recipes.seals import FileSeal, find_changes, known_seal, read_sealed, read_seals, sealed_text

DONE = "DONE"
WEIGHTS = (
    *("trained.safetensors", "mm_projector.safetensors", "mm_projector.bin"),
    *("adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"),
)
"""Every file of weights that a run may write, and the settings of its adapters."""
RESULTS = (
    *WEIGHTS,
    *("config.json", "trainer_state.json", "plan.json", "recipe.resolved.yaml", "environment.json"),
)
_LAID_OVER = ("trained.safetensors", "mm_projector.safetensors", "adapter_config.json")
"""What the next stage starts from; the others say the same, and torch writes another archive each time."""
_READ_AS_WEIGHTS = (
    *WEIGHTS,
    *("adapter_model.bin", "model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_NOT_FROM_THE_HUB = frozenset(["trainer_state.json", "recipe.resolved.yaml", "environment.json"])
_LONG_BYTES = 2**31
_said: set[str] = set()


def check_place(file: Path) -> None:
    """Raise RecipeError where a run cannot write one of its files, since something else is there."""
    kind = odd_kind(file) or ("a folder" if file.is_dir() else None)
    if kind is not None:
        raise RecipeError.of(
            f"{file.name} of the run folder is not a file",
            code="run-folder-damaged",
            mark=Mark(str(file), 0, 0),
            found=kind,
            hint="move it away; the run then goes on with a new one",
        )


def remove_leftovers(folder: Path, written: Collection[str]) -> None:
    """Remove weights that an earlier attempt left in a run folder and this one did not write again."""
    for name in WEIGHTS:
        if name not in written:
            (folder / name).unlink(missing_ok=True)


def done_text(folder: Path, facts: Mapping[str, object]) -> str:
    """The text of DONE: facts about the run, size and SHA-256 of every file that exists, and its own sum."""
    names = [name for name in RESULTS if (folder / name).is_file()]
    _announce(folder, [(folder / name).stat().st_size for name in names])
    files = {name: known_seal(folder / name).to_json() for name in names}
    return sealed_text({**facts, "files": files})


def read_done(folder: Path, *, needs: str | None = None) -> dict[str, object]:
    """The values of a run's DONE. Raises RecipeError where it is damaged, or has no key `needs`."""
    try:
        values, is_sealed = read_sealed(read_settings(folder / DONE))
    except (OSError, ValueError) as error:
        raise damaged_done(folder, getattr(error, "strerror", None) or str(error)) from None
    if "files" in values and not is_sealed:
        raise damaged_done(folder, "its own SHA-256 is missing")
    if needs is not None and needs not in values:
        raise damaged_done(folder, f"no `{needs}`")
    return values


def check_results(folder: Path, *, path: KeyPath | None = None) -> dict[str, object]:
    """The values of DONE, once every file that it lists was found as the run wrote it.

    Raises RecipeError for files that are missing, changed or added; `path` is the recipe path named in it.
    """
    done = read_done(folder)
    if "files" not in done:
        _say_once(
            folder,
            f"{folder}: its {DONE} lists no files, since an earlier version wrote it: "
            "whether they were changed cannot be checked",
        )
        return done
    try:
        seals = read_seals(done["files"])
    except ValueError as error:
        raise damaged_done(folder, str(error)) from None
    try:
        found = [*_find_faults(folder, seals)]
    except OSError as error:
        found = [f"{error.filename} cannot be read: {error.strerror}"]
    if found:
        raise RecipeError.of(
            "files of this finished run are not as it wrote them",
            code="results-changed",
            path=path,
            found=f"{folder}: {'; '.join(found)}",
            hint=_way_on(folder, "; ".join(found)),
        )
    return done


def check_result_file(file: Path, *, path: KeyPath) -> None:
    """Raise RecipeError when one file of a finished run is not as the run wrote it; others pass."""
    folder = file.parent
    if file.name not in RESULTS or not (folder / "plan.json").is_file() or not (folder / DONE).is_file():
        return
    done = read_done(folder)
    try:
        seals = read_seals(done.get("files", {}))
    except ValueError as error:
        raise damaged_done(folder, str(error)) from None
    seal = seals.get(file.name)
    if seal is None:
        return
    _announce(folder, [seal.num_bytes])
    fault = next(find_changes(folder, {file.name: seal}), None)
    if fault is not None:
        raise RecipeError.of(
            "this file of a finished run is not as the run wrote it",
            code="results-changed",
            path=path,
            found=f"{folder}: {fault}",
            hint=f"{_way_on(folder, fault)}; a copy in another folder is not checked",
        )


def weights_sum(done: Mapping[str, object]) -> str | None:
    """One SHA-256 of the weights that others start from, by a run's DONE; None where it lists no files."""
    try:
        seals = read_seals(done["files"])
    except (LookupError, ValueError):
        return None
    lines = [f"{name} {seals[name].sha256}\n" for name in _LAID_OVER if name in seals]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _find_faults(folder: Path, seals: Mapping[str, FileSeal]) -> Iterator[str]:
    # A snapshot of the hub contains only what was asked for.
    excused = _NOT_FROM_THE_HUB if folder.parent.name == "snapshots" else frozenset()
    asked = {name: seal for name, seal in seals.items() if name not in excused or (folder / name).exists()}
    _announce(folder, [seal.num_bytes for seal in asked.values()])
    for fault in find_changes(folder, asked):
        yield fault.replace("after it was saved", "after the run was finished")
    for name in _READ_AS_WEIGHTS:
        if name not in seals and (folder / name).exists():
            yield f"{name} was added after the run was finished"


def _way_on(folder: Path, found: str) -> str:
    again = (
        "move the folder away and run the recipe again"
        if "plan.json" in found or not any(folder.glob("checkpoint-*"))
        else f"move {DONE} away, and `run --resume` writes them again from the last checkpoint"
    )
    way_on = f"restore them from a copy; or {again}"
    if "is missing" in found:
        return way_on
    return (
        f"{way_on}. To use them as they are, remove the keys `files` and `sha256` from {folder / DONE}: "
        "then nothing is checked"
    )


def damaged_done(folder: Path, found: str) -> RecipeError:
    """What is wrong with a run's DONE."""
    return RecipeError.of(
        f"{DONE} of the run folder is damaged",
        code="run-folder-damaged",
        mark=Mark(str(folder / DONE), 0, 0),
        found=found,
        hint="move it away; `run --resume` then continues from the last checkpoint",
    )


def _announce(folder: Path, sizes: list[int]) -> None:
    if sum(sizes) >= _LONG_BYTES:
        _say_once(folder, f"{folder}: computes the SHA-256 of its files, {sum(sizes) / 1e9:,.1f} GB")


def _say_once(folder: Path, line: str) -> None:
    if line not in _said:
        _said.add(line)
        say(line, to_stderr=True)
