"""A mix of sources, with several images and with none, and what is held out of it: what really trains."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llava_recipes.cli.main import main
from tests.processes import ROOT, python, run_process, run_to_end
from tests.tiny import FIXTURES, read_metrics, stage1_values, write_recipe


def several_images(folder: Path) -> str:
    """Records of none to four images, in one turn and in several, as chat messages."""
    images = ["rgb_wide.jpg", "rgb_tall.jpg", "gray_l.png", "pal_p.png"]
    lines = []
    for number in range(8):
        shown = images[: number % 5]
        first, rest = shown[:2], shown[2:]
        parts = [{"type": "image"}] * len(first) + [{"type": "text", "text": f"What is in image {number}?"}]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": f"A shape, number {number}."},
            {"role": "user", "content": "<image>\n" * len(rest) + "And now?"},
            {"role": "assistant", "content": "Another one."},
        ]
        record = {"id": f"many_{number}", "messages": messages}
        lines.append(json.dumps(record | ({"images": shown} if shown else {})))
    file = folder / "many.jsonl"
    file.write_text("\n".join(lines))
    return str(file)


def mix(folder: Path, *, processes: int, deepspeed: str = "none", **train: Any) -> Path:
    """Of one file 12 records less 2 held out, of the other 8 less 1, twice: 24 samples, 6 steps an epoch."""
    folder.mkdir()
    values = stage1_values(
        folder / "run",
        num_train_epochs=2,
        per_device_train_batch_size=4 // processes,
        loss_normalization="token",
        eval_strategy="steps",
        eval_steps=3,
        **train,
    )
    stage = values["stages"][0]
    images = str(FIXTURES / "images")
    stage["data"] |= {
        "template": "v1",
        "max_length": 512,
        "sources": [
            {
                "annotations": str(FIXTURES / "stage2_clean.json"),
                "images": images,
                "sampling_strategy": "random:12",
            },
            {"annotations": several_images(folder), "images": images, "weight": 2.0},
        ],
        "validation": {"split": 3},
    }
    stage["deepspeed"] = deepspeed
    return write_recipe(values, folder / "recipe.yaml")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """A run in one process, and the ids that it drew."""
    folder = tmp_path_factory.mktemp("mix") / "one"
    recipe = mix(folder, processes=1, per_device_eval_batch_size=2)
    done = run_process([*python("tests.train.recording_ids"), recipe, folder / "ids.json"], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    drawn: dict[str, list[str]] = json.loads((folder / "ids.json").read_text())
    return folder / "run", drawn


def test_what_trains_is_what_the_recipe_says(recorded: tuple[Path, dict[str, list[str]]]) -> None:
    run, drawn = recorded
    per_epoch = len(drawn["trained"]) // 2
    epochs = [Counter(drawn["trained"][:per_epoch]), Counter(drawn["trained"][per_epoch:])]
    assert epochs[0] == epochs[1]
    assert drawn["trained"][:per_epoch] != drawn["trained"][per_epoch:]
    known = {record["id"] for record in json.loads((FIXTURES / "stage2_clean.json").read_text())}
    trained = epochs[0]
    measured = set(drawn["measured"])
    assert len(measured) == 3
    assert not measured & set(trained)
    assert {count for name, count in trained.items() if name in known} == {1}
    assert {count for name, count in trained.items() if name not in known} == {2}
    chosen = {name for name in {*trained, *measured} if name in known}
    assert len(chosen) == 12
    assert {*trained, *measured} - known == {f"many_{number}" for number in range(8)}
    lines = read_metrics(run)
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [3, 6, 9, 12]
    assert Counter(drawn["measured"]) == dict.fromkeys(measured, len(evaluations))


@pytest.mark.parametrize(("deepspeed", "eval_batch"), [("none", 1), ("zero2", 3), ("zero3", 2)])
def test_the_losses_do_not_depend_on_processes_and_batches(
    deepspeed: str,
    eval_batch: int,
    recorded: tuple[Path, dict[str, list[str]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = mix(tmp_path / "two", processes=2, deepspeed=deepspeed, per_device_eval_batch_size=eval_batch)
    said = run_to_end(recipe, "--processes", "2")
    ours, theirs = read_metrics(tmp_path / "two" / "run"), read_metrics(recorded[0])
    for name in ("loss", "eval_loss"):
        values = [[line[name] for line in lines if name in line] for lines in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert main(["preview", str(recipe), "--validation", "--samples", "0:9", "--format", "jsonl"]) == 0
    shown = capsys.readouterr().out
    num_learned = sum(
        label != -100 for line in shown.splitlines() for label in json.loads(line)["labels"][1:]
    )
    assert {line["eval_tokens"] for line in [*ours, *theirs] if "eval_loss" in line} == {num_learned}
    last = [line["eval_loss"] for line in ours if "eval_loss" in line][-1]
    assert json.loads((tmp_path / "two" / "run" / "DONE").read_text())["eval_loss"] == last
    assert f"validation loss {last:.4f}  (3 samples" in said
    state = json.loads((tmp_path / "two" / "run" / "trainer_state.json").read_text())
    assert [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry][-1] == last
