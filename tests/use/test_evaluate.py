"""Measures on an annotated file, compared with a count by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from llava_recipes.cli.main import main
from llava_recipes.data.dataset import StageDataset
from llava_recipes.data.prompts import IGNORED
from llava_recipes.model.forward import crop_features, stock_forward
from llava_recipes.model.generate import embed_with_images
from llava_recipes.use.evaluate import normalized
from llava_recipes.use.opened import open_to_ask
from tests.tiny import FIXTURES

IMAGES = str(FIXTURES / "images")


def evaluate(run: Path, data: Path, out: Path, *options: str) -> dict[str, Any]:
    words = (str(run), f"--data={data}", f"--images={IMAGES}", f"-o={out}", *options)
    assert main(["eval", *words]) == 0
    measures: dict[str, Any] = json.loads(out.read_text("utf-8"))["measures"]
    return measures


@torch.no_grad()
def count_by_hand(run: Path) -> tuple[float, int, int]:
    """Sum of losses, right tokens and tokens over the fixture, one by one with transformers' forward."""
    opened = open_to_ask(str(run), precision="fp32", device="cpu", base=None)
    assembled, data = opened.run.assembled, opened.run.data
    model = assembled.model
    dataset = StageDataset(data, assembled.tokenizer, assembled.image_processor, start_end=False)
    total, num_right, num_tokens = 0.0, 0, 0
    for index in range(len(dataset)):
        sample = dataset[index]
        images = [crop_features(model, image.crops)[0] for image in sample.images]
        # An unknown token is lost from the text, as in training: it is the padding too.
        kept = sample.input_ids != assembled.tokenizer.unk_token_id
        input_ids = sample.input_ids[kept]
        embeds_TD = embed_with_images(model, input_ids.tolist(), images)
        widths = torch.where(input_ids < 0, assembled.num_image_tokens, 1)
        labels = sample.labels[kept].repeat_interleave(widths)
        with stock_forward(model):
            logits = model(inputs_embeds=embeds_TD[None]).logits[0]
        learned = labels[1:] != IGNORED
        targets = labels[1:][learned]
        total += float(cross_entropy(logits[:-1][learned], targets, reduction="sum"))
        num_right += int((logits[:-1][learned].argmax(-1) == targets).sum())
        num_tokens += len(targets)
    return total, num_right, num_tokens


def test_loss_and_accuracy_are_those_counted_by_hand(runs: Path, tmp_path: Path) -> None:
    total, num_right, num_tokens = count_by_hand(runs / "v1")
    data = FIXTURES / "stage1.json"
    found = [
        evaluate(runs / "v1", data, tmp_path / f"{size}.json", f"--batch-size={size}", "--metrics=loss")
        for size in (1, 5)
    ]
    for measures in found:
        assert measures["num_tokens"] == num_tokens
        assert measures["loss"] == pytest.approx(total / num_tokens, rel=1e-5)
        assert measures["perplexity"] == pytest.approx(math.exp(total / num_tokens), rel=1e-4)
        assert measures["token_accuracy"] == num_right / num_tokens
        assert "exact_match" not in measures


def test_what_the_model_says_matches_itself(runs: Path, tmp_path: Path) -> None:
    asked = [
        {"image": "rgb_0.jpg", "prompt": "<image>\nWhat is it?"},
        {"image": "rgb_tall.jpg", "prompt": "<image>\nWhat is it?"},
        {"prompt": "Say something."},
    ]
    questions, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    questions.write_text("".join(json.dumps(record) + "\n" for record in asked))
    words = [str(runs / "v1"), f"--input={questions}", f"--images={IMAGES}", f"-o={answers}"]
    assert main(["generate", *words, "--max-new-tokens=6"]) == 0
    said = [json.loads(line)["answer"] for line in answers.read_text("utf-8").splitlines()]
    assert all(normalized(answer) for answer in said)

    def match(*references: str) -> tuple[float, float]:
        records = [
            {
                **({"image": record["image"]} if "image" in record else {}),
                "conversations": [
                    {"from": "human", "value": record["prompt"]},
                    {"from": "gpt", "value": reference},
                ],
            }
            for record, reference in zip(asked, references, strict=True)
        ]
        data = tmp_path / "data.json"
        data.write_text(json.dumps(records))
        options = ("--metrics=exact_match", "--max-new-tokens=6", "--overwrite")
        measures = evaluate(runs / "v1", data, tmp_path / "eval.json", *options)
        assert measures["num_answers"] == 3
        return measures["exact_match"], measures["exact_match_normalised"]

    assert match(*said) == (1.0, 1.0)
    assert match(said[0], f" {said[1]}\n", "something else altogether") == (2 / 3, 2 / 3)
    assert match(*(f"{answer.swapcase()}!" for answer in said)) == (0.0, 1.0)


def test_every_answer_of_a_conversation_counts(runs: Path, tmp_path: Path) -> None:
    turns = [("human", "<image>\nOne?"), ("gpt", "a"), ("human", "And <image>?"), ("gpt", "b")]
    record = {
        "image": ["rgb_0.jpg", "rgb_wide.jpg"],
        "conversations": [{"from": role, "value": text} for role, text in turns],
    }
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(record) + "\n" + json.dumps(record) + "\n")
    assert evaluate(runs / "v1", data, tmp_path / "a.json", "--max-new-tokens=3")["num_answers"] == 4
    limited = evaluate(runs / "v1", data, tmp_path / "b.json", "--max-new-tokens=3", "--limit=1")
    assert limited["num_answers"] == 2


def test_what_cannot_be_measured(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, good = str(runs / "v1"), FIXTURES / "stage1.json"
    (tmp_path / "eval.json").write_text("mine")
    out = f"-o={tmp_path / 'eval.json'}"
    assert main(["eval", run, f"--data={good}", out]) == 1
    assert "already exists" in capsys.readouterr().err
    assert (tmp_path / "eval.json").read_text() == "mine"
    bad = tmp_path / "bad.json"
    bad.write_text('[{"id": "x", "conversations": [{"from": "human", "value": "a"}], "image": "rgb_0.jpg"}]')
    assert main(["eval", run, f"--data={bad}", f"-o={tmp_path / 'new.json'}"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f'{bad}:1:2: sample 0 (id "x"): <image> tags and images differ in number')
    assert not (tmp_path / "new.json").exists()


@given(st.text())
def test_normalized_is_the_same_for_what_it_takes_away(text: str) -> None:
    once = normalized(text)
    assert normalized(once) == once == normalized(f" {text}\n.") == normalized(f"“{text}”!")


def test_normalized_keeps_what_says_something() -> None:
    assert normalized("  A red,  BIG Square. ") == "a red big square"
    assert normalized("Straße 7") == "strasse 7"
    assert normalized("3 > 2") != normalized("3 < 2")
