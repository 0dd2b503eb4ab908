"""Keys and values that are nearly right, or right elsewhere: what is proposed means the same."""

from __future__ import annotations

import random
import re

import pytest

from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS
from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.recipe.explain import unknown_key
from llava_recipes.recipe.language import homes, keys_at
from llava_recipes.recipe.load import load_source
from llava_recipes.recipe.names import EXTRA_FIELDS, GONE_FIELDS, REFUSED_FIELDS
from llava_recipes.recipe.renames import OTHER_NAMES
from llava_recipes.recipe.value_hints import deepspeed_hint
from llava_recipes.runner.facts import compile_loaded

TRAIN: KeyPath = ("stages", 0, "train")
PLACES: tuple[KeyPath, ...] = (
    (), ("model",), ("model", "language_model"), ("model", "vision_tower"), ("model", "projector"),
    ("stages", 0), TRAIN, ("stages", 0, "data"), ("stages", 0, "data", "sources", 0), ("stages", 0, "lora"),
)  # fmt: skip


def hint_of(*path: str | int) -> str:
    return str(unknown_key(path, 1).hint)


def slips(key: str) -> set[str]:
    """The key with one letter left out, doubled, changed, or swapped with the next."""
    places = range(len(key))
    return {
        *(key[:at] + key[at + 1 :] for at in places),
        *(key[:at] + key[at] + key[at:] for at in places),
        *(key[:at] + "q" + key[at + 1 :] for at in places),
        *(key[:at] + key[at + 1 : at + 2] + key[at] + key[at + 2 :] for at in places),
    }


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)) or "top")
def test_one_slip_names_the_key_that_was_meant(place: KeyPath) -> None:
    known = keys_at(place)
    typos = sorted((typo, key) for key in known if len(key) > 2 for typo in slips(key) if typo not in known)
    assert typos
    for typo, key in random.Random(0).sample(typos, min(60, len(typos))):
        if typo and typo not in homes() and typo not in OTHER_NAMES:
            assert f"`{key}`" in hint_of(*place, typo), typo


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("per_device_batch_size", "per_device_train_batch_size"),
        ("device_batch_size", "per_device_train_batch_size"),
        ("train_micro_batch_size_per_gpu", "per_device_train_batch_size"),
        ("eval_batch_size", "per_device_eval_batch_size"),
        ("val_batch_size", "per_device_eval_batch_size"),
        ("total_batch_size", "global_batch_size"),
        ("accumulate_grad_batches", "gradient_accumulation_steps"),
        ("base_lr", "learning_rate"),
        ("LR", "learning_rate"),
        ("max_epochs", "num_train_epochs"),
        ("max_iters", "max_steps"),
        ("grad_clip", "max_grad_norm"),
        ("warmup_iters", "warmup_steps"),
        ("warmup_proportion", "warmup_ratio"),
        ("cutoff_len", "max_length"),
        ("precision", "bf16"),
        ("dtype", "bf16"),
        ("log_every_n_steps", "logging_steps"),
        ("lora_rank", "r"),
        ("dora", "use_dora"),
    ],
)
def test_a_word_of_another_program_names_its_own_key(word: str, key: str) -> None:
    assert re.search(rf"`{key}(:|`)", hint_of(*TRAIN, word))


def test_what_is_as_near_to_two_keys_names_both() -> None:
    assert hint_of(*TRAIN, "bp16") == "did you mean `bf16` or `fp16`?"
    assert hint_of(*TRAIN, "adam_beta") == "did you mean `adam_beta1` or `adam_beta2`?"


@pytest.mark.parametrize("word", ["path", "batches", "stride", "precisions", "weights", "ds_conf"])
def test_a_short_word_is_no_slip_of_a_key_that_belongs_elsewhere(word: str) -> None:
    assert "did you mean" not in hint_of("model", "projector", word)


def test_a_field_of_hugging_face_is_sent_where_it_is_taken() -> None:
    for field in sorted({*EXTRA_FIELDS, *REFUSED_FIELDS, *GONE_FIELDS} - set(keys_at(TRAIN)) - set(homes())):
        hint = hint_of(*TRAIN, field)
        assert ("`extra: {" in hint) == (field in EXTRA_FIELDS), (field, hint)
        assert "did you mean" not in hint, (field, hint)


def test_a_comma_inside_braces_is_named() -> None:
    """`{learning_rate: 1,5e-4}` is a rate of 1 and a key `5e-4` without a value."""
    assert "write decimals after a `.`" in str(unknown_key((*TRAIN, "5e-4"), None).hint)


@pytest.mark.parametrize("word", ["zero-2", "zero_2", "stage2", "ZeRO2", "z2", "ds_z2", "2", "zero-stage-2"])
def test_names_of_zero_2(word: str) -> None:
    assert deepspeed_hint(word) == "did you mean `zero2`?"


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("spelling", ["zero{}", "stage{}", "z{}"])
def test_a_stage_without_a_preset_is_not_taken_for_another(stage: int, spelling: str) -> None:
    hint = deepspeed_hint(spelling.format(stage))
    if f"zero{stage}" in DEEPSPEED_PRESETS:
        assert hint == f"did you mean `zero{stage}`?"
    else:
        assert hint.startswith(f"stage {stage} has no preset; presets: none, ")


