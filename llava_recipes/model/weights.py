"""Trained weights in files: the projector by the original's names, all that trained by canonical names."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import expanded, replacing
from llava_recipes.model.checkpoint import check_values, open_checkpoint, open_tensor_file
from llava_recipes.model.learned_rows import IMAGE_NEWLINE, ORIGINAL_KEY, write_image_tokens
from llava_recipes.model.lora import ADAPTER_CONFIG, STAGES_PATH, is_adapter, merge_adapters
from llava_recipes.model.placing import full_shape, is_first_process, is_partitioned, overwrite
from llava_recipes.model.weight_names import canonical_in, canonical_parameters, original_name
from llava_recipes.plan.trainable import EMBEDDINGS, IMAGE_TOKENS_WEIGHT, NUM_TOKENS
from llava_recipes.projectors import projector_shapes, recognize

_NEWLINE_HINT = "write `mm_patch_merge_type: spatial_unpad` under `data:`"
INIT_PATH: KeyPath = ("model", "projector", "init_from")
TRAINED_FILE = "trained.safetensors"
PROJECTOR_FILES = ("mm_projector.safetensors", "mm_projector.bin")
_RUN_FILES = (TRAINED_FILE, *PROJECTOR_FILES)
_EMBEDDINGS_KEYS = ("embed_tokens.weight", "embed_in.weight")
_PROJECTOR_KEY = re.compile(r"^(?:.*\.)?(?:mm_projector|projector)\.((?:\w+\.)*(?:weight|bias))$")


@dataclass(frozen=True)
class ProjectorWeights:
    """A projector's weights, its type and sizes; sizes are None for `identity`, which has none."""

    type: str
    vision_hidden: int | None
    language_hidden: int | None
    tensors: dict[str, Tensor]
    """By canonical name: `projector.0.weight`."""
    image_tokens: Tensor | None = None
    """float[2, D] or float[V, D]: embeddings of `<im_start>` and `<im_end>`, if saved with it."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def all_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """By canonical name, including the embeddings of image tokens."""
        yield from self.tensors.items()
        if self.image_tokens is not None:
            yield IMAGE_TOKENS_WEIGHT, self.image_tokens


def read_projector_weights(path: str | pathlib.Path) -> ProjectorWeights:
    """Read a `.bin` or `.safetensors` file of projector weights; type and sizes follow from its tensors.

    Of a folder, a whole LLaVA checkpoint, only the projector is read.
    Raises RecipeError when the file is broken, contains something else, or its layers do not fit each other.
    """
    file = expanded(path)
    is_whole = file.is_dir()
    source = open_checkpoint(file, INIT_PATH) if is_whole else open_tensor_file(file, INIT_PATH)
    by_layer: dict[str, Tensor] = {}
    foreign: list[str] = []
    image_tokens: Tensor | None = None
    for name in sorted(source.names()):
        match = _PROJECTOR_KEY.match(canonical_in("hf", name) or name)
        if match is None and not is_whole and name.endswith(_EMBEDDINGS_KEYS):
            image_tokens = source.read(name)
        elif match is None:
            foreign.append(name)
        else:
            by_layer[match.group(1)] = source.read(name)
    if image_tokens is not None and not by_layer:
        foreign.append("embeddings alone")
    if foreign and not is_whole:
        raise _misfit(
            f"{len(foreign)} weight(s) of this file are not the projector's: {', '.join(foreign[:4])}",
            str(file),
            "expected names such as model.mm_projector.0.weight",
            code="weights-are-not-a-projector",
        )
    return replace(_described(by_layer, str(file)), image_tokens=image_tokens)


def _described(by_layer: dict[str, Tensor], file: str) -> ProjectorWeights:
    if not by_layer:
        return ProjectorWeights("identity", None, None, {})
    found = recognize({name: tuple(tensor.shape) for name, tensor in by_layer.items()})
    if found is None or 0 in found:
        raise _misfit(
            "the layers in this file do not make a projector",
            file,
            _layers(by_layer),
            code="weights-are-not-a-projector",
        )
    tensors = {f"projector.{name}": by_layer[name] for name in projector_shapes(*found)}
    return ProjectorWeights(*found, tensors)


def load_projector(model: LlavaForConditionalGeneration, path: str | pathlib.Path) -> None:
    """Fill the model's projector from a file, or from a whole checkpoint's folder.

    Under ZeRO-3 all processes call this. Raises RecipeError, with both shapes, when it does not fit.
    """
    weights = read_projector_weights(path)
    parameters = {
        name: each for name, each in canonical_parameters(model).items() if name.startswith("projector.")
    }
    wanted = {name: full_shape(parameter) for name, parameter in parameters.items()}
    if weights.shapes() != wanted:
        raise _misfit(
            "these projector weights do not fit the recipe's model",
            f"{path} contains {weights.type}: {_shapes(weights.shapes())}",
            f"the recipe's model needs {_shapes(wanted)}",
            code="weights-do-not-fit",
        )
    check_values(weights.all_tensors(), path=INIT_PATH, found=str(path))
    for name, parameter in parameters.items():
        overwrite(parameter, lambda name=name: weights.tensors[name])  # type: ignore[misc]
    if weights.image_tokens is not None:
        write_image_tokens(model, weights.image_tokens, path=INIT_PATH, found=str(path))


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """What trains, by canonical name, on the CPU; under ZeRO-3 all processes call this, the first gets it."""
    state: dict[str, Tensor] = {}
    for name, parameter in canonical_parameters(model).items():
        if parameter.requires_grad:
            tensor = _gathered(parameter)
            if is_first_process():
                state[name] = tensor
    return state


def _gathered(parameter: nn.Parameter) -> Tensor:
    if not is_partitioned(parameter):
        return parameter.detach().to("cpu", copy=True)
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().to("cpu", copy=True)


def write_projector(
    state: Mapping[str, Tensor],
    folder: pathlib.Path,
    *,
    dtype: torch.dtype | None = None,
    image_tokens: Tensor | None = None,
) -> tuple[pathlib.Path, ...]:
    """Write the projector as `mm_projector.bin` and `mm_projector.safetensors`; returns both paths.

    `image_tokens`, float[2, D], are the embeddings of `<im_start>` and `<im_end>`, written with it.

    Names are the original's; the dtype stays unless `dtype` is set. A projector without weights (`identity`,
    or one that does not train) cannot be written.
    """
    tensors = {
        original_name(name): tensor.detach().to("cpu", dtype).contiguous().clone()
        for name, tensor in state.items()
        if name.startswith("projector.")
    }
    if image_tokens is not None:
        tensors[ORIGINAL_KEY] = image_tokens.detach().to("cpu", dtype).contiguous()
    _assert_filled(tensors)
    binary, safe = folder / "mm_projector.bin", folder / "mm_projector.safetensors"
    with replacing(binary) as temporary:
        torch.save(tensors, temporary)
    _write_safetensors(tensors, safe)
    return binary, safe


def write_trained(state: Mapping[str, Tensor], folder: pathlib.Path) -> pathlib.Path:
    """Write everything that trains as `trained.safetensors`, by canonical name."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    _assert_filled(tensors)
    file = folder / TRAINED_FILE
    _write_safetensors(tensors, file)
    return file


