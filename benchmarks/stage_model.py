"""A stage's model as training has it, for benchmarks that take steps of their own."""

from __future__ import annotations

import torch

from llava_recipes.model.assemble import Assembled, assemble
from llava_recipes.model.lora import freeze_model, inject_lora
from llava_recipes.model.placing import TORCH_DTYPES, cast_weights
from llava_recipes.plan.types import Plan
from llava_recipes.versions import recompute_activations


def build_stage(plan: Plan) -> Assembled:
    """The model of a plan's first stage: with its adapters, frozen, in training mode.

    Under DeepSpeed all of it has the stage's precision; without, what trains is float32.
    """
    stage = plan.stages[0]
    dtype = TORCH_DTYPES[stage.train.precision]
    assembled = assemble(plan.model, dtype=dtype)
    model = assembled.model
    targets = inject_lora(model, stage.lora, seed=stage.train.seed) if stage.lora is not None else ()
    freeze_model(model, freeze=stage.freeze, trainable=stage.trainable, lora=stage.lora, targets=targets)
    if stage.deepspeed is not None:
        cast_weights(model, dtype)
    else:
        for parameter in trained_parameters(model):
            parameter.data = parameter.data.float()
    if stage.train.training_arguments.get("activation_checkpointing"):
        recompute_activations(model)
    model.train()
    return assembled


def trained_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
