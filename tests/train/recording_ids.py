"""Train a recipe in this process, and write down the ids of the samples that are drawn.

Run as `python -m tests.train.recording_ids RECIPE RECORD`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llava_recipes.data.dataset import Sample, StageDataset
from llava_recipes.model import assemble
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.run_folder import write_results
from llava_recipes.train import stage as stages


class RecordingDataset(StageDataset):
    """Notes what it is asked for."""

    drawn: dict[str, list[str]]

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        kind = "trained" if self.data.validation is not None else "measured"
        self.drawn[kind].append(sample.id)
        return sample


def main(recipe: str, record: str) -> None:
    vars(assemble)["StageDataset"] = RecordingDataset
    RecordingDataset.drawn = {"trained": [], "measured": []}
    plan = plan_recipe(load_recipe(recipe), world_size=1)
    output_dir = Path(plan.stages[0].output_dir)
    output_dir.mkdir(parents=True)
    trained = stages.train_stage(plan, 0, output_dir=output_dir, resume_from=None)
    write_results(plan, trained, output_dir)
    Path(record).write_text(json.dumps(RecordingDataset.drawn))


if __name__ == "__main__":
    main(*sys.argv[1:])
