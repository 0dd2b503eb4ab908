"""What a run reads: its annotation files, base weights and earlier runs, as they were when it started.

`inputs.json` in the run folder records them, so that a resumed run finds out what was changed meanwhile.
Image folders are not recorded.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal, get_args

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import expanded, open_ordinary, read_settings, write_text
from llava_recipes.plan.types import Plan, SourcePlan
from llava_recipes.recipe.foreign import read_object
from llava_recipes.recipe.scalars import as_mapping
from llava_recipes.runner.facts import model_folder
from llava_recipes.runner.results import DONE, read_done, weights_sum
from llava_recipes.screen import say
from llava_recipes.seals import known_seal, read_sealed, sealed_text, sha256_of

INPUTS = "inputs.json"

_WHOLE_WEIGHTS_BYTES = 2**26
_WHOLE_DATA_BYTES = 2**32
"""Larger files are sampled: their first and last bytes and blocks in between are hashed."""
_NUM_BLOCKS, _BLOCK_BYTES = 64, 2**16
_LONG_BYTES = 2**31
_LANGUAGE = ("config.json",)
_TOKENIZER = (
    *("config.json", "tokenizer*", "*.model", "vocab*", "*.vocab", "*.tiktoken", "tekken.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)
_TOWER = ("config.json", "preprocessor_config.json", "processor_config.json")
_START = (
    *("config.json", "trained.safetensors", "mm_projector.*"),
    *("adapter_config.json", "adapter_model.*", "non_lora_trainables.bin"),
)
_WEIGHTS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
_MARKS = ("config.json", "tokenizer_config.json", "adapter_config.json", "plan.json")
"""A folder of the hub's cache has one of these."""
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

_STARTS = "stages.0.starts_from."

How = Literal["sha256", "sampled_sha256", "hub_blob"]
Kind = Literal["changed", "missing", "unknown"]
Record = dict[str, object]


@dataclass(frozen=True)
class InputDifference:
    """An input of a run that is not, or may not be, what the run was started with."""

    plan_path: str
    """In the plan of the stage alone: `stages.0.data.sources.0.annotations`."""
    key: str
    """What a user accepts: `data.sources`."""
    kind: Kind
    """`unknown` where nothing shows whether the content is another."""
    words: str
    is_learned: bool
    """Whether it changes what is learned; validation data does not."""

    def is_accepted(self, keys: Collection[str]) -> bool:
        """Whether one of the keys is its own, or one inside that leads to it: `data.sources.0`."""
        place = f"{self.plan_path.removeprefix('stages.0.')}."
        return self.key in keys or any(
            key.startswith(f"{self.key}.") and place.startswith(f"{key}.") for key in keys
        )


@dataclass(frozen=True)
class InputComparison:
    """A run's inputs now, compared with those recorded at its start."""

    differences: tuple[InputDifference, ...] = ()
    moved: frozenset[str] = frozenset()
    """Plan paths whose place is another now, with the same content."""
    is_recorded: bool = True
    """False without a record, as in runs of earlier versions, or with a damaged one: nothing is known."""


@dataclass(frozen=True)
class _Input:
    plan_path: str
    key: str
    given: str
    files: Mapping[str, Path] | None
    """By name inside the input; None where it isn't on this machine."""
    limit: int
    """Larger files are sampled."""
    start: bool = False
    is_learned: bool = True


@dataclass
class _Reader:
    """Hashes files, each once, and none that was recorded with the same size, time and inode."""

    remembered: Mapping[str, Record] = field(default_factory=dict)
    most_bytes: int | None = None
    """Files that need more reading are not read: their hash stays unknown."""

    def record(self, file: Path, limit: int) -> Record:
        """Raises OSError where it cannot be read."""
        real, found = os.path.realpath(file), file.stat()
        facts: Record = {
            "real_path": real,
            "bytes": found.st_size,
            "mtime_ns": found.st_mtime_ns,
            # No program sets it: one that writes a file can set the other back.
            "ctime_ns": found.st_ctime_ns,
            "inode": found.st_ino,
        }
        known = self.remembered.get(real, {})
        if all(known.get(key) == value for key, value in facts.items()):
            return dict(known)
        blob = Path(real)
        if file.is_symlink() and blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name):
            return {**facts, "hub_blob": blob.name}
        is_whole = found.st_size <= limit
        if self.most_bytes is not None and is_whole and found.st_size > self.most_bytes:
            return facts
        if not is_whole:
            return {**facts, "sampled_sha256": sampled_sha256(file)}
        if found.st_size >= _LONG_BYTES:
            say(f"computes the SHA-256 of {file}, {found.st_size / 1e9:,.1f} GB", to_stderr=True)
        return {**facts, "sha256": known_seal(file).sha256}


