"""Variables and overrides: values and marks move together."""

from __future__ import annotations

from typing import Any

import pytest

from llava_recipes.errors import RecipeError
from llava_recipes.recipe.override import resolve
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.source import Document, parse_source


def _resolved(text: str, *overrides: str) -> Document:
    return resolve(parse_source(text, "f"), overrides)


def _root(document: Document) -> dict[str, Value]:
    assert isinstance(document.root, dict)
    return document.root


def _at(document: Document, *path: str | int) -> Any:
    value: Any = document.root
    for segment in path:
        value = value[segment]
    return value


STAGES = "stages:\n  - name: a\n    train: {num_train_epochs: 1, learning_rate: 1e-3}\n  - name: a.b\n"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${n}", 3), ("${ n }", 3), ("x${n}", "x3"), ("${n}${n}", "33"), ("${t}", True),
        ("is ${t}", "is true"), ("${f}", 0.5), ("${deep}/x", "/data/3/x"), ("$n", "$n"), ("{n}", "{n}"),
        ("$${n}", "${n}"), ("a$${n}b${n}", "a${n}b3"), ("$$$${n}", "$$${n}"),
    ],
)  # fmt: skip
def test_references_are_filled_in(written: str, value: object) -> None:
    text = f'vars: {{n: 3, t: true, f: 0.5, base: /data, deep: "${{base}}/${{n}}"}}\nname: "{written}"\n'
    text += "model: ['$${x}', '${n}${t}${f}${deep}']\n"
    document = _resolved(text)
    assert document.problems == ()
    assert _root(document)["name"] == value
    assert type(_root(document)["name"]) is type(value)


def test_text_that_doubles_itself_is_stopped() -> None:
    chain = ", ".join(f'v{i}: "${{v{i - 1}}}${{v{i - 1}}}"' for i in range(1, 60))
    document = _resolved(f"vars: {{v0: xx, {chain}}}\nname: ${{v59}}\n")
    assert "grows beyond" in document.problems[0].message
    assert len(str(document.root)) < 10_000_000


def test_an_override_takes_the_place_of_the_key_it_excludes() -> None:
    document = _resolved(STAGES, "stages.a.train.max_steps=5")
    assert _at(document, "stages", 0, "train") == {"learning_rate": 1e-3, "max_steps": 5}
    mark = document.locate(("stages", 0, "train", "max_steps"))
    assert mark is not None
    assert mark.file == "--set stages.a.train.max_steps=5"


def test_two_overrides_that_exclude_each_other_both_stay() -> None:
    document = _resolved(STAGES, "stages.a.train.max_steps=5", "stages.a.train.num_train_epochs=2")
    assert _at(document, "stages", 0, "train").keys() >= {"max_steps", "num_train_epochs"}


def test_the_longest_stage_name_is_meant() -> None:
    document = _resolved(STAGES, "stages.a.b.output_dir=x", "stages.1.deepspeed={bf16: {enabled: true}}")
    stage = _at(document, "stages", 1)
    assert stage == {"name": "a.b", "output_dir": "x", "deepspeed": {"bf16": {"enabled": True}}}


def test_keys_above_an_override_come_into_being() -> None:
    document = _resolved("name: x\n", "model.projector.type=linear", "vars.a.b=1")
    assert _root(document) == {"name": "x", "model": {"projector": {"type": "linear"}}, "vars": {"a.b": 1}}
    mark = document.locate(("model", "projector"))
    assert mark is not None and mark.line == 0


def test_an_override_fixes_what_is_wrong_in_the_file() -> None:
    document = _resolved("vars: {x: .inf}\nname: ${nowhere}\n", "name=good", "vars.x=1")
    assert [problem.message for problem in document.problems] == ["the variable `x` is never used"]


def test_a_variable_whose_last_use_is_overridden_stays_used() -> None:
    assert _resolved("vars: {x: 1}\nname: a${x}\n", "name=b").problems == ()


def test_a_document_is_not_changed() -> None:
    document = parse_source("vars: {x: 1}\nname: a${x}\nmodel: {}\n", "f")
    resolve(document, ["model.projector.type=linear", "vars.x=2"])
    assert document == parse_source("vars: {x: 1}\nname: a${x}\nmodel: {}\n", "f")


def test_every_bad_override_is_reported() -> None:
    document = _resolved("name: x\n", "nam=1", "model.projektor.type=linear", "stages.0.name=x")
    assert len(document.problems) == 3
    assert document.problems[0].hint == "did you mean `name`?"


def test_syntax_errors_of_the_file_come_first() -> None:
    with pytest.raises(RecipeError):
        _resolved("name: [", "nam=1")
