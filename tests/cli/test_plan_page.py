"""The page of `plan --html`: whole in itself, everything escaped, and never over somebody's file."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llava_recipes.cli.main import main
from tests.processes import run_process

RECIPE = str(Path(__file__).parents[2] / "recipes/pretrain_v15_13b.yaml")
VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """What a page holds: its text, its tags, and whether they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(file: Path, *options: str) -> Page:
    assert main(["plan", RECIPE, "--world-size", "8", "--html", str(file), *options]) == 0
    page = Page(file.read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.mark.parametrize("options", [[], ["--gpu", "a100-80g"], ["--gpu", "rtx4090", "--fit"]])
def test_the_page_says_what_the_plan_says(tmp_path: Path, options: list[str]) -> None:
    page = written(tmp_path / "plan.html", *options)
    for words in (
        "31,467,520 of 13,350,839,296",
        "558,128",
        "2,181",
        "not yet measured on a GPU",
        "24.81 GiB",
    ):
        assert words in page.text
    assert ("to fit on RTX 4090" in page.text) == ("--fit" in options)


def test_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    page = written(tmp_path / "plan.html", "--gpu", "h100")
    assert not {"script", "link", "img", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert not any(key in ("src", "href", "srcset") for _, attributes in page.tags for key in attributes)
    text = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text


def test_the_bars_are_no_wider_than_the_gpu(tmp_path: Path) -> None:
    page = written(tmp_path / "plan.html", "--gpu", "a100-80g")
    styles = [str(attributes["style"]) for tag, attributes in page.tags if tag == "span"]
    widths = [float(style.split("width:")[1].split("%")[0]) for style in styles]
    assert len(widths) > 10 and all(0 < width < 100 for width in widths)
    assert 49 < sum(widths[: len(widths) // 2]) < 51


def test_every_text_is_escaped(tmp_path: Path) -> None:
    evil = "./out/<script>alert(1)</script>\"'&amp;"
    page = written(tmp_path / "plan.html", "--set", f"stages.pretrain.output_dir={json.dumps(evil)}")
    assert evil in page.text
    assert "script" not in {tag for tag, _ in page.tags}


def test_a_page_is_written_over_its_own_kind(tmp_path: Path) -> None:
    file = tmp_path / "plan.html"
    written(file)
    first = file.read_text(encoding="utf-8")
    written(file, "--set", "stages.pretrain.train.learning_rate=0.5")
    assert file.read_text(encoding="utf-8") != first


def test_another_file_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "thesis.html"
    file.write_text("<html>my thesis</html>")
    assert main(["plan", RECIPE, "--html", str(file)]) == 1
    assert file.read_text() == "<html>my thesis</html>"
    printed = capsys.readouterr().err
    assert "this file was not written by `llava-recipe plan --html`" in printed
    assert "--force" in printed
    assert main(["plan", RECIPE, "--html", str(file), "--force"]) == 0
    assert "my thesis" not in file.read_text()


@pytest.mark.parametrize("name", ["absent/plan.html", "."])
def test_where_no_page_can_be_written_is_reported(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", RECIPE, "--html", str(tmp_path / name)]) == 1
    assert "the page cannot be written" in capsys.readouterr().err


def test_the_page_alone_needs_jinja(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from llava_recipes.cli.main import main\n"
        f"assert main(['plan', {RECIPE!r}, '--gpu', 'h100', '--fit', *sys.argv[1:]]) == 0\n"
        "print('jinja2' in sys.modules, 'torch' in sys.modules)\n"
    )
    for options, said in (([], "False False"), (["--html", str(tmp_path / "p.html")], "True False")):
        done = run_process([sys.executable, "-c", code, *options], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == said
