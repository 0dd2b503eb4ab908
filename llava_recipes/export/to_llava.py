"""The original's layout: one checkpoint with its config keys and weight names, with or without the tower."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from llava_recipes.errors import RecipeError
from llava_recipes.export.checking import Expected, check_logits, expected_of
from llava_recipes.export.public_names import public_name, without_paths
from llava_recipes.export.refusing import tokenizer_folder
from llava_recipes.export.target import Piece, piece_of, write_shards
from llava_recipes.files import expanded, real_path
from llava_recipes.layouts import IMAGE_END, IMAGE_PATCH, IMAGE_START
from llava_recipes.model.configs import tower_origin
from llava_recipes.model.legacy_config import whole_config
from llava_recipes.model.pretrained import CODE, PATTERNS
from llava_recipes.model.weight_names import canonical_parameters, original_name
from llava_recipes.plan.families import TOWER_FAMILIES
from llava_recipes.plan.types import ModelPlan
from llava_recipes.use.foreign_folders import TOWER_FOLDER, write_note
from llava_recipes.use.opened import OpenedRun, open_run

_TOWER = "vision_tower."
CHAT_TEMPLATE = "chat_template.jinja"


class LlavaExport:
    """A run in the original's layout.

    with_tower  whether the tower's weights are among the others; None: where it was trained
    target      where the folder will stand in the end; a tower that nothing else names is kept inside it
    """

    def __init__(self, run: OpenedRun, *, with_tower: bool | None, target: Path) -> None:
        self._run = run
        self._target = target
        self._keeps_tower = _needs_own_tower(run)
        self._with_tower = "vision_tower" in run.trained if with_tower is None else with_tower

    def pieces(self) -> list[Piece]:
        """The weights under the original's names."""
        return [
            piece_of(original_name(name), parameter)
            for name, parameter in canonical_parameters(self._run.assembled.model).items()
            if self._with_tower or not name.startswith(_TOWER)
        ]

    def write(self, folder: Path, *, dtype: torch.dtype, max_bytes: int) -> None:
        """Config, weights, tokenizer, and the tower's folder where nothing else names it."""
        run, source = self._run, self._run.plan.language_model.source
        write_shards(self.pieces(), folder, dtype=dtype, max_bytes=max_bytes)
        tower = str(self._target / TOWER_FOLDER) if self._keeps_tower else str(run.plan.vision_tower.source)
        config = whole_config(
            run.plan, run.data, run.assembled, dtype=dtype, tower=tower, holds_tower=self._with_tower
        )
        config["_name_or_path"] = public_name(source) if source else ""
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        write_tokenizer(run, folder)
        write_note(folder, run.data)
        if self._keeps_tower:
            write_tower(run, folder / TOWER_FOLDER, dtype=dtype)

    def check(self, folder: Path, expected: Expected) -> float:
        """Open the folder again; the difference of its logits. Raises RecipeError when it is not small."""
        found = expected_of(open_run(folder, device=torch.device("cpu")))
        if found.input_ids.tolist() != expected.input_ids.tolist():
            raise RecipeError.of(
                "what was written spells prompts otherwise than the run", code="export-spells-otherwise"
            )
        return check_logits(expected, found.logits)


def write_tower(run: OpenedRun, folder: Path, *, dtype: torch.dtype) -> None:
    """The vision tower alone, as transformers saves one: config, image processor, weights."""
    folder.mkdir()
    model = run.assembled.model
    config = model.config.vision_config
    kind = TOWER_FAMILIES[config.model_type].model_class
    settings = {**config.to_dict(), "architectures": [kind], "dtype": str(dtype).removeprefix("torch.")}
    settings["_name_or_path"] = public_name(config.name_or_path or folder.name)
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
    pieces = [
        piece_of("vision_model." + name.removeprefix(_TOWER), parameter)
        for name, parameter in canonical_parameters(model).items()
        if name.startswith(_TOWER)
    ]
    write_shards(pieces, folder, dtype=dtype, max_bytes=2**62)
    run.assembled.image_processor.save_pretrained(folder)


def write_tokenizer(run: OpenedRun, folder: Path) -> None:
    """The tokenizer's own files where it is as it was, else what it has become."""
    tokenizer, source = run.assembled.tokenizer, tokenizer_folder(run)
    files = {
        file.name: file
        for pattern in PATTERNS["tokenizer"]
        for file in source.glob(pattern)
        if file.is_file() and file.name != "config.json" and not file.match(CODE)
    }
    if run.data.template is None:
        # Read before the one in tokenizer_config.json; what lies there may be written around another.
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
    # Slow tokenizers, as the original's, look for added tokens here.
    (folder / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n", "utf-8")


def _make_special(tokens: list[str], file: Path) -> None:
    """Name added tokens where transformers 4 looks for special ones.

    The original's 4.37 writes a beginning of a word (`▁`) before a token that it doesn't take for special.
    """
    settings = json.loads(file.read_text("utf-8"))
    key = "additional_special_tokens"
    settings[key] = list(dict.fromkeys([*settings.get(key, ()), *tokens]))
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _drop_paths(file: Path) -> None:
    """Leave a tokenizer's settings as they are, unless they name places of a machine."""
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    public = without_paths(settings)
    if public != settings:
        file.write_text(json.dumps(public, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _needs_own_tower(run: OpenedRun) -> bool:
    """Whether the tower is named by nothing that will last: drawn from a config, or part of a checkpoint."""
    source = run.plan.vision_tower.source
    if source is None:
        return True
    here = expanded(source)
    if not here.is_dir():
        return False
    return real_path(here).is_relative_to(real_path(run.path)) or _is_part(run.plan)


def _is_part(plan: ModelPlan) -> bool:
    return tower_origin(plan.vision_tower, weights=False).layout != "language_model"
