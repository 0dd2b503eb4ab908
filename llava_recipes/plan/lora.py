"""Which linear layers LoRA adapts, what that adds to the parameters, and what is wrong with the choice."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.globs import Decision, explain_glob, fold_layers, split_glob, tree_of
from llava_recipes.recipe.schema import Lora

ADAPTER = re.compile(r"\.lora_[A-Za-z_]+\.")
Shapes = Mapping[str, tuple[int, ...]]

_EMBEDDINGS = ("embed_tokens", "position_embedding")
_LAYER = re.compile(r"\.\d+\.")


def linear_weights(shapes: Shapes) -> tuple[str, ...]:
    """The weights of linear layers: matrices that are not embeddings. A SigLIP tower's head never runs."""
    return tuple(
        name
        for name, shape in shapes.items()
        if name.endswith(".weight")
        and len(shape) == 2
        and name.split(".")[-2] not in _EMBEDDINGS
        and not name.startswith("vision_tower.head.")
    )


def lora_targets(linear: Collection[str], lora: Lora) -> tuple[str, ...]:
    """The linear weights that get adapters. Outside the language model only what a glob names by its root."""
    linear = tuple(linear)
    targets = {name for glob in dict.fromkeys(lora.modules) for name in _reached(glob, linear)}
    return tuple(name for name in linear if name in targets)


def adapter_shapes(shapes: Shapes, targets: Collection[str], lora: Lora) -> dict[str, tuple[int, ...]]:
    """The parameters that adapters add, by canonical name."""
    added: dict[str, tuple[int, ...]] = {}
    for name in targets:
        module, (num_out, num_in) = name.removesuffix(".weight"), shapes[name]
        added[f"{module}.lora_A.weight"] = (lora.r, num_in)
        added[f"{module}.lora_B.weight"] = (num_out, lora.r)
        if lora.use_dora:
            added[f"{module}.lora_magnitude_vector.weight"] = (num_out,)
    return added


def decide_with_lora(
    decision: Decision, *, targets: Collection[str], adapters: Collection[str], lora: Lora
) -> Decision:
    """What trains once adapters are there: they do, and the biases that `bias` asks for."""
    names = {*decision.trainable, *decision.frozen}
    modules = {name.removesuffix(".weight") for name in targets}
    roots = {name.split(".")[0] for name in targets}
    biases = {
        name
        for name in names
        if name.endswith("bias")
        and (
            (lora.bias == "all" and name.split(".")[0] in roots)
            or (lora.bias == "lora_only" and name.removesuffix(".bias") in modules)
        )
    }
    return Decision(
        (*decision.trainable, *(name for name in decision.frozen if name in biases), *adapters),
        tuple(name for name in decision.frozen if name not in biases),
        decision.unmatched,
    )


def lora_problems(
    lora: Lora, *, freeze: object, shapes: Shapes, decision: Decision, stage_path: KeyPath
) -> Iterator[Problem]:
    """Globs of `lora.modules` that reach no linear layer, or one that trains in full."""
    linear, trains, tree = linear_weights(shapes), set(decision.trainable), tree_of(shapes)
    for index, glob in enumerate(lora.modules):
        path: KeyPath = (*stage_path, "lora", "modules", index)
        if not tree.matched(glob):
            yield explain_glob(glob, shapes, key="modules", path=path)
            continue
        reached = _reached(glob, linear)
        in_full = [name for name in reached if name in trains]
        if not reached:
            yield Problem(
                f'glob "{glob}" in `modules` reaches no linear layer',
                code="lora-without-linear-layers",
                path=path,
                hint="LoRA goes beside linear layers, e.g. `language_model`; "
                "vision_tower, projector and lm_head are adapted only where a glob begins with their name",
            )
        elif in_full:
            yield Problem(
                f'glob "{glob}" in `modules` adapts what trains in full',
                code="lora-on-trained-modules",
                path=path,
                found=f"{len(in_full)} weight(s), the first {in_full[0]}",
                hint=_freezing_hint(lora, freeze),
            )


def _freezing_hint(lora: Lora, freeze: object) -> str:
    if freeze != "all":
        return "write `freeze: all`, with `trainable` naming only what trains beside LoRA"
    if "modules" in lora.model_fields_set:
        return "remove it here, or from `trainable`"
    return "remove it from `trainable`: what LoRA adapts stays frozen itself"


def summarize_adapters(adapters: Iterable[str]) -> tuple[str, ...]:
    """Globs that hold exactly these parameters, those of no layer first."""
    modules = dict.fromkeys(name[: name.index(".lora_")] for name in adapters)
    return fold_layers(
        f"{module}.lora_*" for module in sorted(modules, key=lambda module: bool(_LAYER.search(module)))
    )


def _reached(glob: str, linear: tuple[str, ...]) -> list[str]:
    """The linear weights that a glob adapts."""
    roots = ("language_model", split_glob(glob)[0])
    return [name for name in tree_of(linear).matched(glob) if name.split(".", 1)[0] in roots]
