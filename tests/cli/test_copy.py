"""`llava-recipe copy`: a gallery recipe as a file of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_recipes.authoring.gallery import gallery
from llava_recipes.cli.main import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_recipe_of_the_gallery_can_be_copied(elsewhere: Path) -> None:
    for entry in gallery():
        assert main(["copy", entry.name, "-o", f"{entry.file.stem}-mine.yaml"]) == 0
    files = sorted(map(str, elsewhere.glob("*.yaml")))
    assert len(files) == len(gallery())
    assert main(["validate", *files]) == 0


def test_it_is_called_after_the_recipe_unless_another_name_is_given(elsewhere: Path) -> None:
    assert main(["copy", "demo"]) == 0
    assert (elsewhere / "demo.yaml").is_file()
    assert [file.name for file in elsewhere.iterdir()] == ["demo.yaml"]


def test_to_standard_output(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["copy", "demo", "-o", "-"]) == 0
    assert "\nname: demo\n" in capsys.readouterr().out
    assert not list(elsewhere.iterdir())


def test_nothing_is_written_over(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = elsewhere / "demo.yaml"
    file.write_text("mine", encoding="utf-8")
    assert main(["copy", "demo"]) == 1
    assert "demo.yaml already exists" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "mine"
    assert main(["copy", "demo", "--force"]) == 0
    assert "name: demo" in file.read_text(encoding="utf-8")


def test_a_link_to_nowhere_is_not_followed(elsewhere: Path) -> None:
    (elsewhere / "demo.yaml").symlink_to(elsewhere / "target")
    assert main(["copy", "demo"]) == 1
    assert not (elsewhere / "target").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["copy", "pretrain_v15_7"], "did you mean `pretrain_v15_7b`?"),
        (["copy", "no such thing"], "`llava-recipe list` shows"),
        (["copy", "../pyproject"], "no recipe `../pyproject`"),
        (["copy", "base/v15"], "no recipe `base/v15`"),
        (["copy", "demo", "-o", "no/such/folder/x.yaml"], "no/such/folder does not exist"),
        (["copy", "demo", "-o", ".", "--force"], "cannot be written"),
        (["copy", "demo", "-o", "x\0.yaml"], "which a recipe can't contain"),
        (["copy", "demo", "-o", "x\udcff.yaml"], "which a recipe can't contain"),
        (["copy", "demo", "-o", "x" * 300], "cannot be written"),
    ],
)
def test_what_cannot_be_done(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    assert message in capsys.readouterr().err
