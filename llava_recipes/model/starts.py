"""The weights that a stage may start from: of a run's folder, a projector's file, or a LLaVA checkpoint."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import JsonValue
from torch import Tensor, nn

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import expanded, odd_kind
from llava_recipes.model.among_processes import by_first, num_processes, share_tensor
from llava_recipes.model.base_weights import COMPUTED
from llava_recipes.model.checkpoint import (
    TensorsInMemory,
    TensorSource,
    has_weights,
    open_checkpoint,
    open_tensor_file,
)
from llava_recipes.model.lora import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    OTHER_WEIGHTS,
    PREFIX,
    is_adapter,
    read_scale,
)
from llava_recipes.model.pretrained import pretrained_folder
from llava_recipes.model.weight_names import canonical_in, layout_of
from llava_recipes.model.weights import PROJECTOR_FILES, TRAINED_FILE, lay_over, read_projector_weights
from llava_recipes.plan.compare import identity
from llava_recipes.recipe.foreign import check_model_folder, read_object

Kind = Literal["run", "adapters", "checkpoint", "projector"]
Values = Mapping[str, JsonValue]

PLAN, CONFIG, SEAL = "plan.json", "config.json", "checkpoint.json"
_OLD_ADAPTERS = "adapter_model.bin"
_FEATURES = {"default": "patch", "full": "cls_patch"}


@dataclass(frozen=True)
class Claims:
    """What starting weights say about the model that they were trained in; None where they say nothing."""

    language_model: str | None = None
    vision_tower: str | None = None
    select_layer: int | None = None
    select_feature: str | None = None
    projector: str | None = None
    start_end: bool | None = None


@dataclass(frozen=True)
class StartingWeights:
    """Weights to lay over a model, read when they are asked for, and what they say about their model."""

    kind: Kind
    place: pathlib.Path
    claims: Claims
    adapter_config: pathlib.Path
    _found: dict[str, tuple[TensorSource, str]] = field(repr=False)
    """By canonical name: the source of each tensor, and its name there."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By canonical name, without reading the tensors' values."""
        return {name: tuple(source.read(theirs).shape) for name, (source, theirs) in self._found.items()}

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.each())

    def each(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by canonical name, each read when its turn comes."""
        for name, (source, theirs) in self._found.items():
            yield name, source.read(theirs)


def open_start(given: str | pathlib.Path, path: KeyPath) -> StartingWeights:
    """The weights of a file, a folder or a hub id; `path` is the recipe path named in errors.

    Raises RecipeError when it is missing, cut short, or isn't something that a stage can start from.
    """
    place = expanded(given)
    if os.path.isfile(place) or odd_kind(place) is not None:
        weights = _of_projector(place, path)
        return StartingWeights("projector", place, Claims(), place.with_name(ADAPTER_CONFIG), weights)
    folder = (
        place if os.path.isdir(place) else pretrained_folder(str(given), None, parts=("start",), path=path)
    )
    check_model_folder(folder, path)
    config = _read_object(folder / CONFIG, path)
    kind, found = _contents(folder, config, path)
    if not found:
        raise RecipeError(_nothing(folder, path))
    if any(map(is_adapter, found)):
        read_scale(folder / ADAPTER_CONFIG, path)
    return StartingWeights(kind, folder, _claims(folder, kind, config, path), folder / ADAPTER_CONFIG, found)


def load_start(model: nn.Module, given: str | pathlib.Path, path: KeyPath) -> tuple[str, ...]:
    """Lay starting weights over the model's; returns the names of those that changed.

    Where several processes train, all call this, and the first one alone reads: the others may be on nodes
    that do not have the folder. Raises RecipeError as `open_start` does, and when a weight has no place or
    another shape.
    """
    if num_processes() == 1:
        start = open_start(given, path)
        return lay_over(model, start.tensors(), adapter_config=start.adapter_config, found=str(start.place))
    tensors, settings = _from_the_first(given, path)
    with tempfile.TemporaryDirectory(prefix="llava-recipe-") as folder:
        adapter_config = pathlib.Path(folder) / ADAPTER_CONFIG
        if settings is not None:
            adapter_config.write_text(settings, "utf-8")
        return lay_over(model, tensors, adapter_config=adapter_config, found=str(given))


def _from_the_first(given: str | pathlib.Path, path: KeyPath) -> tuple[dict[str, Tensor], str | None]:
    """Starting weights and the text of their adapters' settings, which the first process reads for all."""
    tensors: dict[str, Tensor] = {}

    def described() -> JsonValue:
        start = open_start(given, path)
        tensors.update(start.tensors())
        settings = start.adapter_config.read_text("utf-8") if start.adapter_config.is_file() else None
        specs: list[JsonValue] = [
            [name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
            for name, tensor in tensors.items()
        ]
        return {"settings": settings, "tensors": specs}

    device = _device()
    header = by_first(described, device)
    received = {}
    for name, shape, dtype in header["tensors"]:
        like = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        received[name] = share_tensor(tensors.pop(name, None), device, like=like).cpu()
    return received, header["settings"]


def _device() -> torch.device:
    """Where the processes exchange tensors."""
    by_gpu = "nccl" in str(dist.get_backend())
    return torch.device("cuda", torch.cuda.current_device()) if by_gpu else torch.device("cpu")


def _contents(
    folder: pathlib.Path, config: Values, path: KeyPath
) -> tuple[Kind, dict[str, tuple[TensorSource, str]]]:
    if (folder / TRAINED_FILE).is_file():
        source = open_tensor_file(folder / TRAINED_FILE, path)
        return "run", {name: (source, name) for name in sorted(source.names())}
    if (folder / ADAPTER_CONFIG).is_file():
        adapters = folder / (ADAPTER_WEIGHTS if (folder / ADAPTER_WEIGHTS).is_file() else _OLD_ADAPTERS)
        files = [adapters, *([folder / OTHER_WEIGHTS] if (folder / OTHER_WEIGHTS).is_file() else [])]
        found: dict[str, tuple[TensorSource, str]] = {}
        for file in files:
            found |= _in_layout(open_tensor_file(file, path), "llava", file, path)
        return "adapters", found
    layout = layout_of(config)
    if layout != "language_model" and has_weights(folder):
        return "checkpoint", _in_layout(open_checkpoint(folder, path), layout, folder, path)
    projector = [folder / name for name in PROJECTOR_FILES if (folder / name).is_file()]
    if projector:
        return ("run" if (folder / PLAN).is_file() else "projector"), _of_projector(projector[0], path)
    raise RecipeError(_nothing(folder, path))


def _in_layout(
    source: TensorSource, layout: Literal["llava", "hf"], place: pathlib.Path, path: KeyPath
) -> dict[str, tuple[TensorSource, str]]:
    found, foreign = {}, []
    for name in sorted(source.names()):
        if COMPUTED.search(name):
            continue
        ours = canonical_in(layout, name.removeprefix(PREFIX).replace(".default.", "."))
        if ours is None:
            foreign.append(name)
        else:
            found[ours] = (source, name)
    if foreign:
        message = f"{len(foreign)} weight(s) have no place in a LLaVA model: {', '.join(foreign[:4])}"
        raise RecipeError.of(message, code="weights-have-no-place", path=path, found=str(place))
    return found


def _of_projector(file: pathlib.Path, path: KeyPath) -> dict[str, tuple[TensorSource, str]]:
    try:
        weights = read_projector_weights(file)
    except RecipeError as error:
        raise RecipeError(*(replace(problem, path=path) for problem in error.problems)) from error
    tensors = dict(weights.all_tensors())
    source = TensorsInMemory(tensors)
    return {name: (source, name) for name in tensors}


def _claims(folder: pathlib.Path, kind: Kind, config: Values, path: KeyPath) -> Claims:
    if (folder / SEAL).is_file() and not (folder / PLAN).is_file():
        # A checkpoint is in the folder of its run.
        folder = folder.parent
    if (folder / PLAN).is_file():
        model = _mapping(_read_object(folder / PLAN, path).get("model"))
        tower, tokens = _mapping(model.get("vision_tower")), _mapping(model.get("image_tokens"))
        return Claims(
            language_model=identity(_mapping(model.get("language_model"))),
            vision_tower=identity(tower),
            select_layer=_number(tower.get("select_layer")),
            select_feature=_text(tower.get("select_feature")),
            projector=_text(_mapping(model.get("projector")).get("type")),
            start_end=tokens.get("start_end") is True,
        )
    if layout_of(config) == "hf":
        strategy = _text(config.get("vision_feature_select_strategy"))
        return Claims(
            select_layer=_number(config.get("vision_feature_layer")),
            select_feature=_FEATURES.get(strategy) if strategy else None,
        )
    named = config.get("_name_or_path")
    if kind == "adapters":
        named = _read_object(folder / ADAPTER_CONFIG, path).get("base_model_name_or_path") or named
    layer, start_end = config.get("mm_vision_select_layer"), config.get("mm_use_im_start_end")
    return Claims(
        language_model=_text(named),
        vision_tower=_text(config.get("mm_vision_tower")),
        select_layer=_number(layer),
        select_feature=_text(config.get("mm_vision_select_feature")),
        projector=_text(config.get("mm_projector_type")),
        start_end=start_end if isinstance(start_end, bool) else None,
    )


def _nothing(folder: pathlib.Path, path: KeyPath) -> Problem:
    return Problem(
        "`init_from` names a folder without trained weights",
        code="weights-missing",
        path=path,
        found=f"{folder} contains neither {TRAINED_FILE}, mm_projector.bin, adapters nor a LLaVA checkpoint",
        hint="write the output_dir of a finished run",
    )


def _read_object(file: pathlib.Path, path: KeyPath) -> Values:
    """The object of a JSON file; empty when the file does not exist."""
    return read_object(file, path=path) if file.is_file() else {}


def _mapping(value: object) -> Values:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
