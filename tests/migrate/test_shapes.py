"""No setting changes its meaning silently: the recipes of scripts and configs, and the reports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.cli.main import main
from llava_recipes.errors import RecipeError
from llava_recipes.migrate.draft import Migration
from llava_recipes.migrate.migration import migrate
from llava_recipes.recipe.load import load_source
from tests.laws import examples
from tests.migrate.shapes import SHAPES, Shape, script
from tests.migrate.test_translation import at, entries

MIGRATED = [shape for shape in SHAPES if not shape.refused]
REFUSED = [shape for shape in SHAPES if shape.refused]


def name_of(shape: Shape) -> str:
    return shape.name


def migrated(shape: Shape) -> Migration:
    def read_beside(path: str, _: str) -> tuple[str, str] | None:
        return (path, shape.beside[path]) if path in shape.beside else None

    return migrate(
        shape.text,
        shape.file,
        variables=shape.variables,
        read_beside=read_beside,
        working_folder="/here",
    )


def test_the_names_of_the_shapes_are_their_own() -> None:
    assert len({shape.name for shape in SHAPES}) == len(SHAPES) >= 60


@pytest.mark.parametrize("shape", MIGRATED, ids=name_of)
def test_what_comes_of_a_shape(shape: Shape) -> None:
    migration = migrated(shape)
    assert {path: at(migration, path) for path in shape.values} == dict(shape.values)
    assert {entry.name for entry in entries(migration, "lost")} == shape.lost
    load_source(migration.text, "recipe.yaml")


@pytest.mark.parametrize("shape", REFUSED, ids=name_of)
def test_what_cannot_be_expressed_is_refused_by_name(shape: Shape) -> None:
    with pytest.raises(RecipeError) as caught:
        migrated(shape)
    (problem,) = caught.value.problems
    assert shape.refused in problem.message
    assert problem.hint and problem.mark is not None


@pytest.mark.parametrize("shape", MIGRATED, ids=name_of)
def test_the_last_sentence_and_strict_say_whether_all_is_there(
    shape: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, text in {shape.file: shape.text, **shape.beside}.items():
        (tmp_path / path).write_text(text, encoding="utf-8")
    variables = [word for name, value in shape.variables.items() for word in ("--var", f"{name}={value}")]
    code = main(["migrate", shape.file, "-o", "recipe.yaml", "--strict", *variables])
    reported = capsys.readouterr().err
    assert code == (1 if shape.lost else 0), reported
    assert ("contains every setting of the script" in reported) == (not shape.lost)


def sections_of(migration: Migration, name: str) -> set[str]:
    return {
        entry.kind
        for _, entries in migration.stages
        for entry in entries
        if entry.name == name or entry.name.startswith((f"{name}.", f"{name}["))
    }


def settings_of(shape: Shape) -> Iterator[str]:
    """What a script or config assigns, found in another way than `migrate` finds it."""
    if shape.file.endswith(".yaml"):
        yield from yaml.safe_load(shape.text)
    elif shape.file.endswith(".py"):
        for node in ast.walk(ast.parse(shape.text)):
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant | ast.Attribute):
                assert node.arg is not None
                yield node.arg
    else:
        command = shape.text[re.search(r"[\w/]+train\w*(\.py)? \\\n", shape.text).end() :]  # type: ignore[union-attr]
        yield from (f"--{name}" for name in re.findall(r"--(\w+)", command))


@pytest.mark.parametrize("shape", MIGRATED, ids=name_of)
def test_every_setting_is_reported_in_one_section(shape: Shape) -> None:
    migration = migrated(shape)
    settings = list(settings_of(shape))
    assert len(settings) > 4
    if shape.file.endswith(".py"):
        reported = {entry.name.rpartition(".")[2] for _, found in migration.stages for entry in found}
        assert set(settings) <= reported
        names = {entry.name for _, found in migration.stages for entry in found}
    else:
        names = set(settings)
        assert all(sections_of(migration, name) for name in names)
    for name in names:
        own = {entry.kind for _, found in migration.stages for entry in found if entry.name == name}
        assert len(own) <= 1, name


flag_names = st.from_regex(r"[a-z][a-z_]{2,15}", fullmatch=True).filter(lambda name: not name.endswith("_"))
flag_values = st.sampled_from(["1", "True", "x", "0.5", "no", "a.json b.json", ""])


@examples(200)
@given(st.dictionaries(flag_names, flag_values, max_size=4), st.sampled_from(["llava", "tinyllava", "mine"]))
def test_any_flag_is_reported_in_one_section(flags: dict[str, str], package: str) -> None:
    extra = " ".join(f"--{name} {value}" for name, value in flags.items())
    text = script(f"deepspeed {package}/train/train.py", extra=extra, without=" ".join(flags))
    try:
        migration = migrate(text, "run.sh")
    except RecipeError:
        return
    for name in re.findall(r"--(\w+)", text):
        assert len(sections_of(migration, f"--{name}")) == 1, name
