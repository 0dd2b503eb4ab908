"""Scripts and configs in the manner of real programs and their forks, written for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from llava_recipes.recipe.scalars import Value

DATA = "stages.0.data"
TRAIN = "stages.0.train"
COMMON: Mapping[str, str] = {
    "model_name_or_path": "lmsys/vicuna-7b-v1.5",
    "version": "v1",
    "data_path": "a.json",
    "image_folder": "im",
    "vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": "-2",
    "mm_use_im_patch_token": "False",
    "image_aspect_ratio": "pad",
    "bf16": "True",
    "output_dir": "./out",
    "num_train_epochs": "1",
    "per_device_train_batch_size": "16",
    "gradient_accumulation_steps": "2",
    "learning_rate": "2e-5",
    "model_max_length": "2048",
    "lazy_preprocess": "True",
    "report_to": "none",
}


@dataclass(frozen=True)
class Shape:
    """A script or config, and its expected result: a refusal, or values and what is lost."""

    name: str
    text: str
    file: str = "run.sh"
    values: Mapping[str, Value] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    """Everything that is lost."""
    refused: str = ""
    """A part of the error's first message."""
    variables: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)
    """Files next to it, by path."""


def script(launcher: str, *, before: str = "", extra: str = "", without: str = "", **changes: str) -> str:
    flags = {**COMMON, **changes}
    lines = [f"--{name} {value}" for name, value in flags.items() if name not in without.split()]
    return (
        f"#!/bin/bash\n{before}\n{launcher} \\\n    "
        + " \\\n    ".join([*lines, *filter(None, [extra])])
        + "\n"
    )


LLAVA = "deepspeed llava/train/train_mem.py"
LLAMA_3 = "meta-llama/Meta-Llama-3-8B-Instruct"
VICUNAS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
FORK = frozenset({"program"})


def fork(name: str, launcher: str, values: Mapping[str, Value], lost: str = "", **changes: str) -> Shape:
    reported = FORK | frozenset(lost.split())
    return Shape(name, script(launcher, **changes), values=values, lost=reported)


def unknown(name: str, launcher: str, version: str) -> Shape:
    refused = f"recipes have no template for the conversation `{version}`"
    return Shape(name, script(launcher, version=version), refused=refused)


