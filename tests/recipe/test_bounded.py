"""Recipes that are large in one way each: read, or refused, in time that grows with the file alone."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.recipe.load import load_source
from llava_recipes.recipe.source import MAX_BYTES
from llava_recipes.render import render_problems
from llava_recipes.runner.facts import compile_loaded
from tests.tiny import stage1_values

MOST_S = 5
"""Of a processor, for a megabyte; an idle machine needs a second at most."""
MOST_PRINTED = 500_000
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
MANY = 9_000
LARGEST, PRIME = 2**63 - 1, 9223372036854775783

Change = Callable[[dict[str, Any]], object]


def _of_stage(**keys: Any) -> Change:
    return lambda root: root["stages"][0].update(keys)


def _of_train(**keys: Any) -> Change:
    def change(root: dict[str, Any]) -> None:
        root["stages"][0]["train"].update(keys)
        if "global_batch_size" in keys:
            root["stages"][0]["train"]["per_device_train_batch_size"] = 4

    return change


CHANGES: dict[str, Change] = {
    "a glob of spans": _of_stage(trainable=["**." * 100_000 + "*"]),
    "a glob of stars": _of_stage(trainable=["*a" * 200_000]),
    "a glob of names": _of_stage(trainable=["projector" + ".a" * 200_000]),
    "a glob of ranges": _of_stage(trainable=["projector." + "{0..999999999}" * 60_000]),
    "a glob of braces": _of_stage(trainable=["projector." + "{" * 400_000]),
    "a glob of digits": _of_stage(trainable=["projector.{" + "9" * 300_000 + ".." + "9" * 300_000 + "}"]),
    "many globs": _of_stage(trainable=[f"language_model.layers.{n}.mlp" for n in range(MANY)]),
    "many unknown globs": _of_stage(trainable=[f"language_modle.layers.{n}.mlp" for n in range(MANY)]),
    "many hard globs": _of_stage(trainable=[f"**.*.**.*.**.w*{{0..{n}}}*" for n in range(MANY)]),
    "many frozen globs": _of_stage(freeze=[f"vision_tower.encoder.layers.{n}" for n in range(MANY)]),
    "many adapted globs": _of_stage(
        lora={"r": 8, "modules": [f"language_model.layers.{n}" for n in range(MANY)]}
    ),
    "globs of a group": _of_stage(param_groups=[{"modules": [f"projector.{n}" for n in range(MANY)]}]),
    "unknown keys": _of_train(**{f"per_device_train_batch_sizes_{n}": n for n in range(4_500)}),
    "long unknown keys": lambda root: root.update({"learning_rate" * 14 + str(n): n for n in range(4_500)}),
    "a long key": lambda root: root.update({"a" * 900_000: 1}),
    "unknown extras": _of_train(extra={f"per_device_xxx_{n}": 1 for n in range(4_500)}),
    "unknown keys of DeepSpeed": _of_stage(deepspeed={f"zero_optimizatio_{n}": 1 for n in range(4_500)}),
    "stages without a start": lambda root: root.update(
        stages=[{"name": f"s{n}", "init_from": f"sx{n}"} for n in range(2_900)]
    ),
    "whole stages": lambda root: root.update(
        stages=[
            {
                **copy.deepcopy(root["stages"][0]),
                "name": f"s{n}",
                "init_from": f"sx{n}",
                "output_dir": f"o{n}",
            }
            for n in range(330)
        ]
    ),
    "variables": lambda root: root.update(vars={f"v{n}": f"${{v{(n + 1) % 4_500}}}" for n in range(4_500)}),
    "variables that double": lambda root: root.update(
        name="${v0}", vars={f"v{n}": f"${{v{n + 1}}}" * 2 for n in range(31)} | {"v31": "x" * 100}
    ),
    "one variable": lambda root: root.update(name="${v}" * 200_000, vars={"v": "x" * 90_000}),
    "environment": lambda root: root.update(env=[f"V{n}" for n in range(9_900)]),
    "a path of folders": _of_stage(output_dir="../" * 300_000 + "x"),
    "a long number": lambda root: root.update(name=int("9" * 4_000)),
}
for key in ("global_batch_size", "gradient_accumulation_steps", "per_device_train_batch_size", "save_steps"):
    CHANGES |= {f"{key} {number}": _of_train(**{key: number}) for number in (LARGEST, PRIME)}

TEXTS = {
    "keys again on one line": "{" + ",".join(f"k: {'a' * 80}" for _ in range(4_900)) + "}",
    "lists in lists": "a: " + "[" * 500_000,
    "indentation": "\n".join(" " * depth + f"a{depth}:" for depth in range(1_300)),
    "aliases of aliases": "x0: &x0 [1, 1]\n"
    + "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 60)),
    "anchors": "x: [" + "".join(f"&{'a' * 10_000} 1," for _ in range(90)) + "]",
    "tags": "{" + ",".join(f"k{n}: !x {'a' * 80}" for n in range(4_900)) + "}",
    "lines of nothing": "\n" * 900_000,
    "open references": 'name: "' + "${" * 400_000 + '"',
    "documents": "--- a\n" * 150_000,
}  # fmt: skip


def _problems(text: str) -> tuple[Problem, ...]:
    assert len(text.encode()) <= MAX_BYTES
    try:
        loaded = load_source(text, "recipe.yaml")
        return loaded.fail(*compile_loaded(loaded, world_size=3).warnings).problems
    except RecipeError as error:
        return error.problems


def _take_little(text: str) -> None:
    began = time.process_time()
    printed = render_problems(_problems(text))
    assert time.process_time() - began < MOST_S
    assert len(printed) < MOST_PRINTED


@pytest.mark.parametrize("name", CHANGES)
def test_a_large_recipe_takes_little(name: str, tmp_path: Path) -> None:
    root = stage1_values(tmp_path)
    CHANGES[name](root)
    _take_little(yaml.dump(root, Dumper=DUMPER, sort_keys=False, width=10**9))


@pytest.mark.parametrize("name", TEXTS)
def test_a_large_text_takes_little(name: str) -> None:
    _take_little(TEXTS[name])


def test_the_number_of_globs_is_bounded(tmp_path: Path) -> None:
    root = stage1_values(tmp_path)
    root["stages"][0]["trainable"] = [f"**.x{number}" for number in range(1_500)]
    root["stages"][0]["param_groups"] = [{"modules": ["projector"] * 501, "learning_rate": 1e-3}]
    problems = _problems(yaml.dump(root, Dumper=DUMPER))
    assert [problem.path for problem in problems if problem.code == "too-many-globs"] == [
        ("stages", 0, "param_groups", 0, "modules")
    ]
