"""Base weights reach their places: the numbers are those of the language model by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import JsonValue
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlavaForConditionalGeneration, PreTrainedModel

from llava_recipes.errors import RecipeError
from llava_recipes.model.assemble import assemble, build_skeleton
from llava_recipes.model.forward import stock_forward
from tests.model.plans import CLIP, INLINE_CLIP, VICUNA, plan_of

SIZES: dict[str, JsonValue] = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LANGUAGE_MODELS: dict[str, dict[str, JsonValue]] = {
    "llama": {"model_type": "llama"},
    "llama3 rope": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "tied llama": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 8},
    "qwen2": {"model_type": "qwen2"},
    "tied qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "phi (head with bias)": {"model_type": "phi"},
    "gemma2 (soft cap)": {"model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 0.05},
    "cohere (scale)": {"model_type": "cohere", "logit_scale": 0.25},
    "granite (divisor)": {"model_type": "granite", "logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "gpt_neox (other names)": {"model_type": "gpt_neox", "num_key_value_heads": None},
}


def _config(values: dict[str, JsonValue]) -> dict[str, JsonValue]:
    known = AutoConfig.for_model(str(values["model_type"])).to_dict()
    sizes = {key: value for key, value in SIZES.items() if key in known}
    return {key: value for key, value in {**sizes, **values}.items() if value is not None}


def _saved(folder: Path, values: dict[str, JsonValue], **kwargs: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    config = _config(values)
    causal: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    with torch.no_grad():
        for name, parameter in causal.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    causal.save_pretrained(folder, **kwargs)
    for file in VICUNA.glob("*token*"):
        shutil.copy(file, folder)
    return causal


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids).logits
    return logits


def _assembled_logits(model: LlavaForConditionalGeneration, ids: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad(), stock_forward(model):
        stock = _logits(model, ids)
    with torch.no_grad():
        ours = model(input_ids=ids, is_image=torch.zeros_like(ids, dtype=torch.bool)).logits
    assert torch.equal(ours, stock)
    return stock


IDS = torch.randint(3, 1000, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_logits_are_those_of_the_language_model(name: str, tmp_path: Path) -> None:
    _saved(tmp_path, LANGUAGE_MODELS[name])
    model = assemble(plan_of(language=tmp_path, tower_config=INLINE_CLIP), dtype=torch.float32).model
    expected = _logits(AutoModelForCausalLM.from_pretrained(tmp_path), IDS)
    torch.testing.assert_close(_assembled_logits(model, IDS), expected, rtol=0, atol=1e-6)
    assert type(model) is LlavaForConditionalGeneration
    tied = "tied" in name or "soft cap" in name or "cohere" in name
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (
        tied or model.config.tie_word_embeddings
    )


def _as_bin(folder: Path, causal: PreTrainedModel, *, shards: int) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    names = list(causal.state_dict())
    if shards == 1:
        torch.save(causal.state_dict(), folder / "pytorch_model.bin")
        return
    weight_map = {
        name: f"pytorch_model-{index % shards + 1:05}-of-{shards:05}.bin" for index, name in enumerate(names)
    }
    for file_name in set(weight_map.values()):
        part = {name: tensor for name, tensor in causal.state_dict().items() if weight_map[name] == file_name}
        torch.save(part, folder / file_name)
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


@pytest.mark.parametrize("layout", ["safetensors shards", "bin", "bin shards"])
def test_every_file_layout_gives_the_same_model(layout: str, tmp_path: Path) -> None:
    size = "60KB" if layout == "safetensors shards" else "1GB"
    causal = _saved(tmp_path, LANGUAGE_MODELS["llama"], max_shard_size=size)
    if layout.startswith("bin"):
        _as_bin(tmp_path, causal, shards=3 if "shards" in layout else 1)
    if "shards" in layout:
        assert len(list(tmp_path.glob("*-of-*"))) > 1
    model = assemble(plan_of(language=tmp_path, tower_config=INLINE_CLIP), dtype=torch.float32).model
    torch.testing.assert_close(_assembled_logits(model, IDS), _logits(causal, IDS), rtol=0, atol=1e-6)


def test_weights_of_the_right_dtype_stay_mapped_and_others_are_cast(tmp_path: Path) -> None:
    causal = _saved(tmp_path, LANGUAGE_MODELS["llama"])
    plan = plan_of(language=tmp_path, tower_config=INLINE_CLIP)
    model = assemble(plan, dtype=torch.bfloat16).model
    for name, parameter in model.model.language_model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, causal.model.get_parameter(name).to(torch.bfloat16)), name
    assert model.model.language_model.rotary_emb.inv_freq.dtype == torch.float32


def test_training_writes_nothing_into_the_base_files(tmp_path: Path) -> None:
    _saved(tmp_path, LANGUAGE_MODELS["llama"])
    before = (tmp_path / "model.safetensors").read_bytes()
    model = assemble(plan_of(language=tmp_path, tower_config=INLINE_CLIP), dtype=torch.float32).model
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_seed_gives_the_weights_that_transformers_draws_with_it() -> None:
    config = _config(LANGUAGE_MODELS["llama"])
    model = assemble(
        plan_of(language_config=config, tower_config=INLINE_CLIP, seed=7), dtype=torch.float32
    ).model
    torch.manual_seed(7)
    expected = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert torch.equal(_assembled_logits(model, IDS), _logits(expected, IDS))


def test_assembling_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    plan = plan_of(language_config=_config(LANGUAGE_MODELS["llama"]), tower_config=INLINE_CLIP)
    first = assemble(plan, dtype=torch.float32).model.state_dict()
    assert torch.equal(torch.rand(4), expected)
    second = assemble(plan, dtype=torch.float32).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_skeleton_has_the_same_names_and_shapes_and_no_weights() -> None:
    for plan in (plan_of(), plan_of(start_end=True, projector="linear"), plan_of(tower_config=INLINE_CLIP)):
        skeleton, model = build_skeleton(plan), assemble(plan, dtype=torch.float32).model
        assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
        shapes = {name: parameter.shape for name, parameter in skeleton.named_parameters()}
        assert shapes == {name: parameter.shape for name, parameter in model.named_parameters()}


def test_the_skeleton_reads_no_weight_file(tmp_path: Path) -> None:
    for file in VICUNA.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    assert build_skeleton(plan_of(language=tmp_path)) is not None
    with pytest.raises(RecipeError, match="contains no weights"):
        assemble(plan_of(language=tmp_path), dtype=torch.float32)


@pytest.mark.parametrize(
    ("start_end", "patch", "num_added"), [(True, False, 2), (False, True, 1), (True, True, 3)]
)
def test_added_tokens_start_as_the_mean_of_the_known_ones(
    start_end: bool, patch: bool, num_added: int
) -> None:
    base = assemble(plan_of(), dtype=torch.float32).model
    assembled = assemble(plan_of(start_end=start_end, patch=patch), dtype=torch.float32)
    model = assembled.model
    assert len(assembled.tokenizer) == 1000 + num_added
    assert model.config.text_config.vocab_size == assembled.language_config["vocab_size"] == 1000 + num_added
    for grown, known in (
        (model.get_input_embeddings().weight, base.get_input_embeddings().weight),
        (model.lm_head.weight, base.lm_head.weight),
    ):
        assert grown.shape == (1000 + num_added, 32) and torch.equal(grown[:1000], known)
        torch.testing.assert_close(grown[1000:], known.mean(dim=0).expand(num_added, -1))


def test_added_tokens_use_spare_rows_before_they_grow_the_embeddings(tmp_path: Path) -> None:
    causal = _saved(tmp_path, {"model_type": "llama", "vocab_size": 1010})
    model = assemble(
        plan_of(language=tmp_path, tower_config=INLINE_CLIP, start_end=True), dtype=torch.float32
    ).model
    rows, known = model.get_input_embeddings().weight, causal.get_input_embeddings().weight
    assert rows.shape == known.shape
    assert torch.equal(rows[:1000], known[:1000]) and torch.equal(rows[1002:], known[1002:])
    torch.testing.assert_close(rows[1000:1002], known[:1000].mean(dim=0).expand(2, -1))


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def _save(folder: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_unexpected_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    _saved(tmp_path, LANGUAGE_MODELS["llama"])
    whole = _tensors(tmp_path)
    plan = plan_of(language=tmp_path, tower_config=INLINE_CLIP)
    changed = dict(whole)
    changed["model.norm.other"] = changed.pop("model.norm.weight")
    _save(tmp_path, changed)
    with pytest.raises(RecipeError) as caught:
        assemble(plan, dtype=torch.float32)
    messages = [problem.message for problem in caught.value.problems]
    assert "missing: model.norm.weight" in messages[0] and "model.norm.other" in messages[1]
    assert caught.value.problems[0].path == ("model", "language_model")
    _save(tmp_path, {**whole, "model.norm.weight": torch.ones(31)})
    with pytest.raises(RecipeError, match=r"model.norm.weight has shape \[31\], the config says \[32\]"):
        assemble(plan, dtype=torch.float32)


def test_values_that_older_versions_saved_are_left_aside(tmp_path: Path) -> None:
    causal = _saved(tmp_path, LANGUAGE_MODELS["llama"])
    _save(tmp_path, {**_tensors(tmp_path), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    model = assemble(plan_of(language=tmp_path, tower_config=INLINE_CLIP), dtype=torch.float32).model
    torch.testing.assert_close(_assembled_logits(model, IDS), _logits(causal, IDS), rtol=0, atol=1e-6)


def test_two_tensors_for_tied_weights_must_agree(tmp_path: Path) -> None:
    _saved(tmp_path, LANGUAGE_MODELS["tied llama"])
    plan = plan_of(language=tmp_path, tower_config=INLINE_CLIP)
    tensors = _tensors(tmp_path)
    embedding = tensors["model.embed_tokens.weight"]
    _save(tmp_path, {**tensors, "lm_head.weight": embedding.clone()})
    assemble(plan, dtype=torch.float32)
    _save(tmp_path, {**tensors, "lm_head.weight": embedding + 1})
    with pytest.raises(RecipeError, match="ties embeddings and head"):
        assemble(plan, dtype=torch.float32)


def test_a_head_that_does_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    _saved(tmp_path, LANGUAGE_MODELS["llama"])
    stock = LlamaForCausalLM.forward

    def shifted(self: LlamaForCausalLM, *args: Any, **kwargs: Any) -> Any:
        output = stock(self, *args, **kwargs)
        output.logits = output.logits + 0.5
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", shifted)
    with pytest.raises(RecipeError, match="the head of LlamaForCausalLM does more"):
        assemble(plan_of(language=tmp_path, tower_config=INLINE_CLIP), dtype=torch.float32)


def test_a_head_that_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path, {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32})
    with pytest.raises(RecipeError, match="the head of OPTForCausalLM"):
        assemble(plan_of(language=tmp_path, tower_config=INLINE_CLIP), dtype=torch.float32)


def _broken(folder: Path, change: str) -> None:
    shutil.copytree(VICUNA, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    if change == "no config":
        (folder / "config.json").unlink()
    elif change == "config is no JSON":
        (folder / "config.json").write_text("{")
    elif change == "weights cut short":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    elif change == "shard missing":
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"lm_head.weight": "a"}})
        )
    elif change == "a tower":
        shutil.copy(CLIP / "config.json", folder)
    else:
        (folder / "config.json").write_text(json.dumps({**config, "model_type": change}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no config", "no config.json"),
        ("config is no JSON", "not valid JSON"),
        ("weights cut short", "cannot read weights"),
        ("shard missing", "are missing"),
        ("llava", "whole LLaVA model"),
        ("llava_llama", "whole LLaVA model"),
        ("no_such_type", "cannot read this model's config"),
        ("a tower", "no causal language model"),
    ],
)
def test_broken_language_models_are_refused(change: str, message: str, tmp_path: Path) -> None:
    _broken(tmp_path, change)
    with pytest.raises(RecipeError, match=message) as caught:
        assemble(plan_of(language=tmp_path), dtype=torch.float32)
    assert caught.value.problems[0].path == ("model", "language_model")


def test_a_tower_that_is_no_tower_and_one_without_processor(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="CLIP or SigLIP"):
        assemble(plan_of(tower=VICUNA), dtype=torch.float32)
    for file in CLIP.iterdir():
        if file.name != "preprocessor_config.json":
            shutil.copy(file, tmp_path)
    with pytest.raises(RecipeError, match=r"no preprocessor_config\.json"):
        assemble(plan_of(tower=tmp_path), dtype=torch.float32)


@pytest.mark.parametrize(
    "source", ["./no/such/folder", "/no/such", "no-such-model", "a/b/c", "~/nothing-here"]
)
def test_a_folder_that_is_not_there_is_refused(source: str) -> None:
    with pytest.raises(RecipeError, match="no such folder"):
        assemble(plan_of(language=Path(source)), dtype=torch.float32)


def test_a_hub_id_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RecipeError, match="the hub cannot be reached"):
        assemble(plan_of(language=Path("nobody/no-such-model")), dtype=torch.float32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 32}, "needs its `model_type`"),
        ({"model_type": "lama"}, "not a valid config"),
        ({"model_type": "llama", "hiden_size": 32}, "has no key 'hiden_size'"),
        ({"model_type": "llama", "hidden_size": "wide"}, "not a valid config"),
    ],
)
def test_inline_configs_with_faults_are_refused(config: dict[str, JsonValue], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        assemble(plan_of(language_config=config, tower_config=INLINE_CLIP), dtype=torch.float32)