TEMPLATE = f"{DATA}.template"
FORKS = [
    fork(
        "LLaVA-pp, Llama 3", LLAVA, {TEMPLATE: "llama_3", f"{DATA}.system_prompt": VICUNAS}, version="llama3"
    ),
    fork("LLaVA-pp, Phi 3", LLAVA, {TEMPLATE: "phi3"}, version="phi3_instruct"),
    fork(
        "ViP-LLaVA by its folder",
        "deepspeed /w/ViP-LLaVA/llava/train/train_mem.py",
        {TEMPLATE: "llama_3"},
        version="llava_llama_3",
    ),
    fork("a fork by its template", LLAVA, {TEMPLATE: "llama_3"}, version="llava_llama_3"),
    fork(
        "OLA-VLM, Llama 3",
        "deepspeed ola_vlm/train/train_mem.py",
        {TEMPLATE: "llama_3", f"{DATA}.system_prompt": VICUNAS},
        version="llava_llama_3",
    ),
    fork(
        "OLA-VLM, Phi 3",
        "deepspeed ola_vlm/train/ola_vlm_train_mem.py",
        {TEMPLATE: "phi3"},
        version="llava_phi_3",
    ),
    fork(
        "LLaVA-MORE, Llama 3.1",
        "torchrun src/llava/train/train_mem.py",
        {TEMPLATE: "llama_3"},
        version="llama_3_1",
    ),
    fork("LLaVA-MORE, Gemma 2", LLAVA, {TEMPLATE: "gemma"}, version="gemma_2"),
    fork(
        "Mini-Gemini, Vicuna",
        "deepspeed mgm/train/train_mem.py",
        {TEMPLATE: "v1"},
        lost="--image_size_aux --vision_tower_aux",
        extra="--vision_tower_aux x/y --image_size_aux 768",
    ),
    fork("Mini-Gemini, Phi 2", "deepspeed minigemini/train/train_mem.py", {TEMPLATE: "v1"}, version="phi_2"),
    fork(
        "Bunny, Phi 2",
        "deepspeed bunny/train/train.py",
        {TEMPLATE: "v1"},
        lost="--model_type",
        version="bunny",
        extra="--model_type phi-2",
    ),
    fork(
        "MoE-LLaVA, StableLM",
        "deepspeed --include localhost:4,5,6,7 moellava/train/train_mem.py",
        {
            TEMPLATE: "v1",
            f"{TRAIN}.global_batch_size": 128,
            f"{TRAIN}.gradient_accumulation_steps": None,
            f"{DATA}.sources.1.annotations": "b.json",
        },
        lost="--moe_enable --train_modules",
        version="stablelm",
        data_path="a.json b.json",
        extra="--moe_enable True --train_modules gate_proj up_proj",
    ),
    fork(
        "Video-LLaVA, three files",
        "HF_DATASETS_OFFLINE=1 deepspeed videollava/train/train_mem.py",
        {f"{DATA}.sources.2.annotations": "j/c.json", f"{DATA}.sources.2.images": "im"},
        before="J=j",
        data_path="${J}/a.json ${J}/b.json ${J}/c.json",
    ),
    fork(
        "MoE-LLaVA's names of the parts",
        "deepspeed moellava/train/train_mem.py",
        {
            "model.vision_tower.source": "google/siglip-so400m-patch14-384",
            "model.projector.type": "mlp2x_gelu",
        },
        lost="--moe_enable",
        without="vision_tower mm_projector_type",
        extra="--image_tower google/siglip-so400m-patch14-384 --image_projector_type mlp2x_gelu "
        "--moe_enable True",
    ),
    fork(
        "Video-LLaVA's towers",
        "deepspeed videollava/train/train_mem.py",
        {"model.vision_tower.source": "LanguageBind/LanguageBind_Image"},
        lost="--video_tower --video_folder",
        without="vision_tower",
        extra="--image_tower LanguageBind/LanguageBind_Image --video_folder v "
        "--video_tower LanguageBind/LanguageBind_Video_merge",
    ),
    fork(
        "two towers for images",
        LLAVA,
        {"model.vision_tower.source": "c/d"},
        lost="--vision_tower",
        extra="--image_tower c/d",
    ),
    Shape(
        "a tower for videos alone",
        script(
            "deepspeed videollava/train/train_mem.py", without="vision_tower", extra="--video_tower v/merge"
        ),
        refused="recipes train on images alone",
    ),
    fork("Cambrian, Phi 3", "python cambrian/train/train_tpu.py", {TEMPLATE: "phi3"}, version="phi3"),
    fork("ShareGPT4V", "deepspeed share4v/train/train_mem.py", {TEMPLATE: "v1"}),
    fork("LLaVA-HR", "torchrun --nproc_per_node 8 llava_hr/train/train_mem.py", {TEMPLATE: "v1"}),
    fork("FastVLM", "deepspeed llava/train/train_qwen.py", {TEMPLATE: "qwen"}, version="qwen_2"),
    fork("another program", "python my/own_train.py", {TEMPLATE: "v1"}),
    fork(
        "a fork, its default left out",
        "deepspeed share4v/train/train_mem.py",
        {TEMPLATE: "v1"},
        lost="--version",
        without="version",
    ),
    unknown("LLaVA-MORE, reasoning", LLAVA, "llama_3_1_reasoning"),
    unknown("Mini-Gemini, Llama 3", "deepspeed mgm/train/train_mem.py", "llama_3"),
    unknown("Mini-Gemini, Gemma", "deepspeed mgm/train/train_mem.py", "gemma"),
    unknown("LLaMA-VID, guided", "deepspeed llamavid/train/train_mem.py", "plain_guided"),
    unknown("Cambrian, ChatML", "deepspeed cambrian/train/train_mem.py", "chatml_direct"),
    unknown("a fork's default", "deepspeed share4v/train/train_mem.py", "v0"),
    unknown("a made-up name", LLAVA, "made_up"),
    Shape("ViP-LLaVA's tower", script(LLAVA, vision_tower="clip_4layers_336"), refused="neither a hub id"),
    Shape("a tower of a fork", script(LLAVA, vision_tower="biomedclip_518"), refused="neither a hub id"),
    Shape("preferences", script("deepspeed llava/train/train_dpo.py"), refused="trains on preferences"),
    Shape(
        "a module of preferences",
        script("torchrun -m llava.train.train_dpo"),
        refused="trains on preferences",
    ),
]

