"""Recipes with random faults: a plan or problems that point somewhere, never a traceback or silence.

Two thousand eight hundred of them: half a second for a hundred.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.recipe.extends import extend
from llava_recipes.recipe.language import keys_at
from llava_recipes.recipe.load import load_source
from llava_recipes.recipe.names import DEEPSPEED_KEYS, ZERO_KEYS
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.source import parse_source
from llava_recipes.render import render_problems
from llava_recipes.runner.facts import plan_recipe
from tests.laws import examples

ROOT = Path(__file__).parent.parent.parent
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
INLINE_DEEPSPEED: Value = {
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": "auto"},
}


def _text(root: Value) -> str:
    text: str = yaml.dump(root, Dumper=DUMPER, allow_unicode=True, sort_keys=False)
    return text


# Each whole, with what it extends: a fault is then in the text that is loaded.
ROOTS: list[Value] = [
    extend(parse_source(file.read_bytes(), str(file))).root
    for file in sorted((ROOT / "recipes").rglob("*.yaml"))
    if file.parent.name != "base"
]
TEXTS = [_text(root) for root in ROOTS]
BAD_TEXTS = [
    file.read_text(encoding="utf-8")
    for file in sorted((ROOT / "tests" / "errors").glob("*.yaml"))
    if "extends" not in file.name
]
JUNK: tuple[Value, ...] = (
    None, True, 0, -1, 2**62, 1e308, 5e-324, "", "x", "${x}", "${", "~", "all", "http://a/b", "\u202e",
    "9" * 300, [], [None], [[]], {}, {"x": {}}, {"source": 1}, [{"name": None}], "a" * 5000, "none", "base",
    "./", "/dev/null", "..", "*", "**", "{1..2}", "projector.**", "2020-01-01", "1e-3", "0x10", "no", "<<",
    {"config": {}}, {"model_type": "llama"}, ["projector", "projector"], {"stage": 3}, INLINE_DEEPSPEED,
)  # fmt: skip
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    32,
    64,
    100,
    576,
    577,
    4096,
    10**9,
    2**63 - 1,
    -1,
    -2,
    0.5,
    1e-3,
    1e-9,
    1.5,
    1e300,
    1.7e308,
)

Chance = st.randoms(use_true_random=False)
# The folder is the same for every example, and nothing is written into it.
NEEDLESS = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths made of junk find nothing there."""
    monkeypatch.chdir(tmp_path)


