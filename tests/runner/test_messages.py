"""What training processes leave for the command that watches them."""

from __future__ import annotations

from pathlib import Path

from llava_recipes.recipe.errors import Mark, Problem, RecipeError
from llava_recipes.runner.messages import read_problems, write_problems


def test_a_sample_keeps_its_place(tmp_path: Path) -> None:
    """Of the sources of a mix none is known by a sample's number; its file, line or row is."""
    problems = (
        Problem("sample 3: broken", mark=Mark("a.json", 12, 1, text="  {"), found="x.png", hint="mend it"),
        Problem("sample 4: broken", mark=Mark("b.parquet", 0, 0, row=7)),
        Problem("too large", path=("stages", 0, "train")),
    )
    write_problems(tmp_path, 1, RecipeError(*problems))
    write_problems(tmp_path, 0, RecipeError(problems[0]))
    found = read_problems(tmp_path)
    assert found == list(problems)
    assert found[0].mark is not None and found[0].mark.text == "  {"