NEXT = "torchrun --nproc_per_node=8 --nnodes=2 llava/train/train_mem.py"
PROGRAMS = [
    Shape("LLaVA", script(LLAVA), values={TEMPLATE: "v1", f"{TRAIN}.gradient_accumulation_steps": 2}),
    Shape(
        "LLaVA in four bits",
        script(LLAVA, extra="--lora_enable True --bits 4 --quant_type fp4"),
        values={"model.language_model.quantization": {"bits": 4, "type": "fp4", "double_quant": True}},
    ),
    Shape(
        "LLaVA-NeXT's own defaults",
        script(
            NEXT, without="model_max_length", version="qwen_1_5", extra="--mm_tunable_parts=mm_mlp_adapter"
        ),
        values={
            f"{DATA}.max_length": 4096,
            f"{TRAIN}.gradient_checkpointing": True,
            f"{TRAIN}.global_batch_size": 512,
            TEMPLATE: "qwen",
        },
    ),
    Shape(
        "LLaVA-NeXT by its template",
        script(NEXT, without="model_max_length", version="qwen_2"),
        values={f"{DATA}.max_length": 4096, f"{TRAIN}.gradient_checkpointing": True},
    ),
    Shape(
        "Open-LLaVA-NeXT has LLaVA's defaults",
        script(LLAVA, version="llava_llama_3", extra="--unfreeze_mm_vision_tower True"),
        values={f"{TRAIN}.gradient_checkpointing": False, TEMPLATE: "llama_3"},
    ),
    Shape(
        "TinyLLaVA, Gemma",
        script(
            "deepspeed tinyllava/train/train.py",
            without="version mm_projector_type mm_use_im_patch_token",
            extra="--conv_version gemma --connector_type mlp2x_gelu --tune_type_llm full",
        ),
        values={TEMPLATE: "v1", f"{DATA}.system_prompt": None},
    ),
    Shape(
        "TinyLLaVA, an unknown text",
        script("deepspeed tinyllava/train/train.py", without="version", extra="--conv_version stablelm"),
        refused="the conversation `stablelm` of TinyLLaVA",
    ),
    Shape(
        "TinyLLaVA, the tower's upper layers",
        script(
            "deepspeed tinyllava/train/train.py",
            without="version mm_projector_type mm_use_im_patch_token",
            extra="--connector_type linear --tune_type_vision_tower partially-tune --vision_tower2 x/y "
            "--tokenizer_name_or_path c/d --mm_patch_merge_type spatial --training_recipe odd --bits 8 "
            "--tune_type_llm mlp --pretrained_model_path ./w --vision_tower_lr 1e-5",
        ),
        values={
            "stages.0.trainable": ["projector", "vision_tower.encoder.layers.{10..23}"],
            "model.language_model.tokenizer": "c/d",
            "model.language_model.quantization": {"bits": 8},
            "stages.0.init_from": "./w",
        },
        lost=frozenset({"--vision_tower2", "--mm_patch_merge_type", "--training_recipe", "--tune_type_llm"}),
    ),
    Shape(
        "TinyLLaVA's first version",
        script("deepspeed tinyllava/train/train.py", version="phi"),
        values={TEMPLATE: "v1"},
        lost=FORK,
    ),
    Shape(
        "TinyLLaVA in four bits",
        script(
            "deepspeed tinyllava/train/train.py",
            without="version mm_projector_type mm_use_im_patch_token",
            extra="--conv_version phi --connector_type linear --tune_type_llm lora "
            "--training_recipe qlora_int4 --tune_type_connector full",
        ),
        values={"model.language_model.quantization.bits": 4},
    ),
    Shape(
        "data for a loss of its own",
        script(
            LLAVA,
            extra="--eval_data_path v.json --evaluation_strategy steps --eval_steps 50 --do_eval True"
            " --per_device_eval_batch_size 4",
        ),
        values={
            f"{DATA}.validation.sources": [{"annotations": "v.json", "images": "im"}],
            f"{TRAIN}.eval_strategy": "steps",
            f"{TRAIN}.eval_steps": 50,
            f"{TRAIN}.per_device_eval_batch_size": 4,
        },
    ),
    Shape(
        "a loss without data",
        script(LLAVA, extra="--evaluation_strategy epoch"),
        lost=frozenset({"--evaluation_strategy"}),
    ),
    Shape(
        "a list with commas",
        script(LLAVA, data_path="a.json,b.jsonl", image_folder="x,y"),
        values={
            f"{DATA}.sources": [
                {"annotations": "a.json", "images": "x"},
                {"annotations": "b.jsonl", "images": "y"},
            ]
        },
    ),
    Shape(
        "a flag that no program has",
        script(LLAVA, extra="--focal_gamma 2"),
        lost=frozenset({"--focal_gamma"}),
    ),
    Shape(
        "accelerate's own settings",
        script("accelerate launch --num_processes 4 --mixed_precision bf16 llava/train/train_mem.py"),
        values={f"{TRAIN}.global_batch_size": 128},
        lost=frozenset({"accelerate --mixed_precision"}),
    ),
]

