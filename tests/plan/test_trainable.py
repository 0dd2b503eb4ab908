from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava_recipes.estimate.estimate import Assumptions, Estimator
from llava_recipes.plan import trainable
from llava_recipes.recipe.globs import Decision, decide
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import compile_loaded

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", ["llava_v15_7b", "finetune_qlora_v1_7b", "small_llama32_1b"])
def test_what_trains_is_decided_once_per_stage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decided = list[Decision]()

    def counting(*given: Any, **keywords: Any) -> Decision:
        decided.append(decide(*given, **keywords))
        return decided[-1]

    monkeypatch.setattr(trainable, "decide", counting)
    compiled = compile_loaded(load_recipe(str(RECIPES / f"{name}.yaml")), world_size=8)
    Estimator(compiled, Assumptions()).estimate()
    assert len(decided) == len(compiled.plan.stages)
