"""Keys that ask for foreign code are found wherever they stand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.recipe.foreign import code_problems

names = st.text("abc_", min_size=1, max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)
places = st.lists(names | st.integers(0, 2), max_size=5)


def _wrapped(place: list[str | int], value: object) -> object:
    for step in reversed(place):
        value = {step: value} if isinstance(step, str) else [*[None] * step, value]
    return value


@given(others=values, place=places, named=values)
def test_code_is_found_at_any_depth(others: object, place: list[str | int], named: object) -> None:
    assert list(code_problems(others, ("model",), file="config.json")) == []
    settings = [others, _wrapped(place, {"a": 1, "auto_map": named, "b": others})]
    (inline,) = code_problems(settings, ("model", "config"))
    assert inline.path == ("model", "config", 1, *place, "auto_map") and inline.on_key
    (in_file,) = code_problems(settings, ("model",), file="/some/config.json")
    assert in_file.path == ("model",)
    assert in_file.found is not None and in_file.found.startswith("/some/config.json: ")
    spelled = ".".join(map(str, (1, *place, "auto_map")))
    assert in_file.message == (
        f"`{spelled}` names code to run; this program never runs code that comes with a model"
    )


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"auto_map": {"AutoConfig": "..\\..\\evil.Config"}}, ["auto_map"]),
        ({"auto_map": ["slow.Tokenizer", None]}, ["auto_map"]),
        (
            {"text_config": {"auto_map": {}}, "vision_config": {"auto_map": None}},
            [
                "text_config.auto_map",
                "vision_config.auto_map",
            ],
        ),
        ({"custom_pipelines": {"p": {"impl": "evil.Pipeline"}}}, ["custom_pipelines"]),
        ({"attn_implementation": "someone/kernel@main:run"}, ["attn_implementation"]),
        ({"_attn_implementation": {"text_config": "someone/kernel"}}, ["_attn_implementation"]),
        ({"experts_implementation": "a/b"}, ["experts_implementation"]),
        ({"attn_implementation": "flash_attention_2", "_attn_implementation": None}, []),
        ({"attn_implementation": {"text_config": "sdpa"}}, []),
        ({"architectures": ["auto_map"], "auto_mapping": {"parent_library": None}}, []),
    ],
)
def test_which_keys_ask_for_code(settings: dict[str, Any], keys: list[str]) -> None:
    found = [problem.message for problem in code_problems(settings, (), file="config.json")]
    assert [message.split("`")[1] for message in found] == keys


def test_a_long_value_is_cut_short() -> None:
    (problem,) = code_problems({"auto_map": {"AutoConfig": "x" * 10_000}}, (), file="config.json")
    assert problem.found is not None and len(problem.found) < 150


def test_settings_may_be_nested_deeply() -> None:
    settings: object = {"auto_map": 1}
    for _ in range(3_000):
        settings = [settings]
    assert len(list(code_problems(settings, (), file="config.json"))) == 1