ARITHMETIC = "GLOBAL=256\nGPUS=8\nPER=4\nACC=$((GLOBAL / (PER * GPUS)))"
VALUES = [
    Shape(
        "arithmetic",
        script(LLAVA, before=ARITHMETIC, gradient_accumulation_steps="$ACC"),
        values={f"{TRAIN}.gradient_accumulation_steps": 8},
    ),
    Shape(
        "arithmetic overridden",
        script(LLAVA, before=ARITHMETIC, gradient_accumulation_steps="$ACC"),
        values={f"{TRAIN}.gradient_accumulation_steps": 3},
        variables={"ACC": "3"},
    ),
    Shape(
        "a part overridden",
        script(LLAVA, before=ARITHMETIC, gradient_accumulation_steps="$ACC"),
        values={f"{TRAIN}.gradient_accumulation_steps": 16},
        variables={"GPUS": "4"},
    ),
    Shape(
        "what no shell is asked",
        script(LLAVA, before="DAY=$(date +%F)", output_dir="out/$DAY"),
        values={"stages.0.output_dir": "out/monday"},
        variables={"DAY": "monday"},
    ),
    Shape(
        "(( … )) and let",
        script(LLAVA, before="A=16\n((A /= 4))\nlet B=A*2", gradient_accumulation_steps="$B"),
        values={f"{TRAIN}.gradient_accumulation_steps": 8},
    ),
    Shape(
        "expr",
        script(LLAVA, before="A=$(expr 64 / 8)", gradient_accumulation_steps="$A"),
        values={f"{TRAIN}.gradient_accumulation_steps": 8},
    ),
    Shape(
        "names of files",
        script(
            LLAVA,
            before='M=lmsys/vicuna-7b-v1.5\nN=$(basename "$M")\nD=$(dirname "/d/x/a.json")',
            output_dir="out/$N",
            data_path="$D/b.json",
        ),
        values={"stages.0.output_dir": "out/vicuna-7b-v1.5", f"{DATA}.sources.0.annotations": "/d/x/b.json"},
    ),
    Shape(
        "the working folder",
        script(
            LLAVA,
            before='cd sub\nROOT=$(cd "$(dirname "$0")" && pwd)',
            output_dir="$PWD/out",
            data_path="$(realpath ../a.json)",
            image_folder="$ROOT/im",
        ),
        values={
            "stages.0.output_dir": "/here/sub/out",
            f"{DATA}.sources.0.annotations": "/here/a.json",
            f"{DATA}.sources.0.images": "/here/sub/im",
        },
    ),
    Shape(
        "how many entries",
        script(LLAVA, before="G=(0 1 2 3)", gradient_accumulation_steps="${#G[@]}"),
        values={f"{TRAIN}.gradient_accumulation_steps": 4},
    ),
    Shape(
        "processes on nodes that nobody names",
        script("torchrun --nproc_per_node 8 --nnodes $N llava/train/train.py"),
        values={f"{TRAIN}.gradient_accumulation_steps": 2, f"{TRAIN}.global_batch_size": None},
    ),
    Shape(
        "devices that are seen",
        script(f"CUDA_VISIBLE_DEVICES=0,1 {LLAVA}"),
        values={f"{TRAIN}.global_batch_size": 64},
    ),
    Shape(
        "tasks of srun",
        script("srun --nodes 2 --ntasks-per-node=4 python llava/train/train_mem.py"),
        values={f"{TRAIN}.global_batch_size": 256},
    ),
]

