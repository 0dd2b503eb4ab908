"""Memory that a forward pass keeps for the backward pass, counted from the configs.

The formulas name every tensor that autograd keeps, in bytes per token and layer. For a decoder layer with
hidden size D, inner size I, A = heads × head size, K = key-value heads × head size, H heads, and c bytes a
number (2 in half precision, 4 in float32):

    two norms                8 D            the residual stream in float32, and 8 bytes of scales
    attention                2 c (A + K)    queries, keys, values and the output; 4 H for the row sums
    gated inner layer        3 c I          gate, activated gate and up
    inputs of linear layers  c (2 D + I)    only of those that train; of all under ZeRO-3
    inputs of norm weights   2 c D          only of those that train

A frozen linear layer keeps no input, since its weight needs no gradient. Nothing is kept before the first
module that trains. With gradient checkpointing a layer keeps only its input, c D, and one layer at a time is
computed again. An adapter of LoRA keeps its input and, with dropout, a mask.
`benchmarks/memory.md` compares these with what torch keeps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from llava_recipes.plan.deepspeed import zero_stage
from llava_recipes.plan.outline import Dimensions
from llava_recipes.plan.trainable import ADAPTER, Trains
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.schema import Lora

_LABEL_BYTES = 4
_DECODER_LINEARS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    *("mlp.gate_proj", "mlp.up_proj"),
)

_SHARED_INPUTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
    ("mlp.fc1",),
    ("mlp.fc2",),
)
"""Linear layers that read the same tensor, which attention does not keep itself."""


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass: samples, their padded length, label tokens in total, images that the tower sees."""

    num_samples: int
    length: int
    num_labels: int
    num_images: int

    @property
    def num_tokens(self) -> int:
        return self.num_samples * self.length


@dataclass(frozen=True)
class Activations:
    """Bytes in use during a pass, besides weights, gradients and optimizer."""

    kept: int
    """By the forward pass for the backward pass, without logits."""
    recomputed: int
    """By the one layer that is computed again; 0 without gradient checkpointing."""
    logits: int
    """At the label positions, when the loss is computed."""
    working: int
    """Gradients in flight inside the largest layer."""
    layer: int
    """By one layer with its working memory, as at the end of the backward pass."""


