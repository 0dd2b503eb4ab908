"""A script's data: one file, names in braces, and the lists of LLaVA-NeXT."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_recipes.cli.main import main
from llava_recipes.migrate.draft import Migration
from llava_recipes.migrate.llava import names_in_braces, read_mix
from llava_recipes.migrate.migration import migrate
from llava_recipes.recipe.load import load_recipe, load_source
from tests.migrate.test_translation import BARE, at, entries

MIX = """\
datasets:
  - json_path: /data/llava_v1_5_mix665k.json
    sampling_strategy: all
  - json_path: /data/chart qa.jsonl
    sampling_strategy: first:10%
  - json_path: /data/math.json
    sampling_strategy: "random:20000"
  - json_path: /data/end.json
    sampling_strategy: end:500
  - json_path: /data/plain.json
"""


def of_path(path: str, text: str | None) -> Migration:
    script = BARE.replace("data.json", path)
    return migrate(
        f"{script}\n", "script.sh", read_beside=lambda name, _: None if text is None else (name, text)
    )


def test_a_mix_becomes_sources() -> None:
    migration = of_path("scripts/mix.yaml", MIX)
    sources = at(migration, "stages.0.data.sources")
    assert sources == [
        {
            "annotations": "/data/llava_v1_5_mix665k.json",
            "sampling_strategy": "all",
            "images": "images",
            "num_samples": 665298,
        },
        {"annotations": "/data/chart qa.jsonl", "sampling_strategy": "first:10%", "images": "images"},
        {"annotations": "/data/math.json", "sampling_strategy": "random:20000", "images": "images"},
        {"annotations": "/data/end.json", "sampling_strategy": "end:500", "images": "images"},
        {"annotations": "/data/plain.json", "images": "images"},
    ]
    load_source(migration.text, "recipe.yaml")
    assert not entries(migration, "lost")
    reported = {entry.name: entry.key for entry in entries(migration, "mapped")}
    assert reported["--data_path"] == reported["--image_folder"] == "data.sources"


def test_names_in_braces_become_sources() -> None:
    migration = of_path("'/data/{a,b c}.json'", None)
    assert at(migration, "stages.0.data.sources") == [
        {"annotations": "/data/a.json", "images": "images"},
        {"annotations": "/data/b c.json", "images": "images"},
    ]
    assert not entries(migration, "lost")
    assert names_in_braces("/data/a.json") is None


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "- a",
        "datasets: []",
        "datasets: {a: 1}",
        "datasets: [{sampling_strategy: all}]",
        "a: [",
        "\t",
    ],
)
def test_a_list_that_cannot_be_followed_is_reported_as_lost(text: str | None) -> None:
    migration = of_path("scripts/mix.yaml", text)
    (lost,) = entries(migration, "lost")
    assert lost.name == "--data_path"
    assert "write each as an entry of `sources:`" in lost.remark


def test_keys_without_a_place_are_reported() -> None:
    mix = read_mix("datasets: [{json_path: a.json, conv_type: x, image_root: b}]", "mix.yaml")
    assert mix is not None
    assert mix.lost == ("conv_type", "image_root")
    migration = of_path("mix.yaml", "datasets: [{json_path: a.json, image_root: b}]")
    (lost,) = entries(migration, "lost")
    assert "no key for `image_root`" in lost.remark


def test_a_mix_is_found_beside_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "mix.yaml").write_text(MIX)
    script = tmp_path / "scripts" / "train.sh"
    script.write_text(BARE.replace("data.json", "scripts/mix.yaml") + " --model_max_length 2048\n")
    recipe = tmp_path / "recipe.yaml"
    assert main(["migrate", str(script), "-o", str(recipe)]) == 0
    capsys.readouterr()
    loaded = load_recipe(str(recipe)).recipe
    assert len(loaded.stages[0].data.sources) == 5
    assert loaded.stages[0].data.sources[1].sampling_strategy == "first:10%"


def test_a_held_out_share_comes_along() -> None:
    config = """\
model_name_or_path: lmsys/vicuna-7b-v1.5
finetuning_type: full
template: vicuna
dataset: a
val_size: 0.1
eval_strategy: steps
eval_steps: 50
output_dir: out
"""
    migration = migrate(config, "config.yaml")
    assert at(migration, "stages.0.data.validation.split") == 0.1
    assert at(migration, "stages.0.train.eval_strategy") == "steps"
    assert at(migration, "stages.0.train.eval_steps") == 50