def sampled_sha256(file: Path) -> str:
    """SHA-256 of a file's size, its first and last block and blocks spread evenly between them.

    It finds other weights, such as those of another training run, not one flipped bit.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open_ordinary(file) as opened:
        for number in range(_NUM_BLOCKS):
            opened.seek(max(0, size - _BLOCK_BYTES) * number // (_NUM_BLOCKS - 1))
            digest.update(opened.read(_BLOCK_BYTES))
    return digest.hexdigest()


def describe_inputs(folder: Path, plan: Plan) -> dict[str, Record]:
    """What each input of a stage is now, by its path in the plan, which has no other stage.

    What was recorded in the folder is not read again. An input that cannot be read is described without its
    hash: whoever needs it reports that.
    """
    reader = _Reader(_by_real_path(_read(folder) or {}))
    return {each.plan_path: _describe(each, reader) for each in _inputs(plan)}


def record_inputs(folder: Path, inputs: Mapping[str, Record]) -> bool:
    """Write inputs.json.

    Returns whether all of them are on this machine: what the hub has is recorded once it was downloaded.
    """
    recorded, now = _read(folder) or {}, dict(inputs)
    absent = [path for path, record in now.items() if record.get("files", {}) is None]
    for path in absent:
        if path in recorded and recorded[path].get("given") == now[path]["given"]:
            now[path] = dict(recorded[path])
    write_text(folder / INPUTS, sealed_text({"inputs": now}))
    return not absent


def contents_of(plan: Plan, inputs: Mapping[str, Record]) -> dict[str, object]:
    """What is in each input that a stage learns from, by its path in the plan, wherever it is."""
    found: dict[str, object] = {}
    for each in _inputs(plan):
        if each.is_learned:
            record = inputs[each.plan_path]
            files = record.get("files")
            found[each.plan_path] = record.get("weights") or _sums(files if isinstance(files, dict) else {})
    return found


def _sums(files: Mapping[str, Record]) -> list[list[object]]:
    """Names and contents of files; a single one may have any name."""
    return [
        ["" if len(files) == 1 else name, *(record.get(how) for how in ("bytes", *get_args(How)))]
        for name, record in sorted(files.items())
    ]


def compare_inputs(folder: Path, plan: Plan, *, most_bytes: int | None = None) -> InputComparison:
    """How the inputs of a stage's plan differ from those recorded in its folder; nothing is written.

    Files that were not touched since are not read. With `most_bytes`, larger ones are not read either.
    """
    recorded = _read(folder)
    if recorded is None:
        return InputComparison(is_recorded=False)
    reader = _Reader(_by_real_path(recorded), most_bytes)
    differences: list[InputDifference] = []
    moved = set()
    num_starts = sum(place.startswith(_STARTS) for place in recorded)
    num_gone = max(0, num_starts - len(plan.stages[0].starts_from))
    for each in _inputs(plan):
        # The oldest starts may be gone, where later ones have trained all of them again.
        number = each.plan_path.removeprefix(_STARTS)
        then = recorded.get(f"{_STARTS}{int(number) + num_gone}" if each.start else each.plan_path)
        if then is None:
            # A source that the recipe has only now: the plans differ.
            continue
        found = _difference(each, then, reader)
        if found is not None:
            kind, words = found
            differences.append(InputDifference(each.plan_path, each.key, kind, words, each.is_learned))
        elif each.given != then.get("given"):
            moved.add(each.plan_path)
    return InputComparison(tuple(differences), frozenset(moved))


def input_problems(
    folder: Path,
    comparison: InputComparison,
    *,
    accepted: Collection[str] = (),
    waits_for: Collection[str] = (),
) -> Iterator[Problem]:
    """Why a run must not go on with its inputs as they are now, one problem for each key to accept.

    Paths are those of a recipe whose stage is number 0. Differences that do not change what is learned, or
    may not have, become warnings. `waits_for` are runs that will be finished before.
    """
    waiting = {f"{start} was finished then, and is not finished now" for start in waits_for}
    known = [each for each in comparison.differences if each.words not in waiting]
    for key in dict.fromkeys(each.key for each in known):
        found = [each for each in known if each.key == key and not each.is_accepted(accepted)]
        bad = [each for each in found if each.kind != "unknown" and each.is_learned]
        # Model and tokenizer are most often in one folder.
        words = "; ".join(dict.fromkeys(each.words for each in bad or found))
        if bad:
            message, way_on = _REFUSALS[key]
            yield Problem(
                message,
                code="run-inputs-changed",
                path=_recipe_path(bad[0]),
                found=words,
                hint=f"{way_on.format(folder=folder)}; or go on with what is there now: "
                f"`--resume --accept {key}`",
            )
        elif found:
            yield Problem(
                f"it cannot be told whether `{key}` is what this run was started with"
                if all(each.kind == "unknown" for each in found)
                else f"`{key}` was changed since this run was started",
                code="run-inputs-unknown",
                path=_recipe_path(found[0]),
                found=words,
                severity="warning",
            )


_RESTORE = "restore what was there, or choose another `output_dir`"
_REFUSALS = {
    "data.sources": ("this run was trained on other annotations until now", _RESTORE),
    "model.language_model": ("this run was trained with another language model until now", _RESTORE),
    "model.vision_tower": ("this run was trained with another vision tower until now", _RESTORE),
    "model.projector.init_from": ("this run was started with other weights of the projector", _RESTORE),
    "init_from": (
        "this run was started over other weights",
        "remove {folder} to train this stage again from step 0",
    ),
}


def _recipe_path(difference: InputDifference) -> KeyPath:
    if difference.key == "init_from":
        return ("stages", 0, "init_from")
    if difference.key.startswith("model."):
        return tuple(difference.key.split("."))
    return tuple(int(part) if part.isdigit() else part for part in difference.plan_path.split("."))


def _difference(each: _Input, then: Mapping[str, object], reader: _Reader) -> tuple[Kind, str] | None:
    if each.start and "weights" in then:
        return _start_difference(each, then)
    before = then.get("files")
    if not isinstance(before, dict):
        return None
    if each.files is None:
        return ("unknown", f"{each.given} is not on this machine now") if before else None
    changed, missing, unknown = [], [], []
    # A single file may have another name now.
    names = {name: name for name in before}
    if len(before) == len(each.files) == 1:
        names = dict(zip(before, each.files, strict=True))
    for old, new in names.items():
        file = each.files.get(new)
        if file is None or not file.is_file():
            missing.append(old)
            continue
        try:
            same = _is_same(before[old], reader.record(file, each.limit))
        except OSError as error:
            changed.append(f"{file} cannot be read: {error.strerror}")
            continue
        if same is None:
            unknown.append(str(file))
        elif not same:
            changed.append(_spell_change(file, before[old]))
    added = [name for name in each.files if name not in names.values()]
    if changed or missing or added:
        words = [
            *changed,
            *(f"{each.given}: {name} is missing" for name in missing),
            *(f"{each.given}: {name} was added" for name in added),
        ]
        return ("missing" if not changed and not added else "changed"), _shortened(words)
    return ("unknown", f"{_shortened(unknown)}: too large to be compared here") if unknown else None


def _start_difference(each: _Input, then: Mapping[str, object]) -> tuple[Kind, str] | None:
    now = _describe_start(Path(each.given))
    if now is None:
        return "missing", f"{each.given} was finished then, and is not finished now"
    if then.get("weights") is not None and now.get("weights") is not None:
        is_same = then["weights"] == now["weights"]
    else:
        is_same = then.get("finished") == now.get("finished")
    if is_same:
        return None
    return (
        "changed",
        f"{each.given} was trained again: finished {then.get('finished')}, and now {now.get('finished')}",
    )


def _is_same(then: object, now: Record) -> bool | None:
    """Whether a file has the same content; None where the two records cannot be compared."""
    if not isinstance(then, dict):
        return None
    if then.get("bytes") != now.get("bytes"):
        return False
    shared = [how for how in ("sha256", "sampled_sha256", "hub_blob") if how in then and how in now]
    return all(then[how] == now[how] for how in shared) if shared else None


def _spell_change(file: Path, then: Mapping[str, object]) -> str:
    size, before = file.stat().st_size, then.get("bytes")
    if size != before:
        return f"{file} has {size:,} bytes instead of {before:,}"
    return f"{file} has other contents, of the same size"


def _shortened(words: list[str]) -> str:
    more = len(words) - 4
    return "; ".join(words[:4]) + (f"; and {more} more" if more > 0 else "")


def _describe(each: _Input, reader: _Reader) -> Record:
    if each.start:
        start = _describe_start(Path(each.given))
        if start is not None:
            return {"given": each.given, **start}
    files: dict[str, Record] | None = None
    if each.files is not None:
        files = {}
        for name, file in each.files.items():
            try:
                files[name] = reader.record(file, each.limit)
            except OSError:
                continue
    return {"given": each.given, "files": files}


def _describe_start(folder: Path) -> Record | None:
    """What identifies the results of a finished run of ours; None for anything else."""
    if not (folder / "plan.json").is_file() or not (folder / DONE).is_file():
        return None
    done = read_done(folder)
    return {
        "finished": done.get("finished"),
        "done_sha256": sha256_of(folder / DONE),
        "weights": weights_sum(done),
    }


def _inputs(plan: Plan) -> Iterator[_Input]:
    stage, model = plan.stages[0], plan.model
    yield from _data_inputs(stage.data.sources, "stages.0.data.sources", "data.sources", is_learned=True)
    validation = stage.data.validation
    if validation is not None and validation.split is None:
        path = "stages.0.data.validation.sources"
        yield from _data_inputs(validation.sources, path, "data.validation", is_learned=False)
    language, tower = model.language_model, model.vision_tower
    its_revision = language.revision if language.tokenizer == language.source else None
    for path, source, revision, names, has_weights in (
        ("model.language_model.source", language.source, language.revision, _LANGUAGE, True),
        ("model.language_model.tokenizer", language.tokenizer, its_revision, _TOKENIZER, False),
        ("model.vision_tower.source", tower.source, tower.revision, _TOWER, True),
    ):
        if source is not None:
            files = _model_files(source, revision, names, has_weights=has_weights)
            yield _Input(path, path.rpartition(".")[0], source, files, _WHOLE_WEIGHTS_BYTES)
    init = model.projector.init_from
    if init is not None:
        path = "model.projector.init_from"
        yield _Input(path, path, init, _file(expanded(init)), _WHOLE_WEIGHTS_BYTES)
    for number, start in enumerate(stage.starts_from):
        place = expanded(start)
        files = _file(place) if place.is_file() else _model_files(start, None, _START, has_weights=True)
        yield _Input(f"{_STARTS}{number}", "init_from", start, files, _WHOLE_WEIGHTS_BYTES, start=True)


def _data_inputs(
    sources: tuple[SourcePlan, ...], path: str, key: str, *, is_learned: bool
) -> Iterator[_Input]:
    for number, source in enumerate(sources):
        place = Path(source.annotations)
        if place.is_dir():
            files = {file.name: file for file in sorted(place.glob("*.parquet"))}
        elif "*" in place.name and not place.exists():
            files = {file.name: file for file in sorted(place.parent.glob(place.name))}
        else:
            files = _file(place)
        yield _Input(
            f"{path}.{number}.annotations",
            key,
            source.annotations,
            files,
            _WHOLE_DATA_BYTES,
            is_learned=is_learned,
        )


def _file(place: Path) -> dict[str, Path]:
    return {place.name: place}


def _model_files(
    source: str, revision: str | None, names: Collection[str], *, has_weights: bool
) -> dict[str, Path] | None:
    """The files of a model that a run may read, in a folder or in the hub's cache; None where neither is.

    Others may come and go, as where another program downloads more of the model.
    """
    folder = model_folder(source, revision, _MARKS)
    if folder is None:
        return None
    found = {file.name: file for name in names for file in folder.glob(name)}
    found |= {file.name: file for file in (_weight_files(folder) if has_weights else ())}
    return {name: found[name] for name in sorted(found) if found[name].is_file()}


def _weight_files(folder: Path) -> list[Path]:
    """The index and the files that it names, or the single file, as they are chosen for loading."""
    for stem, suffix in _WEIGHTS:
        single = folder / f"{stem}{suffix}"
        index = single.with_name(f"{single.name}.index.json")
        if index.is_file():
            try:
                shards = {*map(str, as_mapping(read_object(index).get("weight_map")).values())}
            except RecipeError:
                # Loading the model reports it.
                shards = set()
            return [index, *(folder / PurePath(shard).name for shard in shards)]
        if single.is_file():
            return [single]
    return []


def _read(folder: Path) -> dict[str, Mapping[str, object]] | None:
    """The recorded inputs by plan path; None where there is no record, or a damaged one."""
    try:
        values, is_sealed = read_sealed(read_settings(folder / INPUTS))
    except (OSError, ValueError):
        return None
    inputs = values.get("inputs")
    return inputs if is_sealed and isinstance(inputs, dict) else None


def _by_real_path(recorded: Mapping[str, Mapping[str, object]]) -> dict[str, Record]:
    return {
        str(facts["real_path"]): facts
        for each in recorded.values()
        if isinstance(files := each.get("files"), dict)
        for facts in files.values()
        if isinstance(facts, dict) and "real_path" in facts
    }