class ActivationModel:
    """Counts what the passes of a stage keep."""

    def __init__(self, sizes: Dimensions, stage: StagePlan, trains: Trains) -> None:
        self._sizes, self._trainable = sizes, frozenset(trains.decision.trainable)
        self._checkpoints = stage.train.gradient_checkpointing
        self._width = 4 if stage.train.precision == "fp32" else 2
        self._zero3 = zero_stage(stage.deepspeed) == 3
        self._owners = frozenset(name.rpartition(".")[0] for name in self._trainable)
        self._roots = frozenset(name.split(".", 1)[0] for name in self._trainable)
        # Half precision without DeepSpeed is autocast: what trains is float32, and its inputs are cast.
        # Adapters do not change the precision between layers.
        in_full = {name.split(".", 1)[0] for name in self._trainable if not ADAPTER.search(name)}
        mixed = stage.deepspeed is None and self._width == 2
        self._adapters = _Adapters(stage.lora, trains.shapes, self._width, casts=mixed)
        self._casts_text = mixed and "language_model" in in_full
        self._casts_tower = mixed and "vision_tower" in in_full

    def count(self, batch: ForwardPass) -> Activations:
        """The activations of one forward and backward pass."""
        layers = [self._decoder_layer(index) for index in self._decoder_layers_in_graph()]
        tower = [self._tower_layer(index) for index in self._tower_layers_in_graph()]
        text, patches = batch.num_tokens, batch.num_images * self._sizes.tower_tokens
        kept = self._around_layers(batch)
        if self._checkpoints:
            stream = 4 if self._casts_text else self._width
            kept += len(layers) * stream * self._sizes.hidden * text
            tower_stream = 4 if self._casts_tower else self._width
            kept += len(tower) * tower_stream * self._sizes.tower_hidden * patches
        else:
            kept += sum(layers) * text + sum(tower) * patches
        working = self._working(batch, bool(layers))
        largest = max(max(layers, default=0) * text, max(tower, default=0) * patches)
        return Activations(
            kept=kept,
            recomputed=largest if self._checkpoints else 0,
            logits=self._logits(batch),
            working=working,
            layer=largest + working,
        )

    def graph_starts(self) -> tuple[int, int]:
        """The first layer of tower and language model with a backward pass; their number where none has."""
        tower, decoder = self._tower_layers_in_graph(), self._decoder_layers_in_graph()
        return tower.start, decoder.start

    def _decoder_layers_in_graph(self) -> range:
        num_layers = self._sizes.num_layers
        before = {"projector", "vision_tower", "image_newline"} & self._roots
        if before or "language_model.embed_tokens" in self._owners:
            return range(num_layers)
        return range(_first_layer(self._trainable, "language_model.layers.", num_layers), num_layers)

    def _tower_layers_in_graph(self) -> range:
        num_layers = self._sizes.num_tower_layers
        if self._embeds_tower():
            return range(num_layers)
        return range(_first_layer(self._trainable, "vision_tower.encoder.layers.", num_layers), num_layers)

    def _embeds_tower(self) -> bool:
        return any(name.startswith(("vision_tower.embeddings", "vision_tower.pre_")) for name in self._owners)

    def _decoder_layer(self, index: int) -> int:
        """Bytes per token that one layer of the language model keeps."""
        sizes, c = self._sizes, self._width
        prefix = f"language_model.layers.{index}."
        norms = 8 * sizes.hidden + 8
        attention = 2 * c * (sizes.attention + sizes.keys) + 4 * sizes.num_heads
        if sizes.has_head_norms:
            trained = c if f"{prefix}self_attn.q_norm" in self._owners else 0
            norms += (4 + trained) * (sizes.attention + sizes.keys) + 8 * sizes.num_heads
        kept = norms + attention + 3 * c * sizes.inner
        return kept + self._decoder_inputs(prefix) + self._adapters.kept(prefix, _SHARED_INPUTS)

    def _decoder_inputs(self, prefix: str) -> int:
        """Bytes per token of the inputs of weights that train."""
        sizes, c = self._sizes, self._width
        reads = [f"{prefix}{name}" for name in _DECODER_LINEARS]
        kept = [self._zero3 or name in self._owners for name in reads]
        # Autocast casts the input of each linear layer; otherwise layers that read one tensor share it.
        groups = sum(kept) if self._casts_text else any(kept[:3]) + any(kept[3:])
        total = groups * c * sizes.hidden
        total += c * sizes.inner * (self._zero3 or f"{prefix}mlp.down_proj" in self._owners)
        norm_bytes = 4 if self._casts_text else c
        for name in ("input_layernorm", "post_attention_layernorm"):
            total += norm_bytes * sizes.hidden * (f"{prefix}{name}" in self._owners)
        return total

    def _tower_layer(self, index: int) -> int:
        """Bytes per patch that one layer of the tower keeps; its inner layer has no gate."""
        sizes, c = self._sizes, self._width
        prefix = f"vision_tower.encoder.layers.{index}."
        norms = 2 * ((4 if self._casts_tower else c) * sizes.tower_hidden + 2 * c)
        attention = 4 * c * sizes.tower_hidden + 4 * sizes.tower_heads
        inner = (2 if sizes.tower_gate else 1) * c * sizes.tower_inner
        reads = [
            self._zero3 or f"{prefix}{name}" in self._owners
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1")
        ]
        groups = sum(reads) if self._casts_tower else any(reads[:3]) + reads[3]
        fc2 = self._zero3 or f"{prefix}mlp.fc2" in self._owners
        inputs = groups * c * sizes.tower_hidden + fc2 * c * sizes.tower_inner
        return norms + attention + inner + inputs + self._adapters.kept(prefix, _SHARED_INPUTS)

    def _around_layers(self, batch: ForwardPass) -> int:
        """What projector, splice, last norm and head keep."""
        sizes, c = self._sizes, self._width
        tokens = batch.num_tokens
        kept = 0
        if {"projector", "vision_tower"} & self._roots:
            kept += self._projector(batch)
        if self._embeds_tower():
            stream = 4 if self._casts_tower else c
            pixels = c * sizes.tower_patch_inputs * batch.num_images * sizes.tower_tokens
            kept += pixels + stream * sizes.tower_hidden * batch.num_images * sizes.tower_tokens
        if self._decoder_layers_in_graph() or "language_model.norm" in self._owners:
            kept += tokens * (4 * sizes.hidden + 4)
        if "language_model.norm" in self._owners:
            kept += tokens * (4 if self._casts_text else c) * sizes.hidden
        if "lm_head" in self._owners or self._zero3:
            kept += batch.num_labels * c * sizes.hidden
        return kept

    def _projector(self, batch: ForwardPass) -> int:
        sizes, c = self._sizes, self._width
        patches = batch.num_images * sizes.image_tokens
        trained = [owner for owner in self._owners if owner.split(".")[0] == "projector"]
        kept = sizes.projector.kept(trained, sizes.tower_hidden, sizes.hidden)
        # 8 bytes more for the index of each place.
        return patches * (c * kept + 8)

    def _logits(self, batch: ForwardPass) -> int:
        """Bytes of logits in half precision with float32 scores, their softmax and its gradient."""
        return batch.num_labels * self._sizes.vocab * (2 * _LABEL_BYTES + self._width)

    def _working(self, batch: ForwardPass, in_text: bool) -> int:
        """Gradients in flight: two of the inner size and two of the hidden size."""
        sizes, c = self._sizes, self._width
        # Autocast keeps an adapter's input in float32 until the product in half precision.
        text_bytes = 2 * c * (sizes.inner + sizes.hidden) + 4 * sizes.inner * self._adapters.casts
        text = text_bytes * batch.num_tokens * in_text
        # The tower's layers need memory for their own tensors even without a graph.
        tower = c * (2 * sizes.tower_inner + 4 * sizes.tower_hidden)
        return max(text, tower * batch.num_images * sizes.tower_tokens)


