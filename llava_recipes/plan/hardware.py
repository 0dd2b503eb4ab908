"""The GPUs that a plan can be held against: what memory a program finds on them, and how fast they multiply.

Memory is what `torch.cuda.get_device_properties` reports, which is less than the name says. Rates are the
vendors' for dense matrix products with accumulation in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llava_recipes.recipe.spelling import nearest

GIB = 2**30
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Gpu:
    """One GPU. Rates are in TFLOP/s; 0 where the chip has no such unit."""

    name: str
    title: str
    memory_gib: float
    half_tflops: float
    """bf16 and fp16."""
    tf32_tflops: float
    fp32_tflops: float
    has_bf16: bool = True
    efficiency: float = 1.0
    """How much of its rate a program reaches, measured against an A100. An assumption."""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * GIB)

    def tflops(self, precision: Precision, *, tf32: bool) -> float:
        """The rate at which training in this precision could go at best."""
        if precision != "fp32":
            return self.half_tflops
        return max(self.tf32_tflops, self.fp32_tflops) if tf32 else self.fp32_tflops


_ALL = (
    Gpu("a100-40g", "A100 40 GB", 39.39, 312, 156, 19.5),
    Gpu("a100-80g", "A100 80 GB", 79.14, 312, 156, 19.5),
    # Faster chips wait longer for memory and network, so that less of their rate is reached.
    Gpu("h100", "H100 80 GB", 79.11, 989, 494, 67, efficiency=0.8),
    Gpu("h200", "H200 141 GB", 139.72, 989, 494, 67, efficiency=0.85),
    Gpu("b200", "B200 180 GB", 178.35, 2250, 1125, 75, efficiency=0.7),
    Gpu("a6000", "RTX A6000 48 GB", 47.53, 155, 77, 38.7, efficiency=0.95),
    Gpu("a40", "A40 48 GB", 44.42, 150, 75, 37.4, efficiency=0.95),
    Gpu("l40s", "L40S 48 GB", 44.39, 362, 183, 91.6, efficiency=0.65),
    Gpu("a10", "A10 24 GB", 21.99, 125, 62.5, 31.2, efficiency=0.7),
    Gpu("l4", "L4 24 GB", 22.03, 121, 60, 30.3, efficiency=0.55),
    Gpu("rtx3090", "RTX 3090 24 GB", 23.69, 71, 35.6, 35.6),
    Gpu("rtx4090", "RTX 4090 24 GB", 23.63, 165, 82.6, 82.6, efficiency=0.9),
    Gpu("rtx5090", "RTX 5090 32 GB", 31.36, 209, 105, 105, efficiency=0.9),
    Gpu("v100-16g", "V100 16 GB", 15.77, 125, 0, 15.7, has_bf16=False, efficiency=0.7),
    Gpu("v100-32g", "V100 32 GB", 31.73, 125, 0, 15.7, has_bf16=False, efficiency=0.7),
    Gpu("t4", "T4 16 GB", 14.57, 65, 0, 8.1, has_bf16=False, efficiency=0.6),
)
GPUS: Mapping[str, Gpu] = MappingProxyType({gpu.name: gpu for gpu in _ALL})

_ALSO_CALLED: Mapping[str, str] = MappingProxyType(
    {
        "a100": "a100-80g",
        "a100-80gb": "a100-80g",
        "a100-40gb": "a100-40g",
        "h100-80g": "h100",
        "h100-80gb": "h100",
        "h200-141g": "h200",
        "rtxa6000": "a6000",
        "rtx-a6000": "a6000",
        "a6000-48g": "a6000",
        "3090": "rtx3090",
        "rtx-3090": "rtx3090",
        "4090": "rtx4090",
        "rtx-4090": "rtx4090",
        "5090": "rtx5090",
        "rtx-5090": "rtx5090",
        "v100": "v100-32g",
    }
)


class UnknownGpuError(ValueError):
    """No GPU of this name is in the table; the message says which is near."""


def find_gpu(name: str) -> Gpu:
    """The GPU of a name, however it is spelt: `A100-80GB`, `rtx_4090`, `h100`.

    Raises UnknownGpuError.
    """
    word = name.strip().lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-")
    word = _ALSO_CALLED.get(word, word)
    if word in GPUS:
        return GPUS[word]
    near = nearest(word, (*GPUS, *_ALSO_CALLED))
    advice = f"did you mean {near}?" if near else f"known: {', '.join(GPUS)}"
    raise UnknownGpuError(f"unknown GPU {name!r}; {advice}")
