"""Rotary angles stay exact where TF32 is on for everything else.

transformers computes them as a matrix product in float32 (position × frequency), which some GPUs round under
TF32: to 10 bits, so that positions beyond 2,048 fall together (huggingface/transformers, issue 48428). The
original's transformers 4.37 multiplies number by number, which nothing rounds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def keep_angles_exact(model: nn.Module) -> None:
    """Let every module that computes rotary angles do so without TF32."""
    for module in model.modules():
        if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False)):
            guard = _WithoutTf32()
            module.register_forward_pre_hook(guard.begin)
            module.register_forward_hook(guard.end, always_call=True)


class _WithoutTf32:
    """Takes TF32 from float32 matrix products for the time of a forward pass."""

    def __init__(self) -> None:
        self._before: list[str] = []

    def begin(self, module: nn.Module, inputs: Any) -> None:
        self._before.append(torch.backends.cuda.matmul.fp32_precision)
        torch.backends.cuda.matmul.fp32_precision = "ieee"

    def end(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if self._before:
            before = self._before.pop()
            # Where it was the general setting, it follows that one again.
            general = torch.backends.fp32_precision  # type: ignore[attr-defined]
            torch.backends.cuda.matmul.fp32_precision = "none" if before == general else before
