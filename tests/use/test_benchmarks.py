"""`llava-recipe eval --tasks`: the process of lmms-eval, what it wrote, and published scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import JsonValue

from llava_recipes.cli.main import main
from llava_recipes.errors import RecipeError
from llava_recipes.use.benchmarks import command, read_published, scores_of

FAKE = Path(__file__).with_name("fake_lmms_eval.py")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exported folder, as far as it is looked at before lmms-eval starts; and lmms-eval in its place."""
    (tmp_path / "path" / "lmms_eval").mkdir(parents=True)
    (tmp_path / "path" / "lmms_eval" / "__init__.py").touch()
    (tmp_path / "path" / "lmms_eval" / "__main__.py").write_text(FAKE.read_text())
    (tmp_path / "path" / "decord.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    folder = tmp_path / "my-llava"
    folder.mkdir()
    config = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_scores_stand_beside_the_published_ones(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(model), "--tasks=gqa,mme,own", "--limit=8", "--device=cpu"]) == 0
    shown = [line.split("│")[1:-1] for line in capfd.readouterr().out.splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in row] for row in shown]
    assert rows == [
        ["GQA", "exact_match", "60.0", "62.0", "-2.0", "63.3", "-3.3"],
        ["MME perception", "mme_perception_score", "1,500.5", "1,510.7", "-10.2", "1,531.3", "-30.8"],
        ["mme", "mme_cognition_score", "300", "", "", "", ""],
        ["own", "hits", "0.25", "", "", "", ""],
    ]
    written = json.loads((model / "benchmarks.json").read_text())
    assert [score["value"] for score in written["scores"]] == [60.0, 1500.5, 300.0, 0.25]
    assert written["scores"][0]["published"] == {"LLaVA-1.5 7B": 62.0, "LLaVA-1.5 13B": 63.3}
    assert written["lmms_eval_version"] == "0.7.3" and written["limit"] == 8
    (results,) = (model / "lmms_eval" / "my-llava").glob("*_results.json")
    assert json.loads(results.read_text())["config"] == {
        "limit": "8",
        "device": "cpu",
        "model_args": f"pretrained={model},device_map=cpu,trust_remote_code=False",
    }


def test_a_run_is_exported_for_the_while(model: Path, runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = model / "results.json"
    assert main(["eval", str(runs / "v1"), "--tasks=gqa", "--device=cpu", f"-o={out}"]) == 0
    printed = capfd.readouterr().out
    assert f"model: {runs / 'v1'}, exported for lmms-eval into a temporary folder" in printed
    assert "opened again, it gives the run's logits" in printed
    (results,) = (model / "lmms_eval").rglob("*_results.json")
    words = json.loads(results.read_text())["config"]["model_args"].split(",")
    exported = Path(words[0].removeprefix("pretrained="))
    assert exported.name == "v1" and not exported.exists()
    assert json.loads(out.read_text())["scores"][0]["value"] == 60.0


def test_an_error_that_it_hides_is_reported(
    model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LMMS_EVAL", "fails")
    assert main(["eval", str(model), "--tasks=gqa", "--device=cpu"]) == 1
    assert capfd.readouterr().err.startswith(
        f"lmms-eval left no results\nfound: exit code 0; nothing new in {model / 'lmms_eval'}\n"
    )
    assert not (model / "benchmarks.json").exists()


def test_a_model_that_brings_code_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"processor_class": "Mine", "auto_map": {"AutoProcessor": "mine.Mine"}}
    (model / "processor_config.json").write_text(json.dumps(settings))
    assert main(["eval", str(model), "--tasks=gqa", "--device=cpu"]) == 1
    assert capsys.readouterr().err.startswith(
        "`auto_map` names code to run; this program never runs code that comes with a model\n"
        f'found: {model / "processor_config.json"}: {{"AutoProcessor": "mine.Mine"}}\n'
    )
    assert not (model / "lmms_eval").exists()


def test_without_lmms_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tmp_path), "--tasks=gqa"]) == 1
    assert capsys.readouterr().err == (
        "--tasks needs lmms-eval, which is not installed\n"
        "found: no module lmms_eval, decord\n"
        "hint:  pip install '.[eval]' in the checkout; `--data FILE` measures without it\n"
    )


def test_a_batch_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(model), "--tasks=gqa", "--batch-size=4"]) == 2
    assert "takes one question at a time" in capsys.readouterr().err


def test_a_name_that_would_be_taken_apart() -> None:
    with pytest.raises(RecipeError, match="cannot read a folder with this name"):
        command(Path("/a,b"), "gqa", output=Path("out"), device="cpu", dtype=None, limit=None, include=None)


def test_published_scores_have_their_counterparts() -> None:
    published = read_published()
    assert len(published.tasks) == 12 and len(published.models) == 2
    assert all(len(task.scores) == 2 for task in published.tasks.values())
    figures: dict[str, JsonValue] = {
        task: {f"{known.metric},none": 0.5} for task, known in published.tasks.items()
    }
    scores = scores_of({"results": figures}, published)
    assert all(score.published is not None for score in scores)
    # lmms-eval gives shares of 1 where papers give percent.
    assert {score.task: score.value for score in scores}["vqav2_val"] == 50.0
