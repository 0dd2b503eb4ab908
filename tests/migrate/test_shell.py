"""Scripts are read as bash reads them: the same arguments reach the training program."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.errors import RecipeError
from llava_recipes.migrate.shell import walk_commands
from tests.laws import examples

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="compares with bash")

FEATURES = (Path(__file__).parent / "scripts/features.txt").read_text(encoding="utf-8")
SCRIPTS = dict(section.split("\n", 1) for section in FEATURES.split("==== ")[1:])
POSITIONAL = ("one", "two words", "three", *"456789", "ten")


def ours(script: str, *positional: str, variables: Mapping[str, str] | None = None) -> list[str]:
    """The arguments that the training program gets; raises RecipeError if one is not known."""
    for command in walk_commands(script, "script.sh", positional=positional, variables=variables):
        words = [word.text for word in command.words]
        if words[:1] == ["deepspeed"] and "train.py" in words:
            problems = [word.problem for word in command.words if word.problem is not None]
            if problems:
                raise RecipeError(*problems)
            return words[words.index("train.py") + 1 :]
    return []


def of_bash(script: str, *positional: str) -> list[str]:
    """In an empty folder: what a pattern finds is part of what bash says."""
    shown = 'deepspeed() { shift; printf "%s\\0" "$@" >&3; }\n'
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            ["bash", "-c", f"exec 3>&1 >/dev/null\n{shown}{script}", "script.sh", *positional],
            cwd=empty,
            capture_output=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nowhere"},
            timeout=60,
        )
    return done.stdout.decode().split("\0")[:-1]


@needs_bash
@pytest.mark.parametrize("name", SCRIPTS)
def test_arguments_are_those_of_bash(name: str) -> None:
    expected = of_bash(SCRIPTS[name], *POSITIONAL)
    assert expected
    assert ours(SCRIPTS[name], *POSITIONAL) == expected


READ = r"""
a|1e-3|${A}|"$A"|"$B"|${B}|'x y'|"p $A q"|\$|\ |${U:-d e}|"${U:-d e}"|${B#a}|${B%%c*}|${B// /_}|${B/b}|''
=|-2|${E}|${E:-$A}|}|{|/|%|.|${B:+y}|"\\"|"${B#a *}"|${#B}|$((A * 2 - (3 + 4) / 2))|$(basename /x/a.b .b)
"it's"|`dirname "/x/y z"`
"""
"""Every one of these is read, whatever stands beside it."""
OTHER = r"""b c|$A|$B|'|"|`|"`"|$(|#|*x|${B^^}|"""
read_pieces = st.sampled_from(READ.strip().replace("\n", "|").split("|"))
pieces = read_pieces | st.sampled_from([*OTHER.split("|"), "\\\n", "\n"])


@needs_bash
@examples(150)
@given(st.lists(read_pieces, max_size=6).map("".join), st.lists(read_pieces, max_size=5).map("".join))
def test_any_word_is_read_as_bash_reads_it(value: str, word: str) -> None:
    script = f"A=15\nB='a b c'\nE=\nV=x{value}\ndeepspeed train.py --a {word} --v \"$V\" --w $V\n"
    assert ours(script) == of_bash(script)


@needs_bash
@examples(150)
@given(st.lists(pieces, max_size=6).map("".join), st.lists(pieces, max_size=5).map("".join))
def test_any_text_is_read_as_bash_reads_it_or_refused(value: str, word: str) -> None:
    script = f"A=15\nB='a b c'\nE=\nV={value}\ndeepspeed train.py --a {word} --v \"$V\" --w $V\n"
    try:
        found = ours(script)
    except RecipeError:
        return
    if not found and "`" in value and "`" in word:
        # The command stands inside a substitution that begins in `value`: `migrate` tells that there is none.
        return
    assert found == of_bash(script)


@pytest.mark.parametrize("change", ["^^", ",,", "/#a/b", "/%a/b", ":0:2", "@Q", "[i]"])
def test_what_is_not_evaluated_is_named_and_may_be_given(change: str) -> None:
    script = f"A=abc\nB=${{A{change}}}\ndeepspeed train.py --a $B\n"
    with pytest.raises(RecipeError, match="expansion") as caught:
        ours(script)
    (problem,) = caught.value.problems
    assert problem.mark is not None and problem.mark.line == 2
    assert problem.hint and "--var B=VALUE" in problem.hint
    assert ours(script, variables={"B": "given"}) == ["--a", "given"]


def test_what_a_command_prints_elsewhere_is_not_its_value() -> None:
    prints = "deepspeed train.py --a $(cd /x > /dev/null 2>&1 && pwd 2> /dev/null)\n"
    assert ours(prints) == ["--a", "/x"]
    for hidden in ("> f", "1> f", "&> f", ">> f", "| cat"):
        with pytest.raises(RecipeError, match="not evaluated"):
            ours(f"deepspeed train.py --a $(echo b {hidden})\n")


def test_a_name_that_goes_on_in_the_next_line_is_refused() -> None:
    """Bash joins the lines first: `$A` and `a` are the one name `Aa`."""
    with pytest.raises(RecipeError, match="continues in the next line"):
        ours("A=1\ndeepspeed train.py --a $A\\\na\n")
    assert ours("A=1\ndeepspeed train.py --a $A\\\n --b\n") == ["--a", "1", "--b"]


def test_windows_line_ends_make_no_difference() -> None:
    for script in SCRIPTS.values():
        assert ours(script.replace("\n", "\r\n"), *POSITIONAL) == ours(script, *POSITIONAL)
