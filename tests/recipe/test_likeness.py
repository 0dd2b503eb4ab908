"""A file that isn't a recipe is not quoted: not its lines, not its values, in no format."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llava_recipes.cli.main import main
from llava_recipes.recipe.extends import looks_like_recipe

ROOT = Path(__file__).parents[2]
SECRET = "hunter2"

OTHERS = {
    "users": f"root:x:0:0:{SECRET}:/root:/bin/bash\ndaemon:x:1:1:{SECRET}:/:/bin/sh\n",
    "environment": f"TOKEN={SECRET}\nHOME=/root\n",
    "settings": f"database:\n  user: a\n  password: {SECRET}\n",
    "settings, malformed": f"database:\n  password: {SECRET}: a\n",
    "services": f"version: '3'\nname: {SECRET}\nservices:\n  db:\n    password: {SECRET}\n",
    "continuous integration": f"stages: [build]\nvariables:\n  TOKEN: {SECRET}\nbuild: {{script: [make]}}\n",
    "another list": f"- {SECRET}\n- {SECRET}: 1\n",
    "text": f"{SECRET}\n",
    "a mapping on a line": f"{{password: {SECRET}}}",
    "no mapping": f"{{password: {SECRET}",
    "a tab": f"\t{SECRET}: 1\n",
    "control characters": f"{SECRET}\x01\n",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("form", ["text", "json", "github", "sarif"])
def test_a_file_that_is_no_recipe_is_not_quoted(
    kind: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other.yaml").write_text(OTHERS[kind])
    os.rename("other.yaml", "other")
    os.symlink("other", "link.yaml")
    Path("child.yaml").write_text("extends: link.yaml\nversion: 1\n")
    Path("list.yaml").write_text("extends: [other]\n")
    for file in ("child.yaml", "list.yaml", "other", "link.yaml"):
        assert main(["validate", "--format", form, file]) == 1
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err
        assert "isn't a recipe" in said.out + said.err


@pytest.mark.parametrize("kind", ["users", "environment", "text", "a mapping on a line", "another list"])
def test_what_is_no_annotation_and_no_script_is_not_quoted(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from llava_recipes.data.scan import AnnotationFile
    from llava_recipes.errors import RecipeError
    from llava_recipes.render import render_problems

    Path("other").write_text(OTHERS[kind])
    with pytest.raises(RecipeError) as caught:
        AnnotationFile("other")
    assert SECRET not in render_problems(caught.value.problems)
    assert main(["migrate", "other"]) == 1
    assert SECRET not in capsys.readouterr().err


def test_a_list_of_other_records_is_not_quoted() -> None:
    from llava_recipes.data.scan import AnnotationFile
    from llava_recipes.errors import RecipeError
    from llava_recipes.render import render_problems

    for text in (f'[{{"password": "{SECRET}"}}, {SECRET}]', f'["{SECRET}"]', f'{{"password": "{SECRET}"}}'):
        Path("other.json").write_text(text)
        with pytest.raises(RecipeError) as caught:
            AnnotationFile("other.json")
        assert SECRET not in render_problems(caught.value.problems)


def test_every_recipe_looks_like_one() -> None:
    files = sorted((ROOT / "recipes").rglob("*.yaml"))
    assert files
    assert [file for file in files if not looks_like_recipe(file.read_bytes())] == []


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\nname: a\nmodel: {language_model: [\n",
        "modle:\n  language_model: a\n",
        "vars: {a: 1}\n",
        "vers: 1\nstages: []\nmodel: a\n",
        '{"version": 1, "model": {"vision_tower": "a"}',
        "name: a\nstagse:\n- name: b\n",
        "extends: other.yaml\n",
    ],
)
def test_a_recipe_with_a_fault_is_still_one(text: str) -> None:
    assert looks_like_recipe(text.encode())


def test_a_fault_in_a_parent_shows_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("parent.yaml").write_text("version: 1\nname: a: b\n")
    Path("child.yaml").write_text("extends: parent.yaml\n")
    assert main(["validate", "child.yaml"]) == 1
    assert "2 | name: a: b" in capsys.readouterr().err
