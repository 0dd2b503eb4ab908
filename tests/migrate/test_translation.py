"""What becomes of the flags of the three programs, of their defaults, and what is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llava_recipes.cli.migrate import read_beside
from llava_recipes.errors import RecipeError
from llava_recipes.migrate.draft import Entry, Migration, report_lines
from llava_recipes.migrate.migration import migrate
from llava_recipes.plan.deepspeed import Config, original_file
from llava_recipes.recipe.load import load_source
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.source import parse_value
from tests.migrate.plans import SCRIPTS, migrated, plan_of_text

BARE = """\
deepspeed llava/train/train_mem.py \\
    --model_name_or_path lmsys/vicuna-7b-v1.5 --version v1 \\
    --vision_tower openai/clip-vit-large-patch14-336 \\
    --data_path data.json --image_folder images --output_dir out"""


def run(flags: str = "", script: str = BARE) -> Migration:
    return migrate(f"{script} {flags}\n", "script.sh")


def values(migration: Migration) -> dict[str, Value]:
    root = parse_value(migration.text, "recipe.yaml").root
    assert isinstance(root, dict)
    return root


def at(migration: Migration, path: str) -> Value:
    """A value of the recipe by its dotted path; None where there is none."""
    place: Value = values(migration)
    for key in path.split("."):
        if isinstance(place, list):
            place = place[int(key)]
        else:
            place = place.get(key) if isinstance(place, dict) else None
    return place


def entries(migration: Migration, kind: str) -> list[Entry]:
    return [entry for _, found in migration.stages for entry in found if entry.kind == kind]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.projector.type", "linear"),
        ("model.vision_tower.select_layer", -1),
        ("model.image_tokens.patch", True),
        ("stages.0.data.max_length", 512),
        ("stages.0.data.image_aspect_ratio", "square"),
        ("stages.0.data.group_by", "none"),
        ("stages.0.data.lazy_preprocess", False),
        ("stages.0.train.num_train_epochs", 3),
        ("stages.0.train.learning_rate", 5e-5),
        ("stages.0.train.lr_scheduler_type", "linear"),
        ("stages.0.train.logging_steps", 500),
        ("stages.0.train.bf16", False),
        ("stages.0.trainable", ["projector", "language_model", "lm_head"]),
    ],
)
def test_a_flag_left_out_is_the_original_s_default_stated(path: str, value: Value) -> None:
    migration = run()
    assert at(migration, path) == value
    assert path.removeprefix("stages.0.") in {entry.key for entry in entries(migration, "default")}


def test_the_default_length_leaves_no_room_beside_an_image() -> None:
    with pytest.raises(RecipeError, match="leaves no room for text after an image"):
        plan_of_text(run().text)


def test_adapters_without_numbers_have_the_original_s() -> None:
    migration = run("--lora_enable True --mm_projector_lr 2e-5")
    lora = at(migration, "stages.0.lora")
    expected = {"r": 64, "alpha": 16, "dropout": 0.05, "modules": ["language_model"], "bias": "none"}
    assert lora == expected
    assert at(migration, "stages.0.trainable") == ["projector"]
    groups = [{"modules": ["projector"], "learning_rate": 2e-5}]
    assert at(migration, "stages.0.param_groups") == groups


@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ("--tune_mm_mlp_adapter True", ["projector"]),
        ("--tune_mm_mlp_adapter", ["projector"]),
        ("--tune_mm_mlp_adapter False", ["projector", "language_model", "lm_head"]),
        ("--tune_mm_mlp_adapter True --mm_use_im_start_end True", ["projector", "image_tokens"]),
        ("--freeze_mm_mlp_adapter True", ["language_model", "lm_head"]),
        ("--freeze_backbone True", ["projector", "lm_head"]),
        ("--tune_mm_mlp_adapter True --lora_enable True", ["projector"]),
        ("--unfreeze_mm_vision_tower True", ["projector", "language_model", "lm_head", "vision_tower"]),
        ("--mm_tunable_parts=mm_mlp_adapter", ["projector"]),
        (
            "--mm_tunable_parts mm_vision_tower,mm_mlp_adapter,mm_language_model --freeze_backbone True",
            ["projector", "language_model", "lm_head", "vision_tower"],
        ),
    ],
)
def test_what_trains(flags: str, trained: list[Value]) -> None:
    migration = run(flags)
    assert at(migration, "stages.0.freeze") == "all"
    assert at(migration, "stages.0.trainable") == trained
    assert at(migration, "stages.0.lora") is None
    load_source(migration.text, "recipe.yaml")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("--bits 2", "--bits"),
        ("--bits 2 --quant_type fp4", "--quant_type"),
        ("--eval_strategy steps", "--eval_strategy"),
        ("--report_to mlflow", "--report_to"),
        ("--mm_patch_merge_type spatial_unpad", "--mm_patch_merge_type"),
        ("--lerning_rate 1e-3", "--lerning_rate"),
        ("--label_smoothing_factor 0.1", "--label_smoothing_factor"),
        ("--neither_here_nor_there 1", "--neither_here_nor_there"),
        ("--mm_tunable_parts mm_vision_resampler", "--mm_tunable_parts"),
    ],
)
def test_what_would_change_the_run_is_lost(flags: str, name: str) -> None:
    assert name in {entry.name for entry in entries(run(flags), "lost")}


@pytest.mark.parametrize(
    ("flags", "quantization"),
    [
        ("--bits 4", {"bits": 4, "type": "nf4", "double_quant": True}),
        (
            "--bits 4 --quant_type fp4 --double_quant False",
            {"bits": 4, "type": "fp4", "double_quant": False},
        ),
        ("--bits 8 --double_quant True", {"bits": 8}),
    ],
)
def test_few_bits(flags: str, quantization: dict[str, Value]) -> None:
    migration = run(f"--lora_enable True {flags}")
    assert at(migration, "model.language_model") == {
        "source": "lmsys/vicuna-7b-v1.5",
        "quantization": quantization,
    }
    assert not entries(migration, "lost")
    load_source(migration.text, "recipe.yaml")


def test_16_bits_are_no_quantization() -> None:
    migration = run("--bits 16 --quant_type nf4")
    assert at(migration, "model.language_model") == "lmsys/vicuna-7b-v1.5"
    assert {entry.name for entry in entries(migration, "needless")} >= {"--bits", "--quant_type"}


def test_a_misspelled_flag_is_recognized() -> None:
    (entry,) = entries(run("--lerning_rate 1e-3"), "lost")
    assert entry.remark == "did you mean `--learning_rate`?"


@pytest.mark.parametrize(
    ("flag", "remark"),
    [
        ("vision_tower_aux", "a flag of the fork, or `--vision_tower` misspelled"),
        ("image_size_aux", "recipes have no key for it: a flag of the fork"),
    ],
)
def test_a_fork_may_have_flags_whose_names_are_near_ours(flag: str, remark: str) -> None:
    (entry,) = (
        entry
        for entry in entries(run(f"--{flag} x", BARE.replace("llava/", "mgm/")), "lost")
        if entry.name == f"--{flag}"
    )
    assert entry.remark.endswith(remark)


@pytest.mark.parametrize(
    ("flags", "path", "value"),
    [
        ("--max_steps 10 --num_train_epochs 2", "stages.0.train.max_steps", 10),
        ("--max_steps 10 --num_train_epochs 2", "stages.0.train.num_train_epochs", None),
        ("--max_steps -1 --num_train_epochs 2", "stages.0.train.num_train_epochs", 2),
        ("--num_train_epochs 0.5", "stages.0.train.num_train_epochs", 0.5),
        ("--warmup_steps 10 --warmup_ratio 0.1", "stages.0.train.warmup_ratio", None),
        ("--lr_scheduler_type constant --warmup_ratio 0.1", "stages.0.train.warmup_ratio", None),
        ("--report_to wandb tensorboard", "stages.0.train.report_to", ["wandb", "tensorboard"]),
        ("--report_to wandb,tensorboard", "stages.0.train.report_to", ["wandb", "tensorboard"]),
        ("'--report_to=tensorboard, wandb'", "stages.0.train.report_to", ["tensorboard", "wandb"]),
        ("--report_to wandb,wandb", "stages.0.train.report_to", "wandb"),
        ("--report_to none", "stages.0.train.report_to", "none"),
        ("--group_by_length True", "stages.0.data.group_by", "length"),
        ("--group_by_modality_length True", "stages.0.data.group_by", "modality_length"),
        ("--dataloader_drop_last True", "stages.0.train.extra.dataloader_drop_last", True),
        ("--learning-rate 1e-3", "stages.0.train.learning_rate", 1e-3),
        ("--bf16", "stages.0.train.bf16", True),
        ("--run_name a/b", "name", "a-b"),
        ("--learning_rate 1 --learning_rate 2e-5", "stages.0.train.learning_rate", 2e-5),
        ("--version plain", "stages.0.data.template", "plain"),
        ("--version v0", "stages.0.data.template", "v1"),
        ("--version default", "stages.0.data.template", "v0"),
        ("--version llava_llama_2", "stages.0.data.template", "llava_llama_2"),
        ("--version mistral_direct", "stages.0.data.template", "chatml_direct"),
        ("--version v0.5", "stages.0.data.template", "v1"),
        ("--version qwen_1_5", "stages.0.data.template", "qwen"),
        ("--version qwen_1_5 --mm_tunable_parts mm_mlp_adapter", "stages.0.data.template", "qwen"),
        ("--version llava_llama_3 --mm_tunable_parts mm_mlp_adapter", "stages.0.data.template", "llama_3"),
    ],
)
def test_flags_that_become_something_else(flags: str, path: str, value: Value) -> None:
    migration = run(flags)
    assert at(migration, path) == value
    load_source(migration.text, "recipe.yaml")


def test_a_missing_data_path_is_reported_as_missing_in_the_recipe() -> None:
    migration = run(script="python llava/train/train.py --version plain --output_dir out")
    with pytest.raises(RecipeError) as caught:
        load_source(migration.text, "recipe.yaml")
    reported = " ".join(problem.message for problem in caught.value.problems)
    assert all(key in reported for key in ("`language_model`", "`sources`", "`vision_tower`"))


@pytest.mark.parametrize(
    "launcher",
    [
        "python llava/train/train_mem.py",
        "python3 -m llava.train.train_mem",
        "torchrun --nproc_per_node=8 --nnodes 1 llava/train/train_mem.py",
        "python -m torch.distributed.run --nproc-per-node 8 llava/train/train_xformers.py",
        "accelerate launch --num_processes 8 llava/train/train_mem.py",
        "CUDA_VISIBLE_DEVICES=0 nohup deepspeed --include=localhost:0,1,2,3,4,5,6,7 ./llava/train/train.py",
        "srun --gres=gpu:8 deepspeed --num_gpus 8 --module llava.train.train_mem",
        "",
    ],
)
def test_any_launcher_will_do(launcher: str) -> None:
    flags = BARE.partition("\\\n")[2]
    migration = run(script=f"{launcher} {flags}".lstrip())
    assert at(migration, "model.language_model") == "lmsys/vicuna-7b-v1.5"
    says = "8" in launcher or "0,1,2" in launcher
    assert migration.num_processes == (8 if says else None)


def test_a_file_of_flags_may_have_one_on_each_line() -> None:
    text = "# what to train\n--version=plain\n--learning_rate 1e-3\n\n--output_dir 'my out'\n"
    migration = migrate(text, "flags.txt")
    assert at(migration, "stages.0.train.learning_rate") == 1e-3
    assert at(migration, "stages.0.output_dir") == "my out"


def test_a_deepspeed_file_that_holds_the_preset_is_the_preset(tmp_path: Path) -> None:
    same, other = tmp_path / "a.json", tmp_path / "zero2.json"
    same.write_text(json.dumps(original_file("zero3")), encoding="utf-8")
    other.write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8")
    for file, choice in ((same, "zero3"), (other, str(other)), (tmp_path / "none/zero2.json", "zero2")):
        text = f"{BARE} --deepspeed {file}\n"
        migration = migrate(text, "script.sh", read_beside=read_beside)
        assert at(migration, "stages.0.deepspeed") == choice


def test_a_deepspeed_file_in_another_folder_is_written_out(tmp_path: Path) -> None:
    """Its path in the script would lead nowhere from here."""
    folder = tmp_path / "checkout/scripts"
    folder.mkdir(parents=True)
    config = {"zero_optimization": {"stage": 1}}
    (folder / "own.json").write_text(json.dumps(config), encoding="utf-8")
    script = str(folder / "train.sh")
    migration = migrate(f"{BARE} --deepspeed scripts/own.json\n", script, read_beside=read_beside)
    assert at(migration, "stages.0.deepspeed") == config


@pytest.mark.parametrize("is_here", [True, False])
def test_zero2_with_offload_leaves_the_parameters_where_they_are(is_here: bool, tmp_path: Path) -> None:
    config = original_file("zero2")
    zero = config["zero_optimization"]
    assert isinstance(zero, dict)
    memory: Config = {"device": "cpu", "pin_memory": True}
    config["zero_optimization"] = {**zero, "offload_optimizer": memory, "offload_param": memory}
    if is_here:
        (tmp_path / "zero2_offload.json").write_text(json.dumps(config), encoding="utf-8")
    text = f"{BARE} --deepspeed {tmp_path}/zero2_offload.json\n"
    migration = migrate(text, "script.sh", read_beside=read_beside)
    assert at(migration, "stages.0.deepspeed.zero_optimization") == {**zero, "offload_optimizer": memory}
    assert at(migration, "stages.0.train.max_grad_norm") == 0
    load_source(migration.text, "recipe.yaml")


NEXT = "--mm_tunable_parts mm_mlp_adapter"
TINY = BARE.replace("llava/train/train_mem.py", "tinyllava/train/train.py")


@pytest.mark.parametrize(
    ("script", "flags", "clipping", "norm"),
    [
        # What DeepSpeed does without the key: nothing up to 0.19.2, and that is what these programs pin.
        (BARE, "", None, 0),
        (BARE, "--max_grad_norm 0.5", None, 0),
        (BARE, "--max_grad_norm 0", None, 0),
        (BARE, NEXT, None, 0),
        (TINY, "", None, 0),
        (BARE, "", "auto", 1.0),
        (BARE, "--max_grad_norm 0.5", "auto", 0.5),
        (BARE, "--max_grad_norm 0.5", 0.5, 0.5),
    ],
)
def test_clipping_is_what_the_deepspeed_file_makes_of_it(
    script: str, flags: str, clipping: object, norm: float, tmp_path: Path
) -> None:
    config = (
        original_file("zero2")
        if clipping is None
        else {**original_file("zero2"), "gradient_clipping": clipping}
    )
    (tmp_path / "my.json").write_text(json.dumps(config), encoding="utf-8")
    text = f"{script} {flags} --deepspeed {tmp_path}/my.json\n"
    migration = migrate(text, "script.sh", read_beside=read_beside)
    assert at(migration, "stages.0.deepspeed") == "zero2"
    assert at(migration, "stages.0.train.max_grad_norm") == norm
    reported = [
        entry
        for kind in ("default", "mapped")
        for entry in entries(migration, kind)
        if "doesn't clip without `gradient_clipping`, and my.json has none" in entry.remark
    ]
    assert bool(reported) == (clipping is None and "max_grad_norm 0 " not in f"{flags} ")
    assert {entry.name for entry in reported} <= {
        "--max_grad_norm" if "--max_grad_norm" in flags else "gradient_clipping"
    }
    assert ("not clipped: my.json has no gradient_clipping" in migration.text) == bool(reported)
    assert not [entry for entry in entries(migration, "needless") if entry.name == "--max_grad_norm"]


@pytest.mark.parametrize(
    ("flags", "norm"), [("--deepspeed x/zero3.json", 0), (f"{NEXT} --deepspeed x/zero3.json", 1.0), ("", 1.0)]
)
def test_clipping_of_a_file_that_is_not_here_goes_by_its_program(flags: str, norm: float) -> None:
    assert at(run(flags), "stages.0.train.max_grad_norm") == norm


def test_a_file_that_clips_elsewhere_than_the_flag_is_kept(tmp_path: Path) -> None:
    (tmp_path / "my.json").write_text(json.dumps({**original_file("zero2"), "gradient_clipping": 0.3}))
    migration = migrate(f"{BARE} --deepspeed {tmp_path}/my.json\n", "script.sh", read_beside=read_beside)
    assert at(migration, "stages.0.deepspeed") == str(tmp_path / "my.json")


@pytest.mark.parametrize(
    ("flags", "script", "order"),
    [
        ("", BARE, "original"),
        ("--unfreeze_mm_vision_tower True", BARE, "original"),
        (NEXT, BARE, "seed"),
        ("", TINY, None),
        ("", BARE.replace("llava/train", "mgm/train"), None),
    ],
)
def test_the_order_of_samples_is_that_of_the_program(flags: str, script: str, order: str | None) -> None:
    """LLaVA and Open-LLaVA-NeXT pin accelerate 0.21, the others a later one, which draws otherwise."""
    assert at(run(flags, script), "stages.0.data.order") == order


@pytest.mark.parametrize(
    ("flags", "program"),
    [
        ("", "LLaVA (llava/train/train_mem.py)"),
        ("--attn_implementation sdpa", "LLaVA (llava/train/train_mem.py)"),
        ("--mm_patch_merge_type flat", "LLaVA (llava/train/train_mem.py)"),
        ("--image_grid_pinpoints None", "LLaVA (llava/train/train_mem.py)"),
        (
            "--mm_patch_merge_type spatial_unpad --image_aspect_ratio anyres",
            "Open-LLaVA-NeXT (llava/train/train_mem.py; by `--mm_patch_merge_type`)",
        ),
        (NEXT, f"LLaVA-NeXT (llava/train/train_mem.py; by `{NEXT.split()[0]}`)"),
        ("--version qwen_1_5", "LLaVA-NeXT (llava/train/train_mem.py; by `--version qwen_1_5`)"),
        ("--version phi3_instruct", "LLaVA-pp (llava/train/train_mem.py; by `--version phi3_instruct`)"),
    ],
)
def test_the_report_says_what_identifies_the_program(flags: str, program: str) -> None:
    """Programs that share a path differ in the defaults that the recipe says; one flag may decide."""
    migration = run(flags)
    assert migration.programs == (program,)
    assert f"  program: {program}" in list(report_lines(migration, "script.sh"))
    is_next = program.startswith("LLaVA-NeXT")
    assert (at(migration, "stages.0.data.order") == "seed") == is_next
    lost = [entry.remark for entry in entries(migration, "lost") if entry.name == "program"]
    assert bool(lost) == program.startswith("LLaVA-pp")


@pytest.mark.parametrize(
    ("before", "flag", "shown"),
    [
        ("", "--run_name my-$(date +%Y%m%d)", "my-$(date +%Y%m%d)"),
        ("", '--run_name "my-`date`"', "my-$(date)"),
        ("", "--run-name=my-$(date)", "my-$(date)"),
        ("", "--run_name $(date +%F %T) more", "$(date +%F %T) more"),
        ("", "--run_name ${USER}_x", "${USER}_x"),
        ("", "--run_name $1", "${1}"),
        ("", "--run_name my-$((RANDOM % 9))", "my-$((RANDOM % 9))"),
        ("", "--run_name $'a\\tb'", "$…"),
        ("NOW=$(date)\n", "--run_name my-${NOW%:*}", "my-${NOW…}"),
        ("", "--logging_dir logs/$(date)", "logs/$(date)"),
        ("", "--local_rank $LOCAL_RANK", "${LOCAL_RANK}"),
    ],
)
@pytest.mark.parametrize("last", ["", " --learning_rate 1e-3"])
def test_a_label_that_only_a_shell_could_tell_is_left_out(
    before: str, flag: str, shown: str, last: str
) -> None:
    migration = run(flag + last, before + BARE)
    name = "--" + re.split("[ =]", flag)[0][2:].replace("-", "_")
    (entry,) = [found for found in entries(migration, "needless") if found.name == name]
    assert entry.value == shown and "label" in entry.remark and entry.mark is not None
    assert at(migration, "name") == "out"
    assert not entries(migration, "lost")
    if last:
        assert at(migration, "stages.0.train.learning_rate") == 1e-3


def test_a_label_is_no_excuse_for_what_training_needs() -> None:
    script = f"NAME=my-$(date)\n{BARE}/$NAME --run_name $NAME"
    with pytest.raises(RecipeError, match="needed but not evaluated"):
        migrate(script, "script.sh")
    flags = "--run_name $(date) --model_name_or_path a/b --vision_tower c/d --data_path e.json --output_dir o"
    (entry,) = [
        found for found in entries(migrate(flags, "args.txt"), "needless") if found.name == "--run_name"
    ]
    assert entry.value == "$(date)"


def test_two_stages_of_one_script_follow_each_other() -> None:
    first = f"{BARE}/one --model_max_length 2048 --tune_mm_mlp_adapter True"
    second = f"{BARE}/two --model_max_length 2048 --pretrain_mm_mlp_adapter out/one/mm_projector.bin"
    text = f"{first}\n\n{second}\n"
    plan = plan_of_text(migrate(text, "script.sh").text)
    assert [stage.name for stage in plan.stages] == ["pretrain", "finetune"]
    assert plan.stages[1].starts_from == ("out/one",)
    assert plan.model.projector.init_from is None
    alone = migrate(text, "script.sh", only=2)
    assert at(alone, "model.projector.init_from") == "out/one/mm_projector.bin"
    with pytest.raises(RecipeError, match="no number 3"):
        migrate(text, "script.sh", only=3)


def test_tinyllava_calls_a_script_for_each_stage() -> None:
    file = SCRIPTS / "tinyllava/train.sh"
    migration = migrate(file.read_text(encoding="utf-8"), str(file), read_beside=read_beside)
    assert not entries(migration, "lost")
    assert migration.num_processes == 4
    plan = plan_of_text(migration.text)
    first, second = plan.stages
    assert plan.recipe == "tiny-llava-TinyLlama-1.1B-Chat-v1.0-base-finetune"
    assert (first.trainable, first.data.template) == (("projector",), "plain")
    assert second.trainable[-1] == "vision_tower.encoder.layers.{20..23}"
    assert second.data.template == "v1"
    assert second.starts_from == (first.output_dir,)
    assert first.train.precision == "fp16"


@pytest.mark.parametrize(
    ("version", "template"),
    [
        *(
            ("llava_llama_3", "llama_3"),
            ("gemma_instruct", "gemma"),
            ("llava_mistral_instruct", "mistral_instruct"),
        ),
        *(("v1", "v1"), ("v0", "v0"), ("v0.5", "v0"), ("llava_v1_mmtag", "v1_mmtag")),
    ],
)
def test_llava_nexts_names_of_templates(version: str, template: str) -> None:
    text = (
        (SCRIPTS / "next/inner.sh")
        .read_text(encoding="utf-8")
        .replace("--version v1", f"--version {version}")
    )
    assert at(migrate(text, "inner.sh"), "stages.0.data.template") == template


def test_llava_next_is_complete() -> None:
    migration = migrated("next/finetune.sh")
    assert not entries(migration, "lost")
    groups = [{"modules": ["vision_tower"], "learning_rate": 2e-6}]
    assert at(migration, "stages.0.param_groups") == groups
    assert at(migration, "stages.0.data.image_grid_pinpoints.0") == [336, 672]
    assert at(migration, "stages.0.data.mm_patch_merge_type") == "spatial_unpad"
    assert at(migration, "stages.0.data.template") == "qwen"
    trained = ["projector", "language_model", "image_newline", "lm_head", "vision_tower"]
    assert at(migration, "stages.0.trainable") == trained
    assert (
        at(migration, "name") == "llavanext-openai_clip-vit-large-patch14-336-Qwen_Qwen2-7B-Instruct-finetune"
    )
    load_source(migration.text, "recipe.yaml")


@pytest.mark.parametrize(
    ("flags", "name", "kind"),
    [
        ("--image_aspect_ratio pad --mm_patch_merge_type spatial_unpad", "mm_patch_merge_type", "lost"),
        ("--image_aspect_ratio pad --mm_patch_merge_type spatial", "mm_patch_merge_type", "needless"),
        ("--image_aspect_ratio anyres --mm_patch_merge_type maxpool2x2", "mm_patch_merge_type", "lost"),
        ("--image_aspect_ratio anyres --mm_patch_merge_type flat", "mm_patch_merge_type", "mapped"),
        ("--image_aspect_ratio anyres_max_9 --mm_patch_merge_type flat", "mm_patch_merge_type", "mapped"),
        (
            "--image_aspect_ratio anyres_max_9 --image_grid_pinpoints '(1x1),...,(6x6)'",
            "image_grid_pinpoints",
            "lost",
        ),
        ("--image_grid_pinpoints '[(336, 672)]'", "image_grid_pinpoints", "needless"),
        (
            "--image_aspect_ratio anyres --image_grid_pinpoints '(1x1),...,(6x6)'",
            "image_grid_pinpoints",
            "lost",
        ),
        (
            "--image_aspect_ratio anyres --image_grid_pinpoints '[(336, 672)]'",
            "image_grid_pinpoints",
            "mapped",
        ),
        ("--image_aspect_ratio anyres --image_grid_pinpoints '[336, 672]'", "image_grid_pinpoints", "lost"),
    ],
)
def test_what_becomes_of_the_flags_of_images(flags: str, name: str, kind: str) -> None:
    (entry,) = (entry for _, reported in run(flags).stages for entry in reported if entry.name == f"--{name}")
    assert entry.kind == kind


def test_no_end_of_a_row_trains_where_images_have_one_part() -> None:
    migration = run(
        "--image_aspect_ratio pad --mm_patch_merge_type spatial_unpad --mm_tunable_parts mm_language_model"
    )
    assert at(migration, "stages.0.trainable") == ["language_model", "lm_head"]


def test_a_command_that_is_not_taken_may_miss_a_variable() -> None:
    text = f"{BARE} --seed $NOWHERE\n{BARE} --seed 7\n{BARE} --seed $NEITHER\n"
    assert at(migrate(text, "script.sh", only=2), "stages.0.train.seed") == 7
    with pytest.raises(RecipeError) as caught:
        migrate(text, "script.sh")
    assert [problem.code for problem in caught.value.problems] == ["variable-not-set"] * 2


def test_preferences_are_refused_before_the_variables_they_miss() -> None:
    with pytest.raises(RecipeError, match="trains on preferences"):
        migrate(f"{BARE} --seed $NOWHERE\n".replace("train_mem", "train_dpo"), "script.sh")


def test_a_command_inside_bash_c_behind_a_launcher() -> None:
    migration = migrated("next/inner.sh")
    assert migration.num_processes == 8
    assert at(migration, "name") == "llava-next-7b"
    rates = {"projector": 1e-5, "vision_tower": 2e-6}
    groups = [{"modules": [module], "learning_rate": rate} for module, rate in rates.items()]
    assert at(migration, "stages.0.param_groups") == groups
    load_source(migration.text, "recipe.yaml")


def test_places_inside_bash_c_are_places_in_the_file() -> None:
    text = (SCRIPTS / "next/inner.sh").read_text(encoding="utf-8").replace("BASE_LR}", "RATE}")
    with pytest.raises(RecipeError) as caught:
        migrate(text, "inner.sh")
    (problem,) = caught.value.problems
    assert problem.mark is not None
    line = text.splitlines()[problem.mark.line - 1]
    assert line[problem.mark.column - 1 :].startswith("${RATE}")


def test_the_rate_of_a_module_that_does_not_train_is_needless() -> None:
    migration = run("--mm_vision_tower_lr 2e-6")
    assert at(migration, "stages.0.param_groups") is None
    assert "--mm_vision_tower_lr" in {entry.name for entry in entries(migration, "needless")}


def test_a_quote_with_escapes_is_not_guessed() -> None:
    assert at(run("--run_name $'plain'"), "name") == "plain"
    with pytest.raises(RecipeError, match="a quote with escapes is needed"):
        run("--output_dir $'a\\tb'")


def test_a_backslash_at_the_very_end_continues_nothing() -> None:
    migration = migrate(f"{BARE} --report_to wandb \\", "script.sh")
    assert at(migration, "stages.0.train.report_to") == "wandb"
