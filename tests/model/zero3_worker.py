"""One of the processes of test_zero3: assemble under ZeRO-3, train three steps, say what came out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers.integrations import HfDeepSpeedConfig

from llava_recipes.model.assemble import assemble
from llava_recipes.model.lora import freeze_model
from llava_recipes.model.weight_names import canonical_parameters
from llava_recipes.model.weights import load_trained, trainable_state, write_projector, write_trained
from llava_recipes.plan.types import ModelPlan

LEARNING_RATE = 1e-2
NUM_STEPS = 3


def batch_of(plan: ModelPlan, *, num_image_tokens: int, rank: int, step: int) -> dict[str, torch.Tensor]:
    """A batch that differs by process and step; the second process has no pictures in the second step."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    width = num_image_tokens + 8
    ids = torch.randint(3, 900, (2, width), generator=generator)
    position = torch.arange(width).expand(2, width)
    pictures = not (rank == 1 and step == 1)
    is_image = (position >= 1) & (position <= num_image_tokens) & pictures
    batch = {
        "input_ids": ids.masked_fill(is_image, 0),
        "is_image": is_image,
        "labels": ids.masked_fill(position <= num_image_tokens + 1 + rank, -100),
    }
    if pictures:
        image_px = int(str((plan.vision_tower.config or {"image_size": 56})["image_size"]))
        batch["pixel_values"] = torch.randn(2, 3, image_px, image_px, generator=generator)
        batch["feature_places"] = torch.arange(2 * num_image_tokens)
    return batch


def main(plans_file: Path, out: Path) -> None:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 1.0,
    }
    live = HfDeepSpeedConfig(settings)
    for name, values in json.loads(plans_file.read_text()).items():
        plan = ModelPlan.model_validate_json(json.dumps(values))
        folder = out / name
        if dist.get_rank() == 0:
            folder.mkdir()
        dist.barrier()
        assembled = assemble(plan, dtype=torch.float32, zero3=True)
        freeze_model(assembled.model, freeze="none", trainable=())
        state = trainable_state(assembled.model)
        assert bool(state) == (dist.get_rank() == 0)
        if state:
            save_file(state, folder / "assembled.safetensors")
        freeze_model(assembled.model, freeze="all", trainable=("projector",))
        trained = [parameter for parameter in assembled.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE)
        engine, *_ = deepspeed.initialize(model=assembled.model, optimizer=optimizer, config=settings)
        engine.train()
        losses = []
        for step in range(NUM_STEPS):
            batch = batch_of(
                plan, num_image_tokens=assembled.num_image_tokens, rank=dist.get_rank(), step=step
            )
            loss = engine(**batch).loss
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
        (folder / f"losses-{dist.get_rank()}.json").write_text(json.dumps(losses))
        state = trainable_state(engine.module)
        if dist.get_rank() == 0:
            write_projector(state, folder)
            write_trained({name: tensor + 1 for name, tensor in state.items()}, folder)
        dist.barrier()
        load_trained(engine.module, folder)
        again = trainable_state(engine.module)
        assert all(torch.equal(again[name], tensor + 1) for name, tensor in state.items())
        assert set(again) <= set(canonical_parameters(engine.module))
        engine.destroy()
    del live
    dist.barrier()
    # DeepSpeed's threads sometimes abort a process that ends in the ordinary way.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
