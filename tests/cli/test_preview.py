"""`llava-recipe preview`, as a person and as a program reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_recipes.cli.main import main
from tests.processes import llava_recipe
from tests.tiny import FIXTURES, GOLDEN, stage1_values, write_recipe


def recipe(tmp_path: Path, annotations: str = "stage1.json", template: str = "plain") -> str:
    values = stage1_values(tmp_path / "out")
    values["stages"][0]["data"]["sources"][0]["annotations"] = str(FIXTURES / annotations)
    values["stages"][0]["data"]["template"] = template
    return str(write_recipe(values, tmp_path / "recipe.yaml"))


def preview(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["preview", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def golden(name: str) -> dict[int, dict[str, Any]]:
    samples = json.loads((GOLDEN / f"01_tokenization/{name}.json").read_text())["samples"]
    return {sample["index"]: sample for sample in samples}


def test_json_lines_are_the_originals_samples(tmp_path: Path) -> None:
    """In a process of its own: nothing but JSON on the output, nothing on the error output."""
    options = ("--stage", "pretrain", "--samples", "0:24", "--format", "jsonl")
    done = llava_recipe("preview", recipe(tmp_path), *options, cwd=tmp_path, fresh=True)
    assert (done.returncode, done.stderr) == (0, "")
    expected = golden("stage1__plain__se0__tiny_vicuna__slow__2048")
    samples = lines(done.stdout)
    assert [sample["index"] for sample in samples] == list(range(24))
    for sample in samples:
        same = expected[sample["index"]]
        assert sample["id"] == same["id"]
        assert sample["input_ids"] == same["input_ids"]
        assert sample["labels"] == same["labels"]
        assert sample["num_image_tokens"] == 16
        assert sample["length"] == sample["num_kept"] == len(same["input_ids"]) + 15


def test_long_samples_end_as_the_originals_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe(tmp_path, "stage2.json", "v1")
    options = ("--samples", "6:8", "--format", "jsonl", "--set", "stages.pretrain.data.max_length=512")
    code, out, _ = preview(capsys, file, *options)
    assert code == 0
    text, image = lines(out)
    expected = golden("stage2__v1__se0__tiny_vicuna__slow__512")
    for sample in (text, image):
        assert sample["input_ids"] == expected[sample["index"]]["input_ids"]
        assert sample["labels"] == expected[sample["index"]]["labels"]
        assert sample["num_kept"] == 512
    assert text["length"] == 512
    assert image["length"] == len(image["input_ids"]) + 15 == 3232


def test_good_samples_are_shown_and_all_bad_ones_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path, "edge.json", "v1")
    code, out, err = preview(capsys, file, "--samples", "16:30", "--format", "jsonl")
    assert code == 1
    assert [sample["index"] for sample in lines(out)] == [22, 24, 25, 26, 27, 28, 29]
    named = [index for index in range(16, 30) if f"sample {index} (id " in err]
    assert named == [16, 17, 18, 19, 20, 21, 23]
    assert "edge/truncated.jpg: image file is truncated" in err
    assert "Traceback" not in err


def test_the_table_marks_what_is_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = preview(capsys, recipe(tmp_path, "stage2.json", "v1"), "--samples", "3:5")
    assert (code, err) == (0, "")
    words = " ".join(out.replace("│", " ").split())
    assert "id s2_003" in words
    assert "rgb_tall.jpg 60×170" in words
    assert "119 tokens" in words
    assert "[image: 16 tokens]" in words
    assert "⟦ Tall</s>⟧" in words
    assert words.count("⟦") == words.count("⟧") == 1 + 3 + 1
    assert "learned tokens⟧ are in brackets" in words


def test_the_table_shows_where_a_sample_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe(tmp_path, "stage2.json", "v1")
    _, out, _ = preview(capsys, file, "--samples", "6", "--set", "stages.0.data.max_length=120")
    words = " ".join(out.replace("│", " ").split())
    assert "cut at 120" in words
    assert "✂ 3080 more" in words
    assert "Paragraph 20" not in words


def test_color_takes_the_place_of_brackets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, out, _ = preview(capsys, recipe(tmp_path), "--samples", "0")
    assert "\x1b[1;32m" in out
    assert "⟦" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stage", "pretain"], "the recipe has no stage `pretain`"),
        (["--samples", "24:30"], "sample 24 doesn't exist"),
        (["--set", "stages.0.data.sources.0.num_samples=25"], "does not contain `num_samples` records"),
        (["--set", "stages.0.data.sources.0.images=nowhere"], "the image folder does not exist"),
        (["--set", "stages.0.data.sources.0.annotations=nowhere.json"], "nowhere.json"),
        (
            ["--set", f"stages.0.data.sources.0.annotations={FIXTURES}/broken.json"],
            "broken.json:1:12: malformed",
        ),
        (["--set", "model.language_model=./nowhere"], "nowhere"),
        (["--set", "model.vision_tower.source=./nowhere"], "nowhere"),
    ],
)
def test_bad_input_ends_with_1_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code, out, err = preview(capsys, recipe(tmp_path), *options)
    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("span", ["x", "3:3", "-1:2", "5:2", "1:y"])
def test_a_span_that_makes_no_sense_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], span: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["preview", recipe(tmp_path), f"--samples={span}"])
    assert caught.value.code == 2
    assert "A:B" in capsys.readouterr().err


def test_validation_samples_are_those_that_do_not_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path)
    code, out, err = preview(capsys, file, "--validation", "--format", "jsonl")
    assert (code, out) == (1, "")
    assert "the stage has no validation data" in err
    split = ("--set", "stages.0.data.validation={split: 5}", "--samples", "0:24", "--format", "jsonl")
    shown = {
        options: {sample["id"] for sample in lines(preview(capsys, file, *options, *split)[1])}
        for options in ((), ("--validation",))
    }
    trained, measured = shown[()], shown[("--validation",)]
    assert (len(trained), len(measured)) == (19, 5)
    assert not trained & measured


def test_images_of_any_size_show_their_grid_and_their_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = stage1_values(tmp_path / "out")
    values["stages"][0]["data"] |= {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
    file = str(write_recipe(values, tmp_path / "recipe.yaml"))
    code, out, _ = preview(capsys, file, "--samples", "0:3", "--format", "jsonl")
    assert code == 0
    # 100 × 100, 200 × 80 and 60 × 170 pixels, 4 × 4 features a crop, on the tower's five grids.
    square, wide, tall = lines(out)
    assert [sample["grids"] for sample in (square, wide, tall)] == [[[2, 2]], [[3, 1]], [[1, 3]]]
    tokens = [16 + 8 * 9, 16 + 4 * 11, 16 + 12 * 5]
    assert [sample["image_tokens"] for sample in (square, wide, tall)] == [[number] for number in tokens]
    for sample, number in zip((square, wide, tall), tokens, strict=True):
        assert sample["length"] == len(sample["input_ids"]) - 1 + number
        assert sample["num_image_tokens"] == 16
    code, out, _ = preview(capsys, file, "--samples", "0:1")
    assert code == 0
    assert "[image: 88 tokens]" in out
    assert "the whole and" in out and "2×2 crops" in out
