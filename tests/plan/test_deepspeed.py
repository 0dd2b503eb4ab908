"""DeepSpeed configs: the original's presets, contradictions, and "auto" values as in transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import (
    DeepSpeedZeroOffloadOptimizerConfig,
    DeepSpeedZeroOffloadParamConfig,
)
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS
from llava_recipes.errors import Problem
from llava_recipes.plan.arguments import keyword_arguments
from llava_recipes.plan.batch import BatchSizes
from llava_recipes.plan.deepspeed import (
    check_config,
    complete,
    effective_deepspeed,
    original_file,
    preset,
    unknown_choice,
    zero_stage,
)
from llava_recipes.recipe.schema import Train
from llava_recipes.versions import training_arguments
from tests.plan.recipes import compiled, stage_values

PATH = ("stages", 0, "deepspeed")
LISTED = f"presets: {', '.join(DEEPSPEED_PRESETS)}, none"
BATCH = BatchSizes(per_device=4, accumulation=2, in_all=64)
ZERO2: dict[str, Any] = {
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {
        "stage": 2,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
    },
}


def train(**values: Any) -> Train:
    return Train.model_validate({"learning_rate": 1e-3, "num_train_epochs": 1.0, "bf16": True, **values})


def check(config: dict[str, Any], *, inline: bool = True, **values: Any) -> list[Problem]:
    return check_config(config, train=train(**values), batch=BATCH, path=PATH, inline=inline)


def test_zero2_is_the_original_config_and_says_where_to_clip() -> None:
    assert original_file("zero2") == ZERO2
    assert preset("zero2", max_grad_norm=1.0) == {**ZERO2, "gradient_clipping": 1.0}


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        # SHA-256 of scripts/zero2.json and scripts/zero3.json of haotian-liu/LLaVA.
        ("zero2", "bb7d7a3360f8181c132e8666e6045cb75fa8a1a225d2b79148c1136fe99eaaa4"),
        ("zero3", "8d25d1f104be517b09152d6398a7352a8db4956f956565ec2ed8af58feba7a81"),
    ],
)
def test_presets_are_the_original_files_to_the_byte(name: str, digest: str) -> None:
    text = json.dumps(original_file(name), indent=4).replace("1000000000.0", "1e9")
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_the_offload_preset_is_zero_3_with_all_of_it_in_main_memory() -> None:
    """As scripts/zero3_offload.json of haotian-liu/LLaVA, without its optimizer, schedule and log keys."""
    offload, three = original_file("zero3_offload"), original_file("zero3")
    blocks = offload["zero_optimization"]
    assert isinstance(blocks, dict)
    moved = {key: blocks.pop(key) for key in ("offload_optimizer", "offload_param")}
    assert offload == three
    assert moved == {key: {"device": "cpu", "pin_memory": True} for key in moved}


def test_a_preset_is_a_fresh_copy() -> None:
    zero = preset("zero2", max_grad_norm=1.0)["zero_optimization"]
    assert isinstance(zero, dict)
    zero.clear()
    assert original_file("zero2") == ZERO2


@pytest.mark.parametrize("name", DEEPSPEED_PRESETS)
@pytest.mark.parametrize("norm", [0, 0.5, 1.0])
def test_a_preset_clips_where_the_recipe_does(name: str, norm: float) -> None:
    assert preset(name, max_grad_norm=norm)["gradient_clipping"] == norm


@pytest.mark.parametrize("clipping", ["auto", 0, 0.5])
def test_what_a_config_says_stays(clipping: object) -> None:
    offload = {"device": "cpu", "pin_memory": False}
    config: dict[str, Any] = {
        "gradient_clipping": clipping,
        "zero_optimization": {"stage": 3, "offload_optimizer": offload},
    }
    assert complete(config, max_grad_norm=1.0) == config


def test_an_offload_says_whether_it_pins_its_memory() -> None:
    zero: dict[str, Any] = {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "none"},
    }
    given: dict[str, Any] = {"zero_optimization": zero}
    completed = complete(given, max_grad_norm=1.0)["zero_optimization"]
    assert completed == {**zero, "offload_optimizer": {"device": "cpu", "pin_memory": True}}
    assert "pin_memory" not in zero["offload_optimizer"]


def test_no_default_differs_between_deepspeeds_versions_that_is_not_written_out() -> None:
    """The installed version's defaults are the lowest allowed one's, but for what `complete` writes."""
    lowest = json.loads((Path(__file__).parent / "deepspeed_0_19_3_defaults.json").read_text())
    blocks = {
        "offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig(),
        "offload_param": DeepSpeedZeroOffloadParamConfig(),
    }
    zero = "zero_optimization"
    installed = {
        f"{zero}.{key}": value for key, value in DeepSpeedZeroConfig().model_dump(mode="json").items()
    }
    for block, model in blocks.items():
        installed |= {f"{zero}.{block}.{key}": value for key, value in model.model_dump(mode="json").items()}
    bare: dict[str, Any] = {zero: {"stage": 3, **{block: {"device": "cpu"} for block in blocks}}}
    written: Any = complete(bare, max_grad_norm=1.0)
    reported = {
        f"{zero}.{block}.{key}"
        for block in blocks
        for key in written[zero][block]
        if key not in bare[zero][block]
    }
    assert reported == {f"{zero}.{block}.pin_memory" for block in blocks}
    assert len(lowest) > 50
    assert {key: installed[key] for key in lowest if key not in reported} == {
        key: value for key, value in lowest.items() if key not in reported
    }


@pytest.mark.parametrize(
    ("offload", "optim", "is_reported"),
    [
        ({"device": "cpu"}, "adamw_torch", False),
        ({"device": "cpu"}, "sgd", True),
        ({"device": "none"}, "sgd", False),
        (None, "sgd", False),
    ],
)
def test_an_optimizer_that_offload_would_replace(offload: Any, optim: str, is_reported: bool) -> None:
    zero = {"zero_optimization": {"stage": 2, "offload_optimizer": offload}}
    problems = check({**ZERO2, **zero}, optim=optim)
    assert [problem.path for problem in problems] == [
        (*PATH, "zero_optimization", "offload_optimizer")
    ] * is_reported
    forced = {**ZERO2, **zero, "zero_force_ds_cpu_optimizer": False}
    assert check(forced, optim=optim) == []


def test_a_misspelled_key_of_zero_is_reported() -> None:
    (problem,) = check({**ZERO2, "zero_optimization": {"stage": 2, "overlap_com": True}})
    assert problem.path == (*PATH, "zero_optimization", "overlap_com")
    assert problem.hint == "did you mean `overlap_comm`?"


def test_a_removed_key_of_zero_is_reported() -> None:
    (problem,) = check({**ZERO2, "zero_optimization": {"stage": 3, "mics_shard_size": -1}})
    assert problem.path == (*PATH, "zero_optimization", "mics_shard_size")
    assert "no key `mics_shard_size` since 0.19.8" in problem.message


@pytest.mark.parametrize("name", DEEPSPEED_PRESETS)
@pytest.mark.parametrize("precision", [{"bf16": True}, {"bf16": False}, {"bf16": False, "fp16": True}])
def test_presets_agree_with_every_recipe(name: str, precision: dict[str, bool]) -> None:
    assert check(preset(name, max_grad_norm=0.3), max_grad_norm=0.3, **precision) == []


@pytest.mark.parametrize(
    ("change", "settings", "path", "message"),
    [
        ({"bf16": {"enabled": False}}, {}, ("bf16", "enabled"), "the recipe says `bf16: true`"),
        ({"bf16": {"enabled": True}}, {"bf16": False}, ("bf16", "enabled"), "the recipe says `bf16: false`"),
        ({"fp16": {"enabled": True}}, {}, ("fp16", "enabled"), "the recipe says `fp16: false`"),
        ({"bf16": None}, {}, (), "does not enable bf16"),
        ({"amp": {"enabled": True}}, {}, ("amp", "enabled"), "`amp.enabled` of DeepSpeed"),
        ({"amp": {"enabled": False}}, {}, ("amp",), "no key `amp` since 0.19.8"),
        ({"elasticity": {"enabled": False}}, {}, ("elasticity",), "no key `elasticity` since 0.19.8"),
        (
            {"train_batch_size": 128},
            {},
            ("train_batch_size",),
            "`train_batch_size: 128`, the recipe results in 64",
        ),
        (
            {"train_micro_batch_size_per_gpu": 8},
            {},
            ("train_micro_batch_size_per_gpu",),
            "`train_micro_batch_size_per_gpu: 8`, the recipe results in 4",
        ),
        (
            {"gradient_accumulation_steps": 1},
            {},
            ("gradient_accumulation_steps",),
            "`gradient_accumulation_steps: 1`, the recipe results in 2",
        ),
        (
            {"gradient_accumulation_steps": None},
            {},
            (),
            "2 accumulation steps, but DeepSpeed takes 1",
        ),
        (
            {"train_micro_batch_size_per_gpu": None, "train_batch_size": None},
            {},
            (),
            "has no batch size",
        ),
        (
            {"gradient_clipping": 0.5},
            {},
            ("gradient_clipping",),
            "the DeepSpeed config says `gradient_clipping: 0.5`",
        ),
        (
            {"optimizer": {"type": "AdamW"}},
            {},
            ("optimizer",),
            "would replace the recipe's `optim: adamw_torch`",
        ),
        (
            {"scheduler": {"type": "WarmupLR"}},
            {},
            ("scheduler",),
            "would replace the recipe's `lr_scheduler_type: cosine`",
        ),
        ({"zero_optimization": None}, {}, (), "has no `zero_optimization`"),
        ({"zero_optimization": {"stage": 4}}, {}, ("zero_optimization", "stage"), "0, 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            {},
            ("zero_optimization", "offload_param"),
            "needs ZeRO stage 3",
        ),
        ({"zero_optimisation": {}}, {}, ("zero_optimisation",), "no key `zero_optimisation`"),
    ],
)
def test_contradictions_are_reported_at_their_key(
    change: dict[str, Any], settings: dict[str, Any], path: tuple[str, ...], message: str
) -> None:
    config = {key: value for key, value in (ZERO2 | change).items() if value is not None}
    (problem,) = check(config, **settings)
    assert problem.path == (*PATH, *path)
    assert message in problem.message
    (from_file,) = check(config, inline=False, **settings)
    assert from_file.path == PATH
    assert ".".join(path) in from_file.message


def test_equal_values_are_no_contradiction() -> None:
    same = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2}
    assert check(ZERO2 | same | {"gradient_clipping": 1.0, "bf16": {"enabled": True}}) == []


def test_keys_that_resemble_nothing_are_left_alone() -> None:
    assert check(ZERO2 | {"my_own_launcher_setting": 1}) == []


def test_every_contradiction_is_reported_at_once() -> None:
    config = ZERO2 | {"train_batch_size": 1, "optimizer": {}, "bf16": {"enabled": False}}
    assert len(check(config)) == 3


@pytest.mark.parametrize(
    ("word", "message", "hint"),
    [
        ("zero_2", "unknown DeepSpeed preset 'zero_2'", "did you mean `zero2`?"),
        ("fancy", "unknown DeepSpeed preset 'fancy'", LISTED),
        ("./scripts/zero2.json", "DeepSpeed config not found", "check the path, or write `deepspeed: zero2`"),
        ("./ds.json", "DeepSpeed config not found", LISTED),
        ("zero2.json", "DeepSpeed config not found", "check the path, or write `deepspeed: zero2`"),
    ],
)
def test_a_word_that_is_no_preset_and_no_file(word: str, message: str, hint: str) -> None:
    problem = unknown_choice(word, path=PATH)
    assert (problem.message, problem.path) == (message, PATH)
    assert problem.hint is not None and problem.hint.startswith(hint)


def test_the_stage_of_a_config() -> None:
    assert [zero_stage(config) for config in (None, {}, ZERO2)] == [0, 0, 2]


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"gradient_clipping": True}, ("gradient_clipping",), "`gradient_clipping: True`"),
        ({"fp16": "auto"}, ("fp16",), "`fp16` must be a mapping"),
        ({"stage": 3.0}, ("stage",), "must be 0, 1, 2 or 3"),
        ({"stage": True}, ("stage",), "must be 0, 1, 2 or 3"),
        ({"offload_optimizer": "cpu"}, ("offload_optimizer",), "`offload_optimizer` must be a mapping"),
        ({"stage": 3, "offload_param": ["cpu"]}, ("offload_param",), "`offload_param` must be a mapping"),
        ({"offload_optimizer": {"device": None}}, ("offload_optimizer", "device"), "none, cpu, nvme"),
        ({"offload_optimizer": {"device": {}}}, ("offload_optimizer", "device"), "none, cpu, nvme"),
        (
            {"offload_optimizer": {"device": "cpu", "pin_memory": None}},
            ("offload_optimizer", "pin_memory"),
            "true or false",
        ),
        ({"cpu_offload": True}, ("cpu_offload",), "`cpu_offload` is deprecated"),
        ({"gradient_clipping_in_zero": 1}, ("gradient_clipping_in_zero",), "has no key"),
    ],
    ids=str,
)
def test_what_deepspeed_would_stop_at_is_reported_before(
    change: dict[str, Any], path: tuple[str, ...], message: str
) -> None:
    at_the_top = set(change) <= {"gradient_clipping", "fp16"}
    config = ZERO2 | (change if at_the_top else {"zero_optimization": {"stage": 2} | change})
    (problem,) = check(config, max_grad_norm=1.0)
    assert problem.path == (*PATH, *(() if at_the_top else ("zero_optimization",)), *path)
    assert message in problem.message


INLINE = {
    "bf16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "gradient_accumulation_steps": 3,
    "train_micro_batch_size_per_gpu": "auto",
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000},
}


BF16 = {"bf16": True}


@pytest.mark.parametrize(
    ("engine", "precision"), [("zero2", {}), ("zero2", BF16), ("zero3", {}), ("zero3", BF16), (INLINE, BF16)]
)
def test_every_auto_is_filled_in_as_transformers_does(
    engine: str | dict[str, Any], precision: dict[str, bool]
) -> None:
    train = {
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "max_grad_norm": 0.5,
        **precision,
    }
    stage = compiled(stage_values(deepspeed=engine, train=train)).stages[0]
    wanted = training_arguments({**keyword_arguments(stage.train), "bf16": False})
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, **wanted)
    arguments.bf16 = stage.train.precision == "bf16"
    theirs = HfTrainerDeepSpeedConfig(stage.deepspeed)
    theirs.trainer_config_process(arguments)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=64))
    theirs.trainer_config_finalize(arguments, model, 25)
    ours = effective_deepspeed(stage, world_size=1, hidden=64)
    assert "auto" not in str(ours)
    assert ours == theirs.config


def test_the_plan_keeps_its_auto() -> None:
    stage = compiled(stage_values(deepspeed="zero2")).stages[0]
    assert effective_deepspeed(stage, world_size=8, hidden=64)["train_batch_size"] == 32  # type: ignore[index]
    assert stage.deepspeed is not None and stage.deepspeed["train_batch_size"] == "auto"


def test_sizes_that_are_not_known_stay_auto() -> None:
    stage = compiled(stage_values(deepspeed="zero2")).stages[0]
    config = effective_deepspeed(stage, world_size=1, hidden=None)
    assert config is not None and config["zero_optimization"]["reduce_bucket_size"] == "auto"  # type: ignore[index,call-overload]


def test_without_deepspeed_there_is_none() -> None:
    assert effective_deepspeed(compiled(stage_values()).stages[0], world_size=1, hidden=64) is None
