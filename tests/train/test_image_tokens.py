"""Start and end tokens: two rows of embeddings that train while all others stay, and are handed on."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_recipes.data.prompts import IGNORED, Prompts
from llava_recipes.data.tokenizer import load_tokenizer
from llava_recipes.model.learned_rows import ORIGINAL_KEY
from llava_recipes.recipe.load import load_source
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.templates import Turn
from llava_recipes.use.opened import open_run
from tests.processes import run_to_end
from tests.tiny import FIXTURES, read_metrics, stage1_values, write_recipe, yaml_text
from tests.train.in_process import train_all, weights_of

EMBEDDINGS, HEAD = "language_model.embed_tokens.weight", "lm_head.weight"
NEW = (1000, 1001)


def token_values(folder: Path, **train: Any) -> dict[str, Any]:
    """Projector and image tokens on conversations, images and text; then all but the tower."""
    values = stage1_values(folder / "one", max_steps=3, weight_decay=0.1, warmup_ratio=0.0, **train)
    values["model"]["image_tokens"] = {"start_end": True}
    first = values["stages"][0]
    del first["train"]["num_train_epochs"]
    first["trainable"] = ["projector", "image_tokens"]
    first["data"]["template"] = "v1"
    first["data"]["sources"][0]["annotations"] = str(FIXTURES / "stage2_clean.json")
    second = json.loads(json.dumps(first))
    second |= {"name": "finetune", "freeze": ["vision_tower"], "trainable": []}
    second["output_dir"] = str(folder / "two")
    values["stages"].append(second)
    return values


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    train_all(token_values(folder))
    return folder


def test_only_the_two_rows_move(pipeline: Path) -> None:
    values = token_values(pipeline)
    before, after = weights_of(values), weights_of(values, pipeline / "one")
    mean = before[EMBEDDINGS][: NEW[0]].mean(dim=0)
    for token in NEW:
        torch.testing.assert_close(before[EMBEDDINGS][token], mean)
        assert not torch.equal(after[EMBEDDINGS][token], mean)
    assert not torch.equal(*(after[EMBEDDINGS][token] for token in NEW))
    for name, tensor in before.items():
        if name == EMBEDDINGS:
            assert torch.equal(after[name][: NEW[0]], tensor[: NEW[0]])
        elif name.startswith("projector."):
            assert not torch.equal(after[name], tensor), name
        else:
            # The head has new rows too, and the original does not train them here.
            assert torch.equal(after[name], tensor), name


def test_two_rows_are_saved_beside_the_projector(pipeline: Path) -> None:
    binary = torch.load(pipeline / "one" / "mm_projector.bin", weights_only=True)
    safe = load_file(pipeline / "one" / "mm_projector.safetensors")
    assert (
        set(binary)
        == set(safe)
        == {ORIGINAL_KEY}
        | {f"model.mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    )
    assert binary[ORIGINAL_KEY].shape == (2, 32)
    trained = load_file(pipeline / "one" / "trained.safetensors")
    assert torch.equal(trained["image_tokens.weight"], binary[ORIGINAL_KEY])
    assert EMBEDDINGS not in trained
    opened = open_run(pipeline / "one").assembled.model
    assert torch.equal(opened.get_input_embeddings().weight[list(NEW)], binary[ORIGINAL_KEY])
    plan = json.loads((pipeline / "one" / "plan.json").read_text())["stages"][0]
    assert plan["num_trainable_parameters"] == 2 * 32 + 2 * (32 * 32 + 32)
    assert plan["trainable_modules"] == ["projector", "image_tokens"]


def test_the_next_stage_starts_from_them(pipeline: Path) -> None:
    """All three ways to hand them on come to the same first loss, which is that of no other beginning."""
    first_loss = read_metrics(pipeline / "two")[0]["loss"]
    losses = {}
    for name, start in {
        "folder": {"init_from": str(pipeline / "one")},
        "file": {"init_from": "base"},
        "nothing": {"init_from": "base"},
    }.items():
        values = token_values(pipeline / name)
        if name == "file":
            values["model"]["projector"]["init_from"] = str(pipeline / "one" / "mm_projector.bin")
        stage = values["stages"].pop(1) | start
        stage["train"] |= {"max_steps": 1}
        values["stages"] = [stage]
        train_all(values)
        losses[name] = read_metrics(pipeline / name / "two")[0]["loss"]
    assert losses["folder"] == pytest.approx(first_loss, rel=1e-6)
    assert losses["file"] == pytest.approx(first_loss, rel=1e-6)
    assert losses["nothing"] != pytest.approx(first_loss, rel=1e-4)


def test_what_the_original_saves_is_taken(pipeline: Path, tmp_path: Path) -> None:
    """Its Stage 1 trains and saves the embeddings of all tokens; the last two are put back, as there."""
    binary = torch.load(pipeline / "one" / "mm_projector.bin", weights_only=True)
    whole = torch.randn(1002, 32)
    torch.save({**binary, ORIGINAL_KEY: whole}, tmp_path / "mm_projector.bin")
    values = token_values(tmp_path)
    before = weights_of(values)
    values["model"]["projector"]["init_from"] = str(tmp_path / "mm_projector.bin")
    after = weights_of(values)
    assert torch.equal(after[EMBEDDINGS][1000:], whole[1000:])
    assert torch.equal(after[EMBEDDINGS][:1000], before[EMBEDDINGS][:1000])
    assert torch.equal(after[HEAD], before[HEAD])


def test_plain_writes_the_tokens_where_they_train(tmp_path: Path) -> None:
    """Captions, for which the original leaves the tokens out: and stops, where they are to be learned."""
    values = token_values(tmp_path)
    values["stages"] = values["stages"][:1]
    data = values["stages"][0]["data"]
    data["template"] = "plain"
    data["sources"][0]["annotations"] = str(FIXTURES / "stage1.json")
    turns = [Turn("human", "<image>\nWhat is it?"), Turn("gpt", "a cat")]
    before = weights_of(values)
    written = {}
    for trainable in (["projector"], ["projector", "image_tokens"]):
        values["stages"][0]["trainable"] = trainable
        plan = plan_recipe(load_source(yaml_text(values), "recipe.yaml"), world_size=1)
        tokenizer = load_tokenizer(plan.model.language_model, plan.model.image_tokens)
        prompts = Prompts(plan.stages[0].data, tokenizer, start_end=True)
        written[len(trainable)] = prompts.encode(turns, has_image=True)
        assert prompts.encode_prompt(turns[:1], has_image=True) == [
            token for token, label in zip(*astuple(written[len(trainable)]), strict=True) if label == IGNORED
        ]
    (bos, image, *caption), (*with_tokens, first) = written[1].input_ids, written[2].input_ids[:5]
    assert with_tokens == [bos, NEW[0], image, NEW[1]]
    # A word after a special token is spelled without a space before it.
    assert tokenizer.decode(first) == tokenizer.decode(caption[0]).strip()
    assert written[2].labels == [IGNORED] * 4 + written[2].input_ids[4:]
    (after,) = train_all(values)
    for token, row in zip(NEW, after["image_tokens.weight"], strict=True):
        assert not torch.equal(row, before[EMBEDDINGS][token])


def test_tied_embeddings_and_half_precision(tmp_path: Path) -> None:
    """The rows train where head and embeddings are one, which stays as it is; in float32 beside bfloat16."""
    values = token_values(tmp_path, bf16=True)
    values["stages"] = values["stages"][:1]
    config = {"model_type": "llama", "vocab_size": 1000, "hidden_size": 32, "intermediate_size": 64}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "tie_word_embeddings": True}
    values["model"]["language_model"] = {"config": config, "tokenizer": str(FIXTURES / "tiny_vicuna")}
    before = weights_of(values)
    (after,) = train_all(values)
    assert HEAD not in after
    assert torch.equal(after[EMBEDDINGS].float(), before[EMBEDDINGS].bfloat16().float())
    rows = after["image_tokens.weight"]
    assert rows.dtype == torch.float32 and not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize(("processes", "deepspeed"), [(2, "none"), (1, "zero2"), (2, "zero3")])
def test_engines_agree(processes: int, deepspeed: str, pipeline: Path, tmp_path: Path) -> None:
    """Begun where the first stage ended, so that two rows are put back, trained and read again."""
    for folder, share, engine in ((tmp_path, processes, deepspeed), (tmp_path / "reference", 1, "none")):
        values = token_values(folder, loss_normalization="token", per_device_train_batch_size=4 // share)
        values["stages"] = values["stages"][:1]
        values["stages"][0] |= {"deepspeed": engine, "init_from": str(pipeline / "one")}
        if engine == "none" and share == 1:
            train_all(values)
        else:
            run_to_end(write_recipe(values, folder / "recipe.yaml"), "--processes", str(share))
    ours, theirs = (
        load_file(folder / "one" / "trained.safetensors") for folder in (tmp_path, tmp_path / "reference")
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() <= 1e-5, name
    binary = torch.load(tmp_path / "one" / "mm_projector.bin", weights_only=True)
    assert torch.equal(binary[ORIGINAL_KEY], ours["image_tokens.weight"])
