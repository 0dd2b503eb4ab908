"""`llava-recipe validate --deep`: the model's own names, the data and the images; no weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_recipes.cli.main import main
from llava_recipes.runner import deep
from tests.data.parquet_files import with_structs, write_parquet
from tests.tiny import FIXTURES, stage1_values, write_recipe


@pytest.fixture
def records() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FIXTURES / "stage1.json").read_text(encoding="utf-8"))
    return found


def _recipe(folder: Path, records: list[dict[str, Any]] | None = None, **train: Any) -> dict[str, Any]:
    values = stage1_values(folder / "out", **train)
    if records is not None:
        file = folder / "data.json"
        file.write_text(json.dumps(records, indent=1), encoding="utf-8")
        values["stages"][0]["data"]["sources"][0]["annotations"] = str(file)
    return values


def _validate(
    values: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, str, str]:
    file = write_recipe(values, folder / "recipe.yaml")
    code = main(["validate", str(file), "--deep", *options])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_good_recipe_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _validate(_recipe(tmp_path), tmp_path, capsys)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"ok  {tmp_path / 'recipe.yaml'}",
        "    pretrain: 24 records, all of 24 images decoded, 2,112 of 131,904 parameters train",
    ]


def test_it_reads_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folders of the models without any of their weight files."""
    values = _recipe(tmp_path)
    for part, name in (("language_model", "tiny_vicuna"), ("vision_tower", "tiny_clip")):
        shutil.copytree(
            FIXTURES / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors", "*.bin")
        )
        source = str(tmp_path / name)
        values["model"][part] = source if part == "language_model" else {"source": source}
    assert _validate(values, tmp_path, capsys)[0] == 0