OFFLOAD = """\
{"bf16": {"enabled": true}, "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
 "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
 "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "overlap_comm": true},
 "gradient_clipping": "auto", "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
 "gradient_accumulation_steps": "auto", "steps_per_print": 1e5}
"""
DEEPSPEED = [
    Shape(
        "the original's offload by its name",
        script(LLAVA, extra="--deepspeed ./scripts/zero3_offload.json"),
        values={"stages.0.deepspeed": "zero3_offload", f"{TRAIN}.max_grad_norm": 1.0},
        lost=frozenset({"zero3_offload.json: scheduler"}),
    ),
    Shape(
        "another offload",
        script(LLAVA, extra="--deepspeed ds.json"),
        beside={"ds.json": OFFLOAD},
        values={
            "stages.0.deepspeed.zero_optimization.offload_optimizer": {"device": "cpu"},
            "stages.0.deepspeed.optimizer": None,
            "stages.0.deepspeed.scheduler": None,
        },
        lost=frozenset({"ds.json: scheduler"}),
    ),
    Shape(
        "an optimizer of another kind",
        script(LLAVA, extra="--deepspeed ds.json"),
        beside={"ds.json": OFFLOAD.replace("AdamW", "Lion")},
        lost=frozenset({"ds.json: scheduler", "ds.json: optimizer"}),
    ),
]

XTUNER = """\
from xtuner.model import LLaVAModel
{sets}
model = dict(type=LLaVAModel, freeze_llm=True, freeze_visual_encoder=True, {model}
    llm=dict(type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path="lmsys/vicuna-7b-v1.5"),
    visual_encoder=dict(type=CLIPVisionModel.from_pretrained,
                        pretrained_model_name_or_path="openai/clip-vit-large-patch14-336"))
train_dataloader = dict(batch_size=16, num_workers=4, dataset=train_dataset)
optimizer = dict(type=AdamW, lr=2e-4, weight_decay=0)
optim_wrapper = dict(type=AmpOptimWrapper, optimizer=optimizer, dtype="float16")
param_scheduler = [dict(type=LinearLR, end=0.03), dict(type=CosineAnnealingLR, begin=0.03, end=1)]
train_cfg = dict(type=TrainLoop, max_epochs=1)
"""
SET = (
    'dict(type={kind}, data_path="{path}", image_folder="im", pad_image_to_square=True, max_length=1472, '
    "template_map_fn=dict(type=template_map_fn_factory, template=PROMPT_TEMPLATE.vicuna))"
)
ONE = f"train_dataset = {SET.format(kind='LLaVADataset', path='a.json')}"
LORA = 'dict(type=LoraConfig, r={r}, lora_alpha=256, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")'
OF_XTUNER = frozenset({"--deepspeed", "train_dataset.template_map_fn.template"})
ALWAYS: Mapping[str, Value] = {f"{TRAIN}.max_grad_norm": 0, f"{TRAIN}.gradient_checkpointing": True}


def xtuner(
    name: str,
    values: Mapping[str, Value],
    *,
    lost: frozenset[str],
    sets: str = ONE,
    model: str = "",
    changes: Mapping[str, str] = MappingProxyType({}),
) -> Shape:
    text = XTUNER.format(sets=sets, model=model)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return Shape(f"XTuner: {name}", text, "config.py", {**ALWAYS, **values}, lost)


