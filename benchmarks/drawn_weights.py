"""Random weights made where they are used: a model of 13B never passes through main memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llava_recipes.errors import KeyPath
from llava_recipes.model import base_weights
from llava_recipes.model.configs import Origin

_SPREAD = 0.02


class DrawnTensors:
    """Tensors that are drawn when they are read: norms of 1, biases of 0, small normal numbers elsewhere."""

    def __init__(
        self, shapes: Mapping[str, torch.Size], *, device: torch.device, dtype: torch.dtype, seed: int
    ) -> None:
        self._shapes, self._device, self._dtype = dict(shapes), device, dtype
        self._generator = torch.Generator(device).manual_seed(seed)

    def names(self) -> frozenset[str]:
        return frozenset(self._shapes)

    def read(self, name: str) -> Tensor:
        shape = self._shapes[name]
        empty = torch.empty(shape, device=self._device, dtype=self._dtype)
        if len(shape) > 1:
            return empty.normal_(0.0, _SPREAD, generator=self._generator)
        is_norm = "norm" in name.rpartition(".")[0] and name.endswith(".weight")
        return empty.fill_(1.0 if is_norm else 0.0)


@contextmanager
def weights_drawn_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Let `assemble` draw all base weights there and so while the block runs; no file of weights is read."""

    def draw(model_class: type[PreTrainedModel], origin: Origin, seed: int, path: KeyPath) -> DrawnTensors:
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in model_class(origin.config).state_dict().items()}
        return DrawnTensors(shapes, device=device, dtype=dtype, seed=seed)

    usual = vars(base_weights)["_source"]
    vars(base_weights)["_source"] = draw
    try:
        yield
    finally:
        vars(base_weights)["_source"] = usual
