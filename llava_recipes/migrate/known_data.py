"""Public annotation files that are recognised by name, and how many records they hold."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

NUM_SAMPLES: Mapping[str, int] = MappingProxyType(
    {
        "blip_laion_cc_sbu_558k.json": 558_128,
        "llava_v1_5_mix665k.json": 665_298,
    }
)


def known_num_samples(annotations: str) -> int | None:
    """How many records a file of this name holds, None for any other."""
    return NUM_SAMPLES.get(annotations.rpartition("/")[2])
