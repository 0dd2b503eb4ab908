"""The original LLaVA's layout: a checkpoint with its config keys and weight names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from llava_recipes.errors import RecipeError
from llava_recipes.export.checking import Expected, check_logits, expected_of
from llava_recipes.export.public_names import public_name, without_paths
from llava_recipes.export.refusing import tokenizer_folder
from llava_recipes.export.target import Piece, piece_of, write_json, write_shards
from llava_recipes.files import expanded, real_path
from llava_recipes.model.configs import tower_origin
from llava_recipes.model.legacy_config import whole_config
from llava_recipes.model.pretrained import CODE, PATTERNS
from llava_recipes.model.weight_names import canonical_parameters, original_name
from llava_recipes.plan.families import TOWER_FAMILIES
from llava_recipes.templates import IMAGE_END, IMAGE_PATCH, IMAGE_START
from llava_recipes.use.foreign_folders import TOWER_FOLDER, write_note
from llava_recipes.use.opened import OpenedRun, open_run

_TOWER = "vision_tower."
CHAT_TEMPLATE = "chat_template.jinja"


class LlavaExport:
    """A run in the original's layout.

    with_tower  whether the checkpoint has the tower's weights; None: if the tower was trained
    target      the final place of the folder; a tower without a lasting source is kept inside it
    """

    def __init__(self, run: OpenedRun, *, with_tower: bool | None, target: Path) -> None:
        self._run = run
        self._target = target
        self._keeps_tower = _needs_own_tower(run)
        self._with_tower = "vision_tower" in run.trained if with_tower is None else with_tower

    def pieces(self) -> list[Piece]:
        """The weights with the original's names."""
        return [
            piece_of(original_name(name), parameter)
            for name, parameter in canonical_parameters(self._run.assembled.model).items()
            if self._with_tower or not name.startswith(_TOWER)
        ]

    def write(self, folder: Path, *, dtype: torch.dtype, max_bytes: int) -> None:
        """Write config, weights, tokenizer, and the tower if it has no lasting source."""
        run, source = self._run, self._run.plan.language_model.source
        write_shards(self.pieces(), folder, dtype=dtype, max_bytes=max_bytes)
        tower = str(self._target / TOWER_FOLDER) if self._keeps_tower else str(run.plan.vision_tower.source)
        config = whole_config(
            run.plan, run.data, run.assembled, dtype=dtype, tower=tower, has_tower=self._with_tower
        )
        config["_name_or_path"] = public_name(source) if source else ""
        write_json(config, folder / "config.json", sort_keys=True)
        write_tokenizer(run, folder)
        write_note(folder, run.data)
        if self._keeps_tower:
            write_tower(run, folder / TOWER_FOLDER, dtype=dtype)

    def check(self, folder: Path, expected: Expected) -> float:
        """Open the folder; return the difference of its logits. Raises RecipeError if that is too large."""
        found = expected_of(open_run(folder, device=torch.device("cpu")))
        if found.input_ids.tolist() != expected.input_ids.tolist():
            message = "the exported tokenizer tokenizes prompts differently from the run"
            raise RecipeError.of(message, code="export-spells-otherwise")
        return check_logits(expected, found.logits)


def write_tower(run: OpenedRun, folder: Path, *, dtype: torch.dtype) -> None:
    """Write the vision tower alone, as transformers does: config, image processor, weights."""
    folder.mkdir()
    model = run.assembled.model
    config = model.config.vision_config
    kind = TOWER_FAMILIES[config.model_type].model_class
    settings = {**config.to_dict(), "architectures": [kind], "dtype": str(dtype).removeprefix("torch.")}
    settings["_name_or_path"] = public_name(config.name_or_path or folder.name)
    write_json(settings, folder / "config.json", sort_keys=True)
    pieces = [
        piece_of("vision_model." + name.removeprefix(_TOWER), parameter)
        for name, parameter in canonical_parameters(model).items()
        if name.startswith(_TOWER)
    ]
    write_shards(pieces, folder, dtype=dtype, max_bytes=2**62)
    run.assembled.image_processor.save_pretrained(folder)


def write_tokenizer(run: OpenedRun, folder: Path) -> None:
    """Write the tokenizer's files, which are copied if it has no new tokens."""
    tokenizer, source = run.assembled.tokenizer, tokenizer_folder(run)
    files = {
        file.name: file
        for pattern in PATTERNS["tokenizer"]
        for file in source.glob(pattern)
        if file.is_file() and file.name != "config.json" and not file.match(CODE)
    }
    if run.data.template is None:
        # It is read before the one in tokenizer_config.json; the source's may contain another.
        (folder / CHAT_TEMPLATE).write_text(tokenizer.get_chat_template(), "utf-8")
        files.pop(CHAT_TEMPLATE, None)
    tokens = run.plan.image_tokens
    if not (tokens.start_end or tokens.patch):
        for name, file in files.items():
            shutil.copyfile(file, folder / name)
        _drop_paths(folder / "tokenizer_config.json")
        return
    tokenizer.save_pretrained(folder)
    _drop_paths(folder / "tokenizer_config.json")
    known = tokenizer.get_vocab()
    added = {token: known[token] for token in (IMAGE_PATCH, IMAGE_START, IMAGE_END) if token in known}
    _make_special(list(added), folder / "tokenizer_config.json")
    for name, file in files.items():
        if name.endswith(".model"):
            shutil.copyfile(file, folder / name)
    # Slow tokenizers such as the original's read added tokens here.
    write_json(added, folder / "added_tokens.json")


def _make_special(tokens: list[str], file: Path) -> None:
    """Write added tokens where transformers 4 reads special ones.

    The original's 4.37 puts a beginning of a word (`▁`) before a token that isn't special.
    """
    settings = json.loads(file.read_text("utf-8"))
    key = "additional_special_tokens"
    settings[key] = list(dict.fromkeys([*settings.get(key, ()), *tokens]))
    write_json(settings, file)


def _drop_paths(file: Path) -> None:
    """Remove paths of the machine from a tokenizer's settings, if there are any."""
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    public = without_paths(settings)
    if public != settings:
        write_json(public, file)


def _needs_own_tower(run: OpenedRun) -> bool:
    """Whether the tower has no lasting source: it was created from a config, or is part of a checkpoint."""
    source = run.plan.vision_tower.source
    if source is None:
        return True
    here = expanded(source)
    if not here.is_dir():
        return False
    is_part = tower_origin(run.plan.vision_tower, weights=False).layout != "language_model"
    return is_part or real_path(here).is_relative_to(real_path(run.path))
