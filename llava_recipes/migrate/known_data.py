"""Public annotation files that are recognised by name, and how many records they hold."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

NUM_SAMPLES: Mapping[str, int] = MappingProxyType(
    {
        "blip_laion_cc_sbu_558k.json": 558_128,
        "llava_v1_5_mix665k.json": 665_298,
        "llava_instruct_80k.json": 80_000,
        "llava_instruct_150k.json": 157_712,
        # The original's scripts name the same file so.
        "llava_instruct_158k.json": 157_712,
        # The train split of ScienceQA, as the original's converter writes it.
        "llava_train_QCM-LEA.json": 12_726,
    }
)


def known_num_samples(annotations: str) -> int | None:
    """How many records a file of this name holds, None for any other."""
    return NUM_SAMPLES.get(annotations.rpartition("/")[2])