@pytest.mark.parametrize("word", ["zero4", "stage4", "fsdp"])
def test_what_is_no_stage_is_not_taken_for_a_preset(word: str) -> None:
    assert "did you mean" not in deepspeed_hint(word)


@pytest.mark.parametrize("word", ["no", "off", "False", "null", "disabled"])
def test_words_for_no_deepspeed(word: str) -> None:
    assert deepspeed_hint(word) == "write `none` to train without DeepSpeed"


RECIPE = """\
version: 1
name: example
model:
  language_model: lmsys/vicuna-7b-v1.5
  vision_tower: {source: openai/clip-vit-large-patch14-336}
  projector: {init_from: projector.bin}
stages:
  - name: only
    output_dir: out
    data: {template: TEMPLATE, sources: [{annotations: a.json, images: b}]}
    train: {num_train_epochs: 1, bf16: true, global_batch_size: 128, TRAIN}
    KEYS
"""


@pytest.mark.parametrize(
    "keys",
    [
        "trainable: [projector]",
        "trainable: ['proj*']",
        "trainable: [projector, language_model, lm_head]",
        "trainable: [vision_tower]",
        "trainable: [projector, 'vision_tower.encoder.layers.{20..23}']",
        "trainable: ['**']",
        "freeze: none",
        "freeze: [vision_tower]",
        "lora: {r: 8}",
        "{lora: {r: 8}, trainable: [projector]}",
    ],
)
@pytest.mark.parametrize("written", ["", "learning_rate: null"])
def test_a_missing_learning_rate_is_given_for_what_trains(keys: str, written: str) -> None:
    text = RECIPE.replace("KEYS", keys.strip("{}") if keys.startswith("{") else keys)
    text = text.replace("lora: {r: 8}, trainable: [projector]", "lora: {r: 8}\n    trainable: [projector]")
    text = text.replace("TEMPLATE", "plain" if keys == "trainable: [projector]" else "v1")
    with pytest.raises(RecipeError) as caught:
        load_source(text.replace("TRAIN", written or "seed: 1"), "f.yaml")
    (problem,) = caught.value.problems
    rate = re.search(r"`learning_rate: ([^`]*)`", str(problem.hint))
    assert rate is not None
    loaded = load_source(text.replace("TRAIN", f"learning_rate: {rate[1]}"), "f.yaml")
    warnings = compile_loaded(loaded, world_size=1).warnings
    assert not [warning.message for warning in warnings if "learning rate" in warning.message]


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        ("deepspeed: 3", "did you mean `zero3`?"),
        ("deepspeed: false", "write `none` to train without DeepSpeed"),
        ("deepspeed: true", "presets: none"),
        ("trainable: all", "write `freeze: none`"),
        ("trainable: projector", "write `[projector]`"),
    ],
)
def test_a_value_of_another_kind_is_not_sent_into_the_next_error(keys: str, hint: str) -> None:
    text = RECIPE.replace("KEYS", keys).replace("TRAIN", "learning_rate: 1e-3").replace("TEMPLATE", "v1")
    with pytest.raises(RecipeError) as caught:
        load_source(text, "f.yaml")
    key = keys.partition(":")[0]
    (problem,) = (each for each in caught.value.problems if each.path and each.path[-1] == key)
    assert str(problem.hint).startswith(hint)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("llama3", "llama_3"),
        ("llama2", "llava_llama_2"),
        ("llama-2", "llama_2"),
        ("vicuna", "v1"),
        ("phi2", "v1"),
        ("Plain", "plain"),
        ("v1_mtag", "v1_mmtag"),
    ],
)
def test_a_template_is_not_taken_for_one_of_another_model(written: str, meant: str) -> None:
    text = RECIPE.replace("KEYS", "trainable: [projector]").replace("TRAIN", "learning_rate: 1e-3")
    with pytest.raises(RecipeError) as caught:
        load_source(text.replace("TEMPLATE", written), "f.yaml")
    assert f"`{meant}`" in str(caught.value.problems[0].hint)


@pytest.mark.parametrize("written", ["llama4", "phi4", "qwen3_5", "v9"])
def test_a_template_of_another_number_is_not_guessed(written: str) -> None:
    text = RECIPE.replace("KEYS", "trainable: [projector]").replace("TRAIN", "learning_rate: 1e-3")
    with pytest.raises(RecipeError) as caught:
        load_source(text.replace("TEMPLATE", written), "f.yaml")
    assert caught.value.problems[0].hint is None


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *((word, "adamw_torch") for word in ("adam", "adamw", "AdamW", "adamw_hf", "paged_adamw")),
        ("adamw_4bit", "adamw_torch"),
        ("adamw_torch_fuse", "adamw_torch_fused"),
    ],
)
def test_an_optimizer_that_is_not_known(written: str, meant: str) -> None:
    text = RECIPE.replace("KEYS", "trainable: [projector]").replace("TEMPLATE", "plain")
    loaded = load_source(text.replace("TRAIN", f"learning_rate: 1e-3, optim: {written}"), "f.yaml")
    with pytest.raises(RecipeError) as caught:
        compile_loaded(loaded, world_size=1)
    assert meant in str(caught.value.problems[0].hint)


def test_what_is_written_instead_of_another_programs_name_exists() -> None:
    """Every key that a hint names, such as `seed:`, is one of the language."""
    named = {key for hint in OTHER_NAMES.values() for key in re.findall(r"`(\w+):", hint)}
    assert len(named) > 40 and named <= set(homes())
