"""The printed text of a problem."""

from __future__ import annotations

from llava_recipes.errors import Mark, Problem
from llava_recipes.render import MAX_LINE_CHARACTERS, render_problems


def test_a_problem_in_full() -> None:
    mark = Mark("recipes/align.yaml", 12, 9, 21, text="      - multi_modal_projector")
    problem = Problem(
        'glob "multi_modal_projector" in `trainable` matches no module',
        code="test",
        mark=mark,
        found="the model has language_model, lm_head, projector, vision_tower",
        hint='did you mean "projector"?',
    )
    assert render_problems([problem]) == (
        'recipes/align.yaml:12:9: glob "multi_modal_projector" in `trainable` matches no module\n'
        "   12 |       - multi_modal_projector\n"
        "      |         ^^^^^^^^^^^^^^^^^^^^^\n"
        "found: the model has language_model, lm_head, projector, vision_tower\n"
        'hint:  did you mean "projector"?'
    )


def test_places_without_a_line() -> None:
    assert (
        render_problems([Problem("no such file", code="test", mark=Mark("a.yaml", 0, 0))])
        == "a.yaml: no such file"
    )
    assert (
        render_problems([Problem("one", code="test"), Problem("two", code="test", found="a\nb")])
        == "one\n\ntwo\nfound: a\n       b"
    )


def test_a_long_line_is_cut_around_its_mark() -> None:
    text = "x" * 5000 + "HERE" + "y" * 5000
    shown = render_problems([Problem("m", code="test", mark=Mark("f", 1, 5001, 4, text=text))]).splitlines()
    start = shown[2].index("^")
    assert shown[1][start : start + 4] == "HERE"
    assert shown[2].count("^") == 4
    assert max(map(len, shown)) < MAX_LINE_CHARACTERS + 20


def test_carets_stand_under_wide_letters() -> None:
    text = "名前: 値"
    shown = render_problems([Problem("m", code="test", mark=Mark("f", 1, 5, 1, text=text))]).splitlines()
    assert shown[2] == "      | " + " " * 6 + "^^"


def test_nothing_reaches_the_terminal_as_a_command() -> None:
    mark = Mark("f\x1b[31m", 1, 1, 3, text="a\x1b[2J\u202eb\tc")
    shown = render_problems([Problem("m\x07", code="test", mark=mark, found="\x1b]0;title\x07", hint="\x9b")])
    assert all(letter.isprintable() for line in shown.splitlines() for letter in line)