def _paths(value: Value, path: KeyPath = ()) -> list[KeyPath]:
    """Every path below a value."""
    inner: list[tuple[str | int, Value]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [found for key, child in inner for found in [(*path, key), *_paths(child, (*path, key))]]


def _parent(root: Value, path: KeyPath) -> tuple[dict[str | int, Value], str | int]:
    for segment in path[:-1]:
        root = root[segment]  # type: ignore[index]
    return root, path[-1]  # type: ignore[return-value]


def _problems(text: str) -> tuple[str, list[str]]:
    """What is printed about a recipe, and every message; an empty list for one that can be planned."""
    try:
        plan_recipe(load_source(text, "f.yaml", ()), world_size=1)
    except RecipeError as error:
        assert error.problems
        assert all(problem.mark is not None for problem in error.problems)
        printed = render_problems(error.problems)
        assert all(block.startswith("f.yaml:") for block in printed.split("\n\n"))
        assert "Input should" not in printed
        return printed, [problem.message for problem in error.problems]
    return "", []


@examples(700, but=NEEDLESS)
@given(st.sampled_from(ROOTS), st.lists(st.tuples(Chance, st.sampled_from(JUNK)), min_size=1, max_size=4))
def test_values_exchanged_for_junk(root: Value, faults: list[tuple[random.Random, Value]]) -> None:
    root = copy.deepcopy(root)
    for chance, junk in faults:
        places = _paths(root)
        if not places:
            break
        parent, key = _parent(root, chance.choice(places))
        if chance.random() < 0.3:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(junk)
    _problems(_text(root))


@examples(500, but=NEEDLESS)
@given(st.sampled_from(ROOTS), st.lists(st.tuples(Chance, st.sampled_from(NUMBERS)), min_size=1, max_size=3))
def test_numbers_exchanged_for_others(root: Value, faults: list[tuple[random.Random, float]]) -> None:
    """Most of these pass the schema, so that it is the plan that has to cope."""
    root = copy.deepcopy(root)
    for chance, number in faults:
        places = [path for path in _paths(root) if type(_parent(root, path)[0][path[-1]]) in (int, float)]
        parent, key = _parent(root, chance.choice(places))
        parent[key] = number
    _problems(_text(root))


@examples(600, but=NEEDLESS)
@given(st.sampled_from([*TEXTS * 20, *BAD_TEXTS]), Chance, st.text(max_size=3))
def test_text_with_letters_exchanged(text: str, chance: random.Random, junk: str) -> None:
    place = chance.randrange(len(text))
    _problems(text[:place] + junk + text[place + chance.randrange(3) :])


@examples(200, but=NEEDLESS)
@given(st.sampled_from([*TEXTS, *BAD_TEXTS]), Chance)
def test_text_with_lines_moved(text: str, chance: random.Random) -> None:
    lines = text.splitlines()
    source, target = chance.randrange(len(lines)), chance.randrange(len(lines))
    moved = lines.pop(source)
    lines.insert(target, " " * chance.randrange(6) + moved.strip() if chance.random() < 0.5 else moved)
    _problems("\n".join(lines))


def _slip(key: str, chance: random.Random) -> str:
    """One slip of the fingers: a letter left out, put in, doubled, swapped, in capitals, an `s` too many."""
    place = chance.randrange(len(key))
    before, letter, after = key[:place], key[place], key[place + 1 :]
    slips = (
        before + after,
        before + "q" + letter + after,
        before + letter + letter + after,
        before + after[:1] + letter + after[1:],
        before + letter.upper() + after,
        key + "s",
        key.replace("_", "-", 1),
    )
    return chance.choice(slips)


def _misspell(root: Value, chance: random.Random, among: Callable[[KeyPath], bool]) -> str | None:
    """Misspell one of these keys; None where the slip leaves a key that is known."""
    path = chance.choice([path for path in _paths(root) if isinstance(path[-1], str) and among(path)])
    parent, key = _parent(root, path)
    slip = _slip(str(key), chance)
    if slip in parent or slip in keys_at(path[:-1]) or slip in DEEPSPEED_KEYS | ZERO_KEYS:
        return None
    parent[slip] = parent.pop(key)
    return slip


@examples(600, but=NEEDLESS)
@given(st.sampled_from(ROOTS), Chance)
def test_a_misspelled_key_is_never_passed_over(root: Value, chance: random.Random) -> None:
    """Keys of the language; those of inline configs are Hugging Face's, and follow below."""
    root = copy.deepcopy(root)
    slip = _misspell(root, chance, lambda path: path[-1] in keys_at(path[:-1]))
    if slip is not None:
        _, messages = _problems(_text(root))
        assert any(f"unknown key `{slip}`" in message or not slip for message in messages), slip


@examples(200, but=NEEDLESS)
@given(st.sampled_from(ROOTS), Chance)
def test_a_misspelled_key_of_deepspeed_is_never_passed_over(root: Value, chance: random.Random) -> None:
    root = copy.deepcopy(root)
    stage, _ = _parent(root, ("stages", 0, "deepspeed"))
    stage["deepspeed"] = copy.deepcopy(INLINE_DEEPSPEED)
    slip = _misspell(
        root, chance, lambda path: path[2:3] == ("deepspeed",) and path[-1] in DEEPSPEED_KEYS | ZERO_KEYS
    )
    if slip is not None:
        _, messages = _problems(_text(root))
        assert any(f"no key `{slip}`" in message for message in messages), slip