def load_trained(model: nn.Module, path: str | pathlib.Path) -> tuple[str, ...]:
    """Lay trained weights over the model's; returns the names of those that changed.

    `path` is a file by canonical names, or a run's folder: its trained weights, or else its projector.
    Adapters are merged into a model that has none.
    Under ZeRO-3 all processes call this. Raises RecipeError when a weight has no place or another shape.
    """
    found = pathlib.Path(path)
    files = [found] if found.is_file() else [found / name for name in _RUN_FILES if (found / name).is_file()]
    tensors: dict[str, Tensor] = {}
    for file in files[:1]:
        if file.name == TRAINED_FILE or found.is_file():
            source = open_tensor_file(file, STAGES_PATH)
            tensors = {name: source.read(name) for name in sorted(source.names())}
        else:
            tensors = dict(read_projector_weights(file).all_tensors())
    if not tensors:
        hint = f"a finished run writes {TRAINED_FILE} or mm_projector.safetensors there"
        raise RecipeError.of(
            "no trained weights here", code="weights-missing", path=STAGES_PATH, found=str(path), hint=hint
        )
    return lay_over(model, tensors, adapter_config=files[0].with_name(ADAPTER_CONFIG), found=str(files[0]))


def lay_over(
    model: nn.Module, tensors: Mapping[str, Tensor], *, adapter_config: pathlib.Path, found: str
) -> tuple[str, ...]:
    """Lay weights, by canonical name, over the model's; returns the names of those that changed.

    Adapters are merged, with the settings in `adapter_config`, into a model that has none.
    Under ZeRO-3 all processes call this. Raises RecipeError when a weight has no place or another shape, is
    not floating point or not finite.
    """
    tensors = dict(tensors)
    check_values(tensors.items(), path=STAGES_PATH, found=found)
    parameters = canonical_parameters(model)
    if tuple(tensors.get(EMBEDDINGS, torch.empty(0)).shape[:1]) == (NUM_TOKENS,):
        # The original's name for the image tokens that it saves with a projector.
        tensors[IMAGE_TOKENS_WEIGHT] = tensors.pop(EMBEDDINGS)
    if IMAGE_TOKENS_WEIGHT in tensors and IMAGE_TOKENS_WEIGHT not in parameters:
        write_image_tokens(model, tensors.pop(IMAGE_TOKENS_WEIGHT), path=STAGES_PATH, found=found)
    merged: tuple[str, ...] = ()
    if any(map(is_adapter, tensors)) and not any(map(is_adapter, parameters)):
        # The adapters of a finished stage are merged, so that the next one starts from a plain model.
        adapters = {name: tensors.pop(name) for name in [*tensors] if is_adapter(name)}
        merged = merge_adapters(model, adapters, adapter_config)
    problems = [
        Problem(
            f"trained weights do not fit this model: {trouble}",
            code="weights-do-not-fit",
            path=STAGES_PATH,
            found=found,
            hint=_NEWLINE_HINT if name == IMAGE_NEWLINE else None,
        )
        for name, tensor in tensors.items()
        if (trouble := _trouble(name, tensor, parameters.get(name))) is not None
    ]
    if problems:
        raise RecipeError(*problems)
    for name, tensor in tensors.items():
        overwrite(parameters[name], lambda tensor=tensor: tensor)  # type: ignore[misc]
    return (*merged, *tensors)


def _trouble(name: str, given: Tensor, parameter: nn.Parameter | None) -> str | None:
    if parameter is None:
        return f"it has no {name}"
    if not parameter.is_floating_point():
        return f"{name} is quantized in the model, but not in the file"
    if tuple(given.shape) != full_shape(parameter):
        return f"{name} has shape {list(given.shape)} in the file, {list(full_shape(parameter))} in the model"
    return None


def _write_safetensors(tensors: dict[str, Tensor], file: pathlib.Path) -> None:
    with replacing(file) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def _assert_filled(tensors: Mapping[str, Tensor]) -> None:
    assert tensors, "no trained weights to write"
    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
    assert not empty, f"weights were not gathered before writing: {empty}"


def _layers(by_layer: Mapping[str, Tensor]) -> str:
    return "it contains " + _shapes({name: tuple(tensor.shape) for name, tensor in by_layer.items()})


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "nothing"


def _misfit(message: str, found: str, hint: str, *, code: str) -> RecipeError:
    return RecipeError.of(message, code=code, path=INIT_PATH, found=found, hint=hint)
