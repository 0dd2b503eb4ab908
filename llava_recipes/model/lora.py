"""What trains: parameters frozen by globs; LoRA adapters injected, saved as the original's, and merged."""

from __future__ import annotations

import json
import math
import pathlib
from collections import Counter
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TypeGuard

import torch
from pydantic import JsonValue
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.files import replacing, write_text
from llava_recipes.model.base_weights import private_randomness
from llava_recipes.model.placing import full_shape, is_quantized, marked_quantized, overwrite
from llava_recipes.model.weight_names import canonical_name, canonical_parameters, original_name
from llava_recipes.plan.trainable import (
    ADAPTER,
    IMAGE_TOKENS_WEIGHT,
    decide_with_lora,
    freezing_problems,
    lora_targets,
)
from llava_recipes.recipe.foreign import in_short, read_object
from llava_recipes.recipe.globs import Decision, Freeze, decide
from llava_recipes.recipe.schema import Lora

STAGES_PATH: KeyPath = ("stages",)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
OTHER_WEIGHTS = "non_lora_trainables.bin"
_MOST = 1e9
"""Above any rank and any alpha."""
PREFIX = "base_model.model."
"""What peft's wrapper puts before every name."""
PEFT_KEYS: Mapping[str, JsonValue] = MappingProxyType(
    {
        "peft_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "revision": None,
        "task_type": None,
        "inference_mode": False,
        "r": 8,
        "target_modules": None,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "bias": "none",
        "use_rslora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "loftq_config": {},
    }
)
"""Keys that peft 0.8.2 knows in adapter_config.json, with their defaults, from its LoraConfig (config.py and
tuners/lora/config.py). The original LLaVA pins that version, which is older than DoRA."""


def freeze_model(
    model: nn.Module,
    *,
    freeze: Freeze,
    trainable: tuple[str, ...],
    lora: Lora | None = None,
    targets: tuple[str, ...] = (),
) -> Decision:
    """Set `requires_grad` on every parameter by the stage's globs; returns the decision.

    With `lora` the model contains adapters of the weights `targets`.
    Raises RecipeError when a glob matches nothing, or nothing is left to train.
    """
    parameters = canonical_parameters(model)
    adapters = [name for name in parameters if is_adapter(name)]
    base = [name for name in parameters if not is_adapter(name)]
    decision = decide(base, freeze=freeze, trainable=trainable)
    if lora is not None:
        decision = decide_with_lora(decision, targets=targets, adapters=adapters, lora=lora)
    has_lora, path = lora is not None, ("stages", 0)
    problems = tuple(
        freezing_problems(
            decision, base, freeze=freeze, trainable=trainable, has_lora=has_lora, stage_path=path
        )
    )
    if problems:
        raise RecipeError(*problems)
    for name in decision.trainable:
        parameters[name].requires_grad_(True)
    for name in decision.frozen:
        parameters[name].requires_grad_(False)
    return decision


def inject_lora(model: LlavaForConditionalGeneration, lora: Lora, *, seed: int) -> tuple[str, ...]:
    """Add adapters, drawn from `seed`, to the linear layers that `lora` names.

    Returns the names of those layers' weights. The model keeps its class and its forward, and every process
    draws the same adapters. Raises RecipeError when no such layer exists.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = {
        canonical_name(f"{name}.weight"): name
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or is_quantized(module)) and "vision_tower.head." not in name
    }
    targets = lora_targets(linear, lora)
    if not targets:
        message, found = "`lora.modules` matches no linear layer", ", ".join(lora.modules)
        raise RecipeError.of(message, code="lora-without-linear-layers", found=found)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides by r; a fraction is fine
        lora_dropout=lora.dropout,
        target_modules=[linear[name] for name in targets],
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
    )
    with private_randomness(), marked_quantized(model):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, model)
    return targets


def is_adapter(name: str) -> bool:
    """Whether a canonical name belongs to an adapter's parameter."""
    return ADAPTER.search(name) is not None


def write_adapter(
    state: Mapping[str, Tensor], folder: pathlib.Path, lora: Lora, *, base: str, num_layers: int
) -> tuple[pathlib.Path, ...]:
    """Write adapters and whatever else trained, in the original's files and under its names.

    `state` is by canonical name; `base` names the language model, and `num_layers` counts its layers.
    Embeddings of image tokens are left out: the original would take them for those of all tokens.
    """
    adapters = {name: tensor for name, tensor in state.items() if is_adapter(name)}
    others = {
        name: tensor for name, tensor in state.items() if not is_adapter(name) and name != IMAGE_TOKENS_WEIGHT
    }
    weights, rest, config = folder / ADAPTER_WEIGHTS, folder / OTHER_WEIGHTS, folder / ADAPTER_CONFIG
    with replacing(weights) as temporary:
        save_file(_original(adapters), temporary, metadata={"format": "pt"})
    with replacing(rest) as temporary:
        torch.save(_original(others), temporary)
    modules = {name[: name.index(".lora_")] for name in adapters}
    settings = _adapter_config(lora, _target_modules(modules, num_layers), base)
    write_text(config, json.dumps(settings, indent=2, sort_keys=True) + "\n")
    return weights, rest, config