SETS = "\n".join(
    f"{name} = {SET.format(kind=kind, path=f'{name}.json')}"
    for name, kind in (("a", "LLaVADataset"), ("b", "LLaVADataset"), ("c", "RefCOCOJsonDataset"))
)
CONCAT = f"{SETS}\nrest = dict(type=ConcatDataset, datasets=[c])\n"
CONCAT += "train_dataset = dict(type=ConcatDataset, datasets=[a, b, rest])"
CONFIGS = [
    xtuner(
        "adapters beside a frozen model",
        {"stages.0.lora.r": 128, "stages.0.lora.alpha": 256},
        lost=OF_XTUNER,
        model=f"llm_lora={LORA.format(r=128)},",
    ),
    xtuner(
        "adapters of the tower too",
        {"stages.0.lora.modules": ["language_model", "vision_tower"]},
        lost=OF_XTUNER,
        model=f"llm_lora={LORA.format(r=64)}, visual_encoder_lora={LORA.format(r=64)},",
    ),
    xtuner(
        "adapters of the tower alone",
        {"stages.0.lora.modules": ["vision_tower"]},
        lost=OF_XTUNER,
        model=f"visual_encoder_lora={LORA.format(r=64)},",
    ),
    xtuner(
        "adapters of two sizes",
        {"stages.0.lora.modules": ["language_model"]},
        lost=OF_XTUNER
        | {
            f"model.visual_encoder_lora.{key}"
            for key in ("type", "r", "lora_alpha", "lora_dropout", "bias", "task_type")
        },
        model=f"llm_lora={LORA.format(r=64)}, visual_encoder_lora={LORA.format(r=32)},",
    ),
    xtuner(
        "all of its sets",
        {f"{DATA}.sources.{number}.annotations": f"{name}.json" for number, name in enumerate("abc")},
        lost=frozenset({"--deepspeed", "a.template_map_fn.template", "c.type"}),
        sets=CONCAT,
    ),
    xtuner(
        "no checkpointing",
        {f"{TRAIN}.gradient_checkpointing": False},
        lost=OF_XTUNER,
        model="use_activation_checkpointing=False,",
    ),
    xtuner(
        "another class of records",
        {},
        lost=OF_XTUNER | {"train_dataset.type"},
        sets=ONE.replace("LLaVADataset", "InternVLDataset"),
    ),
    xtuner(
        "its schedule and optimizer",
        {
            f"{TRAIN}.adam_beta2": 0.99,
            f"{TRAIN}.max_steps": 7,
            f"{TRAIN}.seed": 3,
            f"{TRAIN}.save_steps": 5,
            f"{DATA}.image_aspect_ratio": "square",
            f"{DATA}.shuffle": False,
            "model.projector.type": "mlp3x_gelu",
            "model.language_model.quantization": {"bits": 4, "type": "nf4", "double_quant": False},
        },
        lost=OF_XTUNER | {"optim_wrapper.optimizer.type", "optimizer.momentum", "param_scheduler[0].type"},
        sets=ONE.replace("pad_image_to_square=True, ", ""),
        model="projector_depth=3,",
        changes={
            "type=AdamW, lr=2e-4": "type=Lion, betas=(0.9, 0.99), momentum=0.5, lr=2e-4",
            "type=CosineAnnealingLR, begin": "type=CosineAnnealingLR, eta_min=0, begin",
            "type=LinearLR": "type=ConstantLR",
            "max_epochs=1": "max_iters=7",
            "llm=dict(": "llm=dict(quantization_config=dict(type=BitsAndBytesConfig, load_in_4bit=True, "
            "bnb_4bit_quant_type='nf4'), ",
            "num_workers=4": "num_workers=4, sampler=dict(type=DefaultSampler, shuffle=False)",
            "train_cfg": "randomness = dict(seed=3)\n"
            "default_hooks = dict(checkpoint=dict(interval=5))\ntrain_cfg",
        },
    ),
    Shape(
        "XTuner: a template that recipes don't have",
        XTUNER.format(sets=ONE.replace("vicuna", "internlm2_chat"), model=""),
        "config.py",
        refused="no template for XTuner's `internlm2_chat`",
    ),
]
FACTORY = """\
model_name_or_path: llava-hf/llava-1.5-7b-hf
stage: sft
do_train: true
template: llava
dataset: demo
cutoff_len: 2048
output_dir: out
learning_rate: 1.0e-5
"""
QLORA = """\
base_model: lmsys/vicuna-7b-v1.5
mm_vision_tower: openai/clip-vit-large-patch14-336
mm_projector_type: linear
chat_template: llava
learning_rate: 1.0e-4
output_dir: out
"""
YAML = [
    Shape(
        "LLaMA-Factory: the projector alone",
        FACTORY + "finetuning_type: full\ntrain_mm_proj_only: true\nfreeze_multi_modal_projector: true\n",
        "config.yaml",
        {"stages.0.trainable": ["projector"]},
        frozenset({"dataset"}),
    ),
    Shape(
        "LLaMA-Factory: the projector alone, with adapters",
        FACTORY + "finetuning_type: lora\ntrain_mm_proj_only: true\n",
        "config.yaml",
        lost=frozenset({"dataset", "train_mm_proj_only"}),
    ),
    Shape(
        "LLaMA-Factory: four bits",
        FACTORY + "finetuning_type: lora\nquantization_bit: 4\n",
        "config.yaml",
        {"model.language_model.quantization": {"bits": 4, "type": "nf4", "double_quant": True}},
        frozenset({"dataset"}),
    ),
    Shape(
        "LLaMA-Factory: a switch that is off",
        FACTORY + "finetuning_type: full\nshift_attn: false\n",
        "config.yaml",
        lost=frozenset({"dataset", "shift_attn"}),
    ),
    Shape(
        "LLaMA-Factory: preferences",
        FACTORY.replace("sft", "dpo") + "finetuning_type: lora\n",
        "config.yaml",
        refused="the kind of training",
    ),
    Shape(
        "LLaMA-Factory: another model's text",
        FACTORY.replace("llava\n", "llama3\n") + "finetuning_type: full\n",
        "config.yaml",
        {TEMPLATE: "llama_3"},
        frozenset({"dataset", "template"}),
    ),
    Shape(
        "axolotl: four bits",
        QLORA + "adapter: qlora\nload_in_4bit: true\ndatasets:\n  - path: a.json\n    type: chat_template\n",
        "config.yaml",
        {"model.language_model.quantization.bits": 4, "stages.0.lora.modules": ["language_model"]},
        frozenset({"datasets[0].type"}),
    ),
    Shape(
        "axolotl: keys that change the run",
        QLORA + "adapter: ia3\ntrain_on_inputs: true\nsample_packing: true\nsaves_per_epoch: 2\n"
        "group_by_length: true\nload_in_8bit: true\nlora_r: 8\nval_set_size: 0\n"
        "datasets:\n  - {path: a/b, split: train}\nmm_image_folder: im\n",
        "config.yaml",
        {"model.language_model.quantization": {"bits": 8}, f"{DATA}.group_by": "length"},
        frozenset({"adapter", "train_on_inputs", "sample_packing", "saves_per_epoch", "datasets"}),
    ),
    Shape(
        "LLaMA-Factory: keys that change the run",
        FACTORY + "finetuning_type: full\nquantization_bit: 2\nquantization_method: hqq\n"
        "eval_dataset: v\nimage_dir: im\nfreeze_vision_tower: true\n",
        "config.yaml",
        {f"{DATA}.validation.sources": [{"annotations": "data/v.json", "images": "im"}]},
        frozenset({"quantization_bit", "quantization_method", "dataset", "eval_dataset"}),
    ),
    Shape(
        "LLaMA-Factory: eight bits",
        FACTORY
        + "finetuning_type: lora\nquantization_bit: 8\nquantization_method: bnb\nlora_target: q_proj\n"
        "double_quantization: true\nfreeze_language_model: true\n",
        "config.yaml",
        {"model.language_model.quantization": {"bits": 8}},
        frozenset({"dataset", "lora_target", "freeze_language_model"}),
    ),
    Shape("axolotl: preferences", QLORA + "rl: dpo\n", "config.yaml", refused="the kind of training"),
]
SHAPES = [*FORKS, *PROGRAMS, *VALUES, *DEEPSPEED, *CONFIGS, *YAML]