class _Adapters:
    """Counts what LoRA's adapters keep: their input, after dropout if any, and their inner values."""

    def __init__(
        self, lora: Lora | None, shapes: Mapping[str, tuple[int, ...]], width: int, *, casts: bool
    ) -> None:
        self._width, self._rank = width, lora.r if lora else 0
        # On a GPU dropout keeps a mask of one byte per number.
        self._drops = lora is not None and lora.dropout > 0
        # Autocast casts the input of each adapter.
        self._shares = not self._drops and not casts
        self.casts = lora is not None and casts
        inputs = {name: shape[1] for name, shape in shapes.items() if name.endswith(".lora_A.weight")}
        self._num_inputs = {name.removesuffix(".lora_A.weight"): size for name, size in inputs.items()}

    def kept(self, prefix: str, shared: Collection[tuple[str, ...]]) -> int:
        """Bytes per token of the adapters in a layer; those that share an input keep it once."""
        found = {name: size for name, size in self._num_inputs.items() if name.startswith(prefix)}
        total = len(found) * self._width * self._rank
        if not self._shares:
            return total + sum(size * (self._width + self._drops) for size in found.values())
        for names in shared:
            sizes = [found[f"{prefix}{name}"] for name in names if f"{prefix}{name}" in found]
            total += max(sizes, default=0) * self._width
        return total


def _first_layer(names: Collection[str], prefix: str, num_layers: int) -> int:
    numbers = {name.removeprefix(prefix).split(".", 1)[0] for name in names if name.startswith(prefix)}
    return min((int(number) for number in numbers), default=num_layers)
