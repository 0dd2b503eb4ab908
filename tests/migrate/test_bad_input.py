"""Any input of `migrate` results in a recipe or an error for the user, soon and with little memory."""

from __future__ import annotations

import contextlib
import itertools
import resource
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llava_recipes.cli.main import main
from llava_recipes.errors import RecipeError
from llava_recipes.migrate.migration import migrate
from llava_recipes.recipe.load import load_source
from tests.laws import examples
from tests.measured import run_measured
from tests.migrate.plans import SCRIPTS

TRAIN = "deepspeed llava/train/train_mem.py --output_dir "
BOMBS = {
    "doubling": "A=xxxxxxxxxx\n" + "A=$A$A\n" * 60 + TRAIN + "$A\n",
    "many large values": "A="
    + "x" * 9000
    + "\n"
    + "".join(f"B{n}=$A\n" for n in range(9000))
    + TRAIN
    + "$B1\n",
    "many large words": "A='" + "x " * 9000 + "'\n" + TRAIN + "$A " * 5000 + "\n",
    "deep parameters": TRAIN + "${A:-" * 30_000 + "x" + "}" * 30_000,
    "deep brackets": TRAIN + "$(" * 90_000,
    "deep groups": "(" * 90_000 + TRAIN + ")" * 90_000,
    "deep conditions": "if true; then\n" * 14_000 + TRAIN,
    "patterns": "A=" + "a" * 1900 + "\n" + TRAIN + '"${A##*a*a*a*a*a*a*b}${A//*a*a*a*ac/x}"\n' * 1,
    "many words": TRAIN + "a " * 95_000,
    "many quotes": TRAIN + "''" * 95_000,
    "many commands": "a\n" * 95_000,
    "many training commands": (TRAIN + "x\n") * 4000,
    "long line": "#" * 190_000,
    "sums of sums": "Z=1\n"
    + "".join(f"{a}='{b}+{b}'\n" for a, b in itertools.pairwise("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    + TRAIN
    + "$((A))\n",
    "open sums": TRAIN + "$((" * 60_000,
    "a here-document": "cat <<END\n" + "a\n" * 95_000,
    "brackets that may be sums": "((x) " * 99 + "a " * 80_000 + ")" * 99 + TRAIN,
    "substitutions": TRAIN + "$(echo " * 300 + "x" + ")" * 300,
    "arrays": "A=(" + "x " * 9000 + ")\n" + "A=(${A[@]} ${A[@]})\n" * 30 + TRAIN + "${A[@]}\n",
}

XTUNER_BOMB = (
    "x = [0]\n"
    + "x = [x, x]\n" * 60
    + "model = dict(type=LLaVAModel, freeze_llm=x, visual_select_layer=x, llm=x)\n"
    + "llava_dataset = dict(data_path=x, max_length=x, template_map_fn=dict(template=x))\n"
    + "optim_wrapper = dict(optimizer=dict(betas=x, lr=x), dtype=x)\nparam_scheduler = x\n"
)


@pytest.mark.parametrize("name", [*BOMBS, "XTuner"])
def test_a_bomb_does_not_go_off(name: str, tmp_path: Path) -> None:
    file = tmp_path / ("bomb.sh" if name in BOMBS else "bomb.py")
    file.write_text(BOMBS.get(name, XTUNER_BOMB), encoding="utf-8")
    started = _children_s()
    done = run_measured("migrate", str(file), folder=tmp_path)
    assert done.code == 1, done.err[-1000:]
    assert "bug in llava-recipe" not in done.err
    assert done.memory_kb is not None
    assert done.memory_kb < 200 * 1024
    # Seconds of the processor rather than of the wall, on a machine that others use too.
    assert _children_s() - started < 10


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe\x00d", "the file isn't UTF-8"),
        (b"deepspeed\x00", "NUL bytes"),
        (b"x" * 300_000, "larger than 200,000 bytes"),
        (b"", "no training command"),
    ],
)
def test_a_file_that_is_no_script(
    data: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "script.sh"
    file.write_bytes(data)
    assert main(["migrate", str(file)]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_or_nothing_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", str(tmp_path)]) == 1
    assert main(["migrate", str(tmp_path / "none.sh")]) == 1
    assert main(["migrate", "a\0b"]) == 1
    reported = capsys.readouterr().err
    assert "this is a folder" in reported and "no such file" in reported and "cannot be read" in reported


GOOD = [(file.read_text(encoding="utf-8"), file.name) for file in sorted(SCRIPTS.rglob("*.sh"))]
GOOD += [
    (file.read_text(encoding="utf-8"), file.name.removesuffix(".txt"))
    for file in sorted((Path(__file__).parent / "configs").iterdir())
]
SNIPPETS = [*"'\"$}()`\\\n =#;|{[]:\t\r\0é%", "${", "--", "<<", "&&", "if ", "fi", "done", "- ", "&a ", "*a"]
SNIPPETS += ["!!x ", "\ud7ff", "9" * 400]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, str]:
    text, name = draw(st.sampled_from(GOOD))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        text = text[:start] + draw(st.sampled_from(["", *SNIPPETS])) + text[end:]
    return text, name


@examples(400)
@given(mutated())
@example(("", "x.sh"))
@example(("A=(\n", "x.sh"))
@example(("a.b.c=1\n", "x.py"))
def test_any_change_of_a_good_file_is_read_or_refused(changed: tuple[str, str]) -> None:
    text, name = changed
    try:
        load_source(migrate(text, name).text, "recipe.yaml")
    except RecipeError as error:
        assert error.problems
        assert all(problem.mark is not None for problem in error.problems)


@pytest.mark.parametrize(
    ("text", "file"),
    [
        (f"{TRAIN} o --image_aspect_ratio anyres --image_grid_pinpoints '[1if 2else 3]'", "x.sh"),
        ("model = dict(type=LLaVAModel, freeze_llm=1if 2else 3)", "x.py"),
    ],
)
def test_pythons_warnings_about_a_file_are_not_shown(text: str, file: str) -> None:
    with warnings.catch_warnings(record=True) as caught, contextlib.suppress(RecipeError):
        warnings.simplefilter("always")
        migrate(text, file)
    assert not caught