def test_everything_is_reported_at_once_and_in_its_own_file(
    tmp_path: Path, records: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    records[2]["conversations"] = [*records[2]["conversations"], {"from": "human", "value": "and?"}]
    records[2]["conversations"].append({"from": "gpt", "value": "more"})
    records[3]["image"] = "nowhere.jpg"
    records[4]["conversations"][0]["value"] = "no tag"
    values = _recipe(tmp_path, records)
    values["model"]["projector"]["type"] = "linear"
    code, out, err = _validate(values, tmp_path, capsys)
    assert (code, out) == (1, "")
    of_exports = [block for block in err.strip().split("\n\n") if ": warning: " in block]
    assert [block.split("`")[1] for block in of_exports] == ["hf", "gguf-ready"]
    blocks = [block for block in err.strip().split("\n\n") if block not in of_exports]
    assert "these projector weights do not fit" in blocks[0]
    assert "`mlp2x_gelu`, 32 to 32 to 32; the recipe has `linear`, 32 to 32" in blocks[0]
    printed = "\n".join(blocks[1:])
    assert (
        'sample 2 (id "s1_002"): template `plain` takes one human turn and one answer, not 4 turns' in printed
    )
    assert "1 of 24 records; this is the first" in printed
    assert 'sample 3 (id "s1_003"): the file does not exist' in printed
    assert 'sample 4 (id "s1_004"): <image> tags and images differ in number' in printed
    lines = (tmp_path / "data.json").read_text(encoding="utf-8").splitlines()
    for block in blocks[1:]:
        place, sample = block.split(": ")[0].split(":"), block.split('(id "')[1].split('"')[0]
        assert place[0] == str(tmp_path / "data.json")
        following = "\n".join(lines[int(place[1]) - 1 : int(place[1]) + 2])
        assert sample in following


def test_globs_are_tried_in_every_stage_on_a_model_that_only_transformers_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = _recipe(tmp_path)
    values["model"]["projector"].pop("init_from")
    values["model"]["language_model"] = {
        "config": {
            "model_type": "gemma",
            "vocab_size": 512,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
        "tokenizer": str(FIXTURES / "tiny_vicuna"),
    }
    second = {**values["stages"][0], "name": "second", "output_dir": str(tmp_path / "second")}
    values["stages"].append({**second, "trainable": ["language_model.layers.7"]})
    file = write_recipe(values, tmp_path / "recipe.yaml")
    assert main(["validate", str(file)]) == 0
    capsys.readouterr()
    code, _, err = _validate(values, tmp_path, capsys)
    assert code == 1
    assert 'glob "language_model.layers.7" in `trainable` matches no module' in err
    assert "found: language_model.layers has 0, 1" in err


def test_images_are_sampled_the_same_way_every_time(
    tmp_path: Path,
    records: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deep, "NUM_OPENED", 5)
    for record in records[::2]:
        record["image"] = "nowhere.jpg"
    values = _recipe(tmp_path, records)
    some = _validate(values, tmp_path, capsys)
    assert some == _validate(values, tmp_path, capsys)
    num_found = some[2].count("the file does not exist")
    assert 0 < num_found <= 5
    code, _, err = _validate(values, tmp_path, capsys, "--all")
    assert code == 1
    assert err.count("the file does not exist") == 5
    assert "12 of the 24 images that were opened cannot be used" in err


def cut_short(name: str, folder: Path) -> str:
    whole = (FIXTURES / "images" / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    return name


def test_some_images_are_decoded_and_with_all_every_one(
    tmp_path: Path,
    records: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deep, "NUM_OPENED", 10)
    monkeypatch.setattr(deep, "NUM_DECODED", 3)
    values = _recipe(tmp_path, records)
    code, out, _ = _validate(values, tmp_path, capsys)
    assert code == 0
    assert "10 of 24 images opened, 3 decoded" in out
    assert "all of 24 images decoded" in _validate(values, tmp_path, capsys, "--all")[1]
    images = tmp_path / "images"
    images.mkdir()
    for record in records:
        record["image"] = cut_short("rgb_0.jpg", images)
    values = _recipe(tmp_path, records)
    values["stages"][0]["data"]["sources"][0]["images"] = str(images)
    code, _, err = _validate(values, tmp_path, capsys)
    assert (code, err.count("image file is truncated")) == (1, 3)
    code, _, err = _validate(values, tmp_path, capsys, "--all")
    assert "24 of the 24 images that were opened cannot be used" in err


@pytest.mark.parametrize("num_decoded", [0, 100])
def test_an_image_that_is_too_thin_to_prepare_is_found(
    num_decoded: int,
    tmp_path: Path,
    records: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deep, "NUM_DECODED", num_decoded)
    shutil.copytree(FIXTURES / "images", tmp_path / "images")
    Image.new("RGB", (1, 60_000)).save(tmp_path / "images/thin.png")
    records[3]["image"] = "thin.png"
    values = _recipe(tmp_path, records)
    values["stages"][0]["data"]["sources"][0]["images"] = str(tmp_path / "images")
    code, _, err = _validate(values, tmp_path, capsys)
    assert code == 1
    assert (
        'sample 3 (id "s1_003"): it is too thin: 1 x 60,000 pixels would be resized to 56 x 3,360,000' in err
    )


def test_counts_are_in_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _validate(_recipe(tmp_path), tmp_path, capsys, "--format", "json")
    assert code == 0
    (file,) = json.loads(out)["files"]
    assert file["stages"] == [
        {
            "stage": "pretrain",
            "num_records": 24,
            "num_validation_records": 0,
            "num_images": 24,
            "num_images_opened": 24,
            "num_images_decoded": 24,
            "num_trainable_parameters": 2112,
            "num_parameters": 131904,
        }
    ]


def test_models_and_data_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = _recipe(tmp_path)
    values["model"]["language_model"] = "./nowhere"
    values["stages"][0]["data"]["sources"][0] = {"annotations": "none.json", "images": "none"}
    code, _, err = _validate(values, tmp_path, capsys)
    assert code == 1
    assert "the language model's folder does not exist" in err
    assert "cannot read the annotation file" in err
    assert "the image folder does not exist" in err


def test_validation_data_is_looked_at_too(
    tmp_path: Path, records: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    values = _recipe(tmp_path)
    data = values["stages"][0]["data"]
    data["validation"] = {"split": 0.25}
    code, out, _ = _validate(values, tmp_path, capsys)
    assert code == 0
    assert "pretrain: 18 records, 6 to validate on, all of 24 images decoded" in out
    records[-1]["image"] = "nowhere.jpg"
    records[-2]["conversations"] = []
    (tmp_path / "val.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    own = {"annotations": str(tmp_path / "val.json"), "images": str(FIXTURES / "images")}
    data["validation"] = {"sources": [{**own, "sampling_strategy": "end:3"}]}
    code, _, err = _validate(values, tmp_path, capsys)
    assert code == 1
    blocks = err.strip().split("\n\n")
    assert len(blocks) == 2
    assert all(block.startswith(f"{tmp_path / 'val.json'}:") for block in blocks)
    assert 'sample 1 (id "s1_022"): `conversations` is not a list of turns, or is empty' in blocks[0]
    assert 'sample 2 (id "s1_023"): the file does not exist' in blocks[1]
    data["validation"] = {"sources": [{**own, "sampling_strategy": "first:20"}]}
    assert _validate(values, tmp_path, capsys)[0] == 0


def test_parts_of_a_file_and_weights_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = _recipe(tmp_path)
    values["stages"][0]["data"]["sources"][0] |= {"sampling_strategy": "first:50%", "weight": 2.5}
    code, out, _ = _validate(values, tmp_path, capsys)
    assert code == 0
    assert "pretrain: 30 records, all of 12 images decoded" in out


def test_too_many_images_are_reported(
    tmp_path: Path, records: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    records[5] |= {"image": ["rgb_0.jpg"] * 4}
    records[5]["conversations"][0]["value"] = "<image>" * 4
    values = _recipe(tmp_path, records)
    values["stages"][0]["data"]["max_length"] = 60
    code, _, err = _validate(values, tmp_path, capsys)
    assert code == 1
    assert 'sample 5 (id "s1_005"): its images leave no room for text: 4 images take 64 tokens' in err
    assert "raise `max_length`, or use fewer images" in err
    values["stages"][0]["data"]["max_length"] = 65
    assert _validate(values, tmp_path, capsys)[0] == 0


def test_an_image_that_anyres_makes_too_long_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = _recipe(tmp_path)
    values["stages"][0]["data"] |= {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
    values["stages"][0]["data"]["max_length"] = 80
    code, _, err = _validate(values, tmp_path, capsys)
    assert code == 1
    assert 'sample 0 (id "s1_000"): its images leave no room for text: 1 image takes 88 tokens' in err
    values["stages"][0]["data"]["max_length"] = 89
    assert _validate(values, tmp_path, capsys)[0] == 0


def test_images_inside_parquet_are_opened(
    tmp_path: Path, records: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [with_structs(record) for record in records]
    rows[7]["image"]["bytes"] = b"no image"
    values = _recipe(tmp_path)
    file = write_parquet(rows, tmp_path / "data.parquet")
    values["stages"][0]["data"]["sources"] = [{"annotations": str(file)}]
    code, _, err = _validate(values, tmp_path, capsys)
    assert code == 1
    assert err.startswith(f'{file}: row 7: sample 7 (id "s1_007"): not an image of a known format')
    _, out, _ = _validate(values, tmp_path, capsys, "--format", "json")
    (problem,) = json.loads(out)["files"][0]["problems"]
    assert (problem["file"], problem["row"], problem["line"]) == (str(file), 7, None)
    _, out, _ = _validate(values, tmp_path, capsys, "--format", "github")
    assert f"::error file={file}," in out
    assert "::row 7: sample 7" in out
