"""Compare the plan's memory model with what torch keeps, on models that fit a CPU.

    python benchmarks/memory.py

Runs the forward and backward pass of training on a small LLaVA with random weights. Counts distinct tensors
that autograd keeps for the backward pass (`torch.autograd.graph.saved_tensors_hooks`) and the largest sum of
tensors alive at once, and prints both next to the plan's estimate. Results are in benchmarks/memory.md.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if __name__ == "__main__":
    # The script's own folder comes first otherwise, and its modules are those of a package.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.drawn import draw_tokenizer
from benchmarks.stage_model import build_stage
from llava_recipes.estimate.activations import ActivationModel, Activations, ForwardPass
from llava_recipes.plan.compile import Facts, compile_recipe
from llava_recipes.plan.model import plan_model
from llava_recipes.plan.outline import read_dimensions
from llava_recipes.plan.trainable import what_trains
from llava_recipes.recipe.schema import Recipe

VOCAB_SIZE = 1000
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2, 2 of 8 heads": {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": {**LLAMA, "model_type": "qwen3", "num_key_value_heads": 4, "head_dim": 32},
    "tied qwen3": {
        **LLAMA,
        "model_type": "qwen3",
        "num_key_value_heads": 4,
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
}
TOWERS: dict[str, dict[str, Any]] = {
    kind: {
        "model_type": kind,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 140,
        "patch_size": 14,
    }
    for kind in ("clip_vision_model", "siglip_vision_model")
}
ALL_PARTS = ("vision_tower", "projector", "language_model", "lm_head")


@dataclass(frozen=True)
class Case:
    """One setting to measure."""

    trainable: tuple[str, ...] = ("projector",)
    precision: str = "bf16"
    checkpointing: bool = False
    deepspeed: bool = True
    """The precision is the weights' own, as under DeepSpeed; else autocast's over float32."""
    language: str = "llama"
    tower: str = "clip_vision_model"
    num_samples: int = 4
    num_text_tokens: int = 40
    lora: bool = False
    """Adapters of rank 16 in the language model, without dropout: a CPU's is not a GPU's."""


@dataclass(frozen=True)
class Measured:
    """Bytes that torch had alive, and the plan's estimate of them."""

    saved: int
    """Distinct tensors kept by autograd after the forward pass, weights aside."""
    peak: int
    """The most that was alive during forward and backward pass, weights aside."""
    estimate: Activations
    kept_logits: int
    """Scores at the label positions in float32: the part of the logits that autograd keeps."""
    num_gradient_bytes: int
    num_copy_bytes: int
    """Half-precision copies of trained weights that autocast holds; the plan counts them with the weights."""

    @property
    def estimated_saved(self) -> int:
        return self.estimate.kept + self.kept_logits

    @property
    def estimated_peak(self) -> int:
        """The larger of both ends of the backward pass, as the plan has it."""
        found, copies = self.estimate, self.num_copy_bytes
        forward = found.kept + found.logits + copies
        start = found.kept + found.recomputed + found.working + copies * (not found.recomputed)
        return max(forward, start, found.layer + self.num_gradient_bytes)


