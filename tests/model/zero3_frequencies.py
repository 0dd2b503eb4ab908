"""A process of test_zero3: assemble in bf16 under ZeRO-3, and write the rotary frequencies to a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import deepspeed
import torch
from safetensors.torch import save_file
from transformers.integrations import HfDeepSpeedConfig

from llava_recipes.model.assemble import assemble
from tests.model.plans import GOLDEN, plan_of


def main(file: Path) -> None:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3},
    }
    live = HfDeepSpeedConfig(settings)
    plan = plan_of(init_from=GOLDEN / "03_splice" / "mm_projector.safetensors", start_end=True)
    model = assemble(plan, dtype=torch.bfloat16, zero3=True).model
    found = {name: buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    save_file(found, file)
    del live
    # DeepSpeed's threads sometimes abort a process that ends in the ordinary way.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
