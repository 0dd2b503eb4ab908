"""Whatever a translation reports, each setting is in exactly one section of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.errors import Mark
from llava_recipes.migrate.commands import Flag
from llava_recipes.migrate.python_config import read_python_config
from llava_recipes.migrate.settings import Flags, Keys, Row, Settings
from llava_recipes.migrate.xtuner import Tree
from llava_recipes.recipe.source import parse_source
from tests.laws import examples

HERE = Mark("file", 1, 1)
NAMES = ("alpha", "beta", "gamma", "delta")
VALUES = {"alpha": "1", "beta": "2.5", "gamma": "3", "delta": "x"}
FORMS: Mapping[str, Callable[[], Settings]] = {
    "flags": lambda: Flags({name: Flag(name, (value,), HERE, HERE) for name, value in VALUES.items()}),
    "keys": lambda: Keys(parse_source("".join(f"{k}: {v}\n" for k, v in VALUES.items()), "config.yaml")),
    "tree": lambda: Tree(read_python_config("".join(f"{k} = {v}\n" for k, v in VALUES.items()), "config.py")),
}
deeds = st.tuples(
    st.sampled_from(NAMES), st.sampled_from(["row", "put", "mapped", "needless", "lost", "read"])
)


def do(settings: Settings, name: str, deed: str) -> None:
    if deed == "row":
        settings.translate([Row(name, f"train.{name}", "number", 7)])
    elif deed == "put":
        settings.put(name, f"train.{name}", 1)
    elif deed == "mapped":
        settings.mapped(name, f"train.{name}")
    elif deed == "read":
        settings.read(name, "text")
    else:
        (settings.needless if deed == "needless" else settings.lost)(name, "why")


@examples(200)
@given(st.sampled_from(sorted(FORMS)), st.lists(deeds, max_size=8))
def test_each_setting_stands_in_one_section(form: str, done: list[tuple[str, str]]) -> None:
    settings = FORMS[form]()
    for name, deed in done:
        do(settings, name, deed)
    settings.finish()
    kinds = {
        name: {e.kind for e in settings.draft.entries if e.name == settings.label(name)} for name in NAMES
    }
    assert all(len(found) == 1 for found in kinds.values()), kinds
    lost = {name for name, deed in done if deed == "lost"}
    assert all(kinds[name] == {"lost"} for name in lost)


def test_a_row_says_the_default_of_what_is_left_out_and_only_of_that() -> None:
    settings = FORMS["flags"]()
    settings.translate([Row("epsilon", "train.epsilon", "whole", 5), Row("delta", "train.delta", "whole", 5)])
    assert settings.draft.read("train.epsilon") == 5
    # A value of a wrong kind is a problem, never the default.
    assert settings.draft.read("train.delta") is None
    (problem,) = settings.draft.problems
    assert problem.message == "`--delta` takes a whole number"