class _Alive(TorchDispatchMode):
    """Adds up the storages that are alive, and remembers the largest sum."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._storages: dict[int, object] = {}
        self._known = [tensor.untyped_storage() for tensor in known]
        self._storages |= {id(storage): storage for storage in self._known}

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return

        def leave(_: object) -> None:
            self.now -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, leave)
        self.now += size
        self.most = max(self.most, self.now)


def measure(case: Case) -> Measured:
    """Run one step of a case, twice: once to count what is kept, once to find the most that is alive."""
    with tempfile.TemporaryDirectory() as folder:
        draw_tokenizer(Path(folder), vocab_size=VOCAB_SIZE)
        recipe = Recipe.model_validate_json(json.dumps(_recipe(case, folder)))
        plan = compile_recipe(recipe, world_size=1, facts=Facts()).plan
        model = build_stage(plan).model
    batch = _batch(case, model)
    saved = _count_saved(model, batch, case)
    model.zero_grad(set_to_none=True)
    with _Alive(iter([*model.parameters(), *model.buffers()])) as alive:
        _loss(model, batch, case).backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    planned = plan_model(recipe.model, language_config=None, vision_config=None)
    assert planned.outline is not None
    trains = what_trains(planned.outline.shapes, plan.stages[0])
    counted = ActivationModel(read_dimensions(planned.outline, plan.model), plan.stages[0], trains)
    num_samples, length = batch["input_ids"].shape
    num_labels = int((batch["labels"] != -100).sum())
    shape = ForwardPass(num_samples=num_samples, length=length, num_labels=num_labels, num_images=num_samples)
    mixed = not case.deepspeed and case.precision != "fp32"
    copies = 2 * sum(p.numel() for p in model.parameters() if p.requires_grad) if mixed else 0
    kept_logits = num_labels * VOCAB_SIZE * 4
    return Measured(saved, alive.most, counted.count(shape), kept_logits, gradients, copies)


def _recipe(case: Case, folder: str) -> dict[str, Any]:
    train = {
        "max_steps": 1,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": case.num_samples,
        "gradient_checkpointing": case.checkpointing,
        **({} if case.precision == "fp32" else {case.precision: True}),
    }
    stage = {
        "name": "measured",
        "trainable": case.trainable,
        "data": {"template": "plain", "sources": [{"annotations": "none.json", "images": "images"}]},
        "train": train,
        **({"lora": {"r": 16, "dropout": 0.0}} if case.lora else {}),
        "deepspeed": "zero2" if case.deepspeed else "none",
        "output_dir": "out",
    }
    model = {
        "language_model": {"config": LANGUAGE_MODELS[case.language], "tokenizer": folder},
        "vision_tower": {"config": TOWERS[case.tower]},
    }
    return {"version": 1, "name": "memory", "model": model, "stages": [stage]}


def _dtype(case: Case) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[case.precision]


def _batch(case: Case, model: nn.Module) -> dict[str, Tensor]:
    """Samples of one image each, then text that is all learned."""
    tower = TOWERS[case.tower]
    num_patches = (tower["image_size"] // tower["patch_size"]) ** 2
    shape = (case.num_samples, num_patches + case.num_text_tokens)
    is_image = torch.zeros(shape, dtype=torch.bool)
    is_image[:, 1 : 1 + num_patches] = True
    labels = torch.full(shape, -100)
    labels[:, 1 + num_patches :] = 7
    pixels = torch.randn(case.num_samples, 3, tower["image_size"], tower["image_size"])
    return {
        "input_ids": torch.full(shape, 7),
        "is_image": is_image,
        "labels": labels,
        "attention_mask": torch.ones(shape, dtype=torch.bool),
        "pixel_values": pixels.to(_dtype(case)) if case.deepspeed else pixels,
    }


def _loss(model: nn.Module, batch: dict[str, Tensor], case: Case) -> Tensor:
    mixed = not case.deepspeed and case.precision != "fp32"
    with torch.autocast("cpu", _dtype(case)) if mixed else contextlib.nullcontext():
        loss: Tensor = model(**batch).loss
    return loss


def _count_saved(model: nn.Module, batch: dict[str, Tensor], case: Case) -> int:
    own = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    known = {storage._cdata for storage in own}
    copies = {tuple(p.shape[::-1]) for p in model.parameters()} | {tuple(p.shape) for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Autocast's copies of weights are counted with the weights.
        is_weight = not case.deepspeed and tensor.dim() == 2 and tuple(tensor.shape) in copies
        if storage._cdata not in known and not is_weight:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = _loss(model, batch, case)
    size = sum(storage.nbytes() for storage in kept.values())
    del loss
    return size


LLM = ("projector", "language_model", "lm_head")
SMALL: dict[str, Any] = {
    "language": "tied qwen3",
    "tower": "siglip_vision_model",
    "deepspeed": False,
    "checkpointing": True,
}
CASES: dict[str, Case] = {
    f"{who}{', checkpointing' if checkpointing else ''}, {precision}": Case(
        trainable, precision=precision, checkpointing=checkpointing
    )
    for precision in ("bf16", "fp32")
    for who, trainable in (("projector trains", ("projector",)), ("projector and LLM train", LLM))
    for checkpointing in (False, True)
}
CASES |= {
    "all trains, bf16": Case(ALL_PARTS),
    "all trains, checkpointing, bf16": Case(ALL_PARTS, checkpointing=True),
    "all trains, SigLIP, bf16": Case(ALL_PARTS, tower="siglip_vision_model"),
    "last two layers train, bf16": Case(("language_model.layers.6", "language_model.layers.7")),
    "projector trains, qwen2, bf16": Case(language="qwen2, 2 of 8 heads"),
    "projector and LLM train, qwen3, bf16": Case(LLM, language="qwen3"),
    "projector and LoRA train, bf16": Case(lora=True),
    "projector and LoRA train, checkpointing, bf16": Case(lora=True, checkpointing=True),
    "projector and LoRA train, autocast": Case(lora=True, deepspeed=False),
    "projector trains, autocast": Case(deepspeed=False),
    "projector and LLM train, autocast": Case(LLM, deepspeed=False),
    "projector and LLM train, checkpointing, autocast": Case(LLM, deepspeed=False, checkpointing=True),
    "projector and LoRA train, checkpointing, autocast": Case(lora=True, deepspeed=False, checkpointing=True),
    "the gallery's small models, all but the tower": Case(("projector", "language_model"), **SMALL),
    "the gallery's small models, LoRA": Case(lora=True, **SMALL),
}


def main() -> None:
    print("| case | kept, torch | kept, plan | off | peak, torch | peak, plan | off |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, case in CASES.items():
        found = measure(case)
        rows = [(found.saved, found.estimated_saved), (found.peak, found.estimated_peak)]
        cells = [
            f"{real / 2**20:.2f} MiB | {planned / 2**20:.2f} MiB | {100 * (planned / real - 1):+.1f} %"
            for real, planned in rows
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