def _original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        PREFIX + original_name(name): tensor.detach().cpu().contiguous() for name, tensor in state.items()
    }


def _adapter_config(lora: Lora, target_modules: list[JsonValue], base: str) -> dict[str, JsonValue]:
    """What peft reads, without the keys that equal their default.

    peft refuses keys that it does not know: the original's 0.8.2 accepts only those in `PEFT_KEYS`.
    """
    settings: dict[str, JsonValue] = {
        "bias": lora.bias,
        "inference_mode": True,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "r": lora.r,
        "target_modules": target_modules,
        "task_type": "CAUSAL_LM",
        "use_dora": lora.use_dora,
        "use_rslora": lora.use_rslora,
    }
    defaults = {"use_dora": False, **PEFT_KEYS}
    return {
        "base_model_name_or_path": base,
        "peft_type": "LORA",
        # Always written: scales are computed from them.
        **{
            key: value
            for key, value in settings.items()
            if key in ("r", "lora_alpha") or value != defaults[key]
        },
    }


def _target_modules(modules: Collection[str], num_layers: int) -> list[JsonValue]:
    """Kinds of layers when all of the language model's are adapted, as in the original; else full names."""
    kinds = Counter(name.rpartition(".")[2] for name in modules)
    if all(name.startswith("language_model.") for name in modules) and set(kinds.values()) == {num_layers}:
        return [*sorted(kinds)]
    return [*sorted(original_name(f"{name}.weight").removesuffix(".weight") for name in modules)]


def merge_adapters(model: nn.Module, adapters: Mapping[str, Tensor], config: pathlib.Path) -> tuple[str, ...]:
    """Add a finished run's adapters to the weights that they adapt; returns those weights' names.

    Under ZeRO-3 all processes call this. Raises RecipeError when an adapter has no place, or its settings are
    missing.
    """
    scale = read_scale(config, STAGES_PATH)
    parameters = canonical_parameters(model)
    names = [f"{name[: name.index('.lora_')]}.weight" for name in adapters if ".lora_A." in name]

    def refusal(message: str, *, code: str = "weights-do-not-fit", hint: str | None = None) -> RecipeError:
        found = str(config.parent)
        return RecipeError.of(message, code=code, path=STAGES_PATH, found=found, hint=hint)

    foreign = [name for name in names if name not in parameters]
    if foreign:
        raise refusal(f"adapters do not fit this model: it has no {foreign[0]}")
    small = [name for name in names if not parameters[name].is_floating_point()]
    if small:
        raise refusal(
            f"adapters cannot be merged into a quantized language model: {small[0]} is quantized",
            code="merge-into-quantized-model",
            hint="start from a run that trained the projector, or remove `quantization`",
        )
    for name in names:
        trouble = _misfit(name.removesuffix(".weight"), adapters, full_shape(parameters[name]))
        if trouble is not None:
            raise refusal(trouble)
    for name in names:
        weight, module = parameters[name], name.removesuffix(".weight")
        overwrite(weight, lambda weight=weight, module=module: _merged(weight, module, adapters, scale))  # type: ignore[misc]
    return tuple(names)


def _misfit(module: str, adapters: Mapping[str, Tensor], shape: tuple[int, ...]) -> str | None:
    """Why a layer's adapters do not fit a weight of this shape; None when they do."""
    down, up = (adapters.get(f"{module}.lora_{side}.weight") for side in "AB")
    if down is None or up is None:
        return f"an adapter is incomplete: {module} has no lora_{'B' if up is None else 'A'}"
    made_for = (up.shape[0], down.shape[-1])
    if up.dim() != 2 or down.dim() != 2 or up.shape[1] != down.shape[0] or made_for != shape:
        return (
            f"adapters do not fit this model: those of {module} are for a weight of shape {list(made_for)}, "
            f"the model's has {list(shape)}"
        )
    return None


def _merged(weight: Tensor, module: str, adapters: Mapping[str, Tensor], scale: float) -> Tensor:
    down, up = (adapters[f"{module}.lora_{side}.weight"].to(weight.device).float() for side in "AB")
    whole = weight.detach().float() + scale * (up @ down)
    length = adapters.get(f"{module}.lora_magnitude_vector.weight")
    if length is not None:
        whole = whole * (length.to(weight.device).float() / whole.norm(dim=1))[:, None]
    return whole.to(weight.dtype)


def read_scale(config: pathlib.Path, path: KeyPath) -> float:
    """The factor of the adapters' products; `path` is the recipe path named in errors.

    Raises RecipeError when their settings are missing or cannot be read.
    """
    hint = "a finished LoRA run writes it next to its weights"
    settings = read_object(config, path=path, hint=hint)
    rank, alpha, is_root = (settings.get(key) for key in ("r", "lora_alpha", "use_rslora"))
    if _is_number(rank) and _is_number(alpha) and rank > 0:
        return float(alpha / (math.sqrt(rank) if is_root else rank))
    raise RecipeError.of(
        "the adapters' settings cannot be read",
        code="adapter-config-unreadable",
        path=path,
        found=f"{config}: `r` is {in_short(rank)}, `lora_alpha` is {in_short(alpha)}: not above 0",
        hint=hint,
    )


def _is_number(value: JsonValue) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST
