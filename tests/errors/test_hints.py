"""A hint is right when obeyed: nothing more is reported of the key that it is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.errors.applied import is_still_wrong, obeyed, problems_of, values_of

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
READABLE = [file for file in sorted(HERE.glob("*.yaml")) if values_of(file) is not None]
MOST_STEPS = 40


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("file", READABLE, ids=lambda file: file.stem)
def test_an_obeyed_hint_leaves_nothing_to_say_of_its_key(file: Path) -> None:
    root = values_of(file)
    assert root is not None
    for problem in problems_of(root, str(file)):
        done = obeyed(root, problem)
        if done is not None:
            changed, where = done
            left = is_still_wrong(problem, problems_of(changed, str(file)), where)
            assert not left, (problem.hint, [(other.message, other.hint) for other in left])


@pytest.mark.parametrize("file", READABLE, ids=lambda file: file.stem)
def test_hints_obeyed_one_after_another_come_to_an_end(file: Path) -> None:
    """No two hints that undo each other: at the end only those are left that a person must decide."""
    root = values_of(file)
    assert root is not None
    for _ in range(MOST_STEPS):
        steps = (obeyed(root, problem) for problem in problems_of(root, str(file)))
        step = next((done for done in steps if done is not None), None)
        if step is None:
            return
        root = step[0]
    pytest.fail(f"still {[problem.hint for problem in problems_of(root, str(file))]}")


def test_most_hints_can_be_obeyed_by_the_letter() -> None:
    """So that the tests above do not pass because nothing is tried."""
    tried = [
        obeyed(root, problem) is not None
        for file in READABLE
        if (root := values_of(file)) is not None
        for problem in problems_of(root, str(file))
        if problem.hint is not None
    ]
    assert len(tried) > 200
    assert sum(tried) > 160
