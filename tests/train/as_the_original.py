"""Train a recipe's one stage in this process, taking the samples of stage2.json as the original takes them.

`python -m tests.train.as_the_original RECIPE FACTS [ADAPTERS]`. The original throws away samples 11, 12, 13
and 19, by a mismatch of its own making, and takes sample 18, which has an image and no tag for it, as text.
The package learns the former and refuses the latter. To compare everything else with a recorded run, they are
treated as there. FACTS receives the indices as they were drawn, the optimizer's groups, and the sum of the
projector's absolute values before each step; ADAPTERS gives adapters their first weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from llava_recipes.data import dataset as datasets
from llava_recipes.data import records
from llava_recipes.data.conversation import Record, parse_record
from llava_recipes.data.prompts import IGNORED, Encoded
from llava_recipes.layouts import IMAGE
from llava_recipes.model import assemble
from llava_recipes.model.lora import inject_lora, is_adapter
from llava_recipes.model.weight_names import canonical_parameters
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_recipe
from llava_recipes.recipe.schema import Lora
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.run_folder import write_results
from llava_recipes.train import stage as stages
from llava_recipes.train.trainer import StageTrainer
from tests.golden_runs import ours_for
from tests.lenient import LenientCollator

MASKED = {11, 12, 13, 19}


class MaskedDataset(datasets.StageDataset):
    """The stage's samples; those that the original masks teach nothing, and are written down when drawn."""

    drawn: list[int]

    def encoding(self, record: Record) -> Encoded:
        encoded = super().encoding(record)
        if record.index in MASKED:
            return Encoded(encoded.input_ids, [IGNORED] * len(encoded.labels))
        return encoded

    def __getitem__(self, index: int) -> datasets.Sample:
        self.drawn.append(index)
        return super().__getitem__(index)


def parse_leniently(values: dict[str, Any], *, parse: Callable[..., Record], **where: Any) -> Record:
    if not any(IMAGE in turn["value"] for turn in values["conversations"]):
        values = {key: value for key, value in values.items() if key != "image"}
    return parse(values, **where)


def describe_groups(trainer: StageTrainer) -> list[dict[str, object]]:
    names = {id(parameter): name for name, parameter in canonical_parameters(trainer.model).items()}
    assert trainer.optimizer is not None
    return [
        {
            "names": [names[id(parameter)] for parameter in group["params"]],
            "weight_decay": group["weight_decay"],
            "initial_lr": group["initial_lr"],
        }
        for group in trainer.optimizer.param_groups
    ]


class SummingTrainer(StageTrainer):
    """Sums the projector before each step."""

    sums: list[float]

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        parameters = canonical_parameters(self.model).items()
        found = (
            value for name, value in parameters if name.startswith("projector.") and not is_adapter(name)
        )
        self.sums.append(sum(float(value.detach().double().abs().sum()) for value in found))
        return super().training_step(model, *args, **kwargs)


def inject_recorded(
    model: LlavaForConditionalGeneration, lora: Lora, *, seed: int, file: Path
) -> tuple[str, ...]:
    targets = inject_lora(model, lora, seed=seed)
    recorded = {ours_for(name): tensor for name, tensor in load_file(file).items()}
    for name, parameter in canonical_parameters(model).items():
        if is_adapter(name):
            parameter.data.copy_(recorded.pop(name))
    assert all(name.startswith("projector.") for name in recorded)
    return targets


def train_alike(plan: Plan, adapters: Path | None) -> dict[str, object]:
    """Train the plan's one stage; gives the indices as drawn, the groups and the projector's sums.

    This process is left changed, for a plain run too.
    """
    vars(stages)["inject_lora"] = inject_lora if adapters is None else partial(inject_recorded, file=adapters)
    vars(assemble)["StageDataset"] = MaskedDataset
    vars(assemble)["Collator"] = LenientCollator
    vars(stages)["StageTrainer"] = SummingTrainer
    SummingTrainer.sums = []
    vars(records)["parse_record"] = partial(parse_leniently, parse=parse_record)
    MaskedDataset.drawn = []
    output_dir = Path(plan.stages[0].output_dir)
    output_dir.mkdir(parents=True)
    trained = stages.train_stage(plan, 0, output_dir=output_dir, resume_from=None)
    write_results(plan, trained, output_dir)
    return {
        "order": MaskedDataset.drawn,
        "groups": describe_groups(trained.trainer),
        "projector_sums": SummingTrainer.sums,
    }


def main(recipe: str, record: str, adapters: str | None = None) -> None:
    plan = plan_recipe(load_recipe(recipe), world_size=1)
    facts = train_alike(plan, None if adapters is None else Path(adapters))
    Path(record).write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
