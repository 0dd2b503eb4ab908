"""The recipe language: every key, its type, default and meaning.

The models hold shapes, types and ranges only; rules between keys are in `rules.py` and `exclusions.py`.
Descriptions are for whoever types the key: `explain`, editors and docs/reference.md show them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag

from llava_recipes import projectors
from llava_recipes.anyres import MergeType
from llava_recipes.deepspeed_presets import PRESETS
from llava_recipes.layouts import Alias, Template, describe_templates

Text = Annotated[str, Field(min_length=1)]


class Frozen(BaseModel):
    """A value that never changes and refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), defer_build=True
    )


class ParamGroup(Frozen):
    """Modules with a learning rate or weight decay of their own."""

    modules: tuple[Text, ...] = Field(
        min_length=1,
        description="Globs of modules. The group contains all parameters that they match and that train.",
        examples=[["projector"], ["vision_tower"]],
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate of the group. Default: `train.learning_rate`.",
        examples=[2e-5],
    )
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="Weight decay of the group, never applied to biases and norms. "
        "Default: `train.weight_decay`.",
    )


class Lora(Frozen):
    """Low-rank adapters next to frozen linear layers."""

    r: int = Field(64, gt=0, description="Rank of the adapters.", examples=[128])
    alpha: float = Field(
        16, gt=0, description="Scale: the output of an adapter is multiplied by alpha / r.", examples=[256]
    )
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the input of an adapter.")
    modules: tuple[Text, ...] = Field(
        ("language_model",),
        min_length=1,
        description="Globs of modules whose linear layers get adapters. Those of vision_tower, projector "
        "and lm_head get them only if a glob starts with that name.",
        examples=[["language_model"], ["language_model.layers.*.self_attn"]],
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        "none",
        description="Biases that train too: `none`, `all` of the adapted parts, or those of the adapted "
        "layers (`lora_only`).",
    )
    use_dora: bool = Field(False, description="DoRA: train the magnitude of each weight row separately.")
    use_rslora: bool = Field(False, description="rsLoRA: scale by alpha / sqrt(r) instead of alpha / r.")


class Expect(Frozen):
    """What a stage should end with. It warns, and never ends a run."""

    loss: tuple[float, float] = Field(
        description="Lowest and highest mean of the last 10 logged losses. Outside, the run warns at its end "
        "and in `DONE`.",
        examples=[[0.8, 1.2]],
    )


class Samples(Frozen):
    """What `sample_every` asks the model."""

    num: int | None = Field(
        None,
        gt=0,
        le=100,
        description="Number of records to ask about: the first ones with an image, from the validation data "
        "or, without any, from the training data. Default: 4.",
        examples=[4],
    )
    images: tuple[Text, ...] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Your own image files to ask about instead, each with `prompt`.",
        examples=[["./images/cat.jpg"]],
    )
    prompt: Text | None = Field(
        None,
        description="Question about each of `images`. Not with `template: plain`, which only captions.",
        examples=["What is in this image?"],
    )
    max_new_tokens: int = Field(64, gt=0, le=4096, description="Longest answer, in tokens.")


SamplingStrategy = Annotated[
    str,
    Field(
        pattern=r"^(all|(first|end|random):"
        r"([1-9][0-9]{0,11}|([1-9][0-9]?(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*|100)%))$",
        max_length=40,
    ),
]


class Source(Frozen):
    """One annotation file, the folder of its images, and how much of it to use."""

    annotations: Text = Field(
        description="JSON file with a list of records (`id`, `image`, `conversations`), JSONL file, Parquet "
        "file, folder of Parquet files, or a pattern such as `data/train-*.parquet`.",
        examples=["./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"],
    )
    images: Text | None = Field(
        None,
        description="Folder that the `image` paths of the records start from. Leave it out for text-only "
        "data and for images inside a Parquet file.",
    )
    num_samples: int | None = Field(
        None,
        gt=0,
        description="Number of records in the file. `plan` then counts steps without the file; the number "
        "is checked when the file is read.",
        examples=[558128],
    )
    sampling_strategy: SamplingStrategy = Field(
        "all",
        description="Which records to use: `all`, or the `first`, the `end` or a `random` part of the file, "
        "as a number or a percentage (rounded up): `first:1000`, `end:5%`, `random:10%`.",
        examples=["random:10%"],
    )
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How many times each chosen record is used in an epoch: `2.0` uses each of them twice, "
        "`0.5` a random half. Every epoch uses the same records.",
        examples=[2.0],
    )


class Validation(Frozen):
    """Records that are never trained on, for a loss measured during training."""

    sources: tuple[Source, ...] | None = Field(
        None,
        min_length=1,
        description="Annotation files for validation only, with the keys of `data.sources`. Set this or "
        "`split`.",
    )
    split: float | None = Field(
        None,
        gt=0,
        description="Part of the training data to hold out: a share below 1 (rounded up) or a whole number "
        "of records, drawn at random by `train.seed` from every source in proportion.",
        examples=[0.01, 500],
    )


ProjectorName = Annotated[str, Field(pattern=projectors.pattern())]


class Quantization(Frozen):
    """Keep the language model's linear layers in 4 or 8 bits while adapters next to them train: QLoRA."""

    bits: Literal[4, 8] = Field(description="Bits per weight. The head `lm_head` keeps its precision.")
    type: Literal["nf4", "fp4"] = Field(
        "nf4",
        description="Values of a 4-bit weight: `nf4` suits normally distributed weights, `fp4` is a small "
        "float. 4 bits only.",
    )
    double_quant: bool = Field(
        True,
        description="Quantize the scales of the blocks too, which saves 0.4 bits per weight. 4 bits only.",
    )


class LanguageModel(Frozen):
    """The language model: `source` for pretrained weights, or `config` for random ones."""

    source: Text | None = Field(
        None,
        description="Hub id or local folder of a pretrained causal language model.",
        examples=["lmsys/vicuna-13b-v1.5"],
    )
    revision: Text | None = Field(None, description="Hub revision to use: a commit, a tag or a branch.")
    config: dict[str, JsonValue] | None = Field(
        None,
        description="Inline Hugging Face config with its `model_type`; the weights are random.",
        examples=[{"model_type": "llama", "hidden_size": 64}],
    )
    tokenizer: Text | None = Field(
        None,
        description="Hub id or local folder of the tokenizer. Required with `config`. Default: `source`.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the random weights, with `config`.")
    quantization: Quantization | None = Field(
        None,
        description="Keep the linear layers in 4 or 8 bits; needs `source` and bitsandbytes. Default: the "
        "16 or 32 bits of the stage.",
        examples=[{"bits": 4}],
    )


def _language_model_kind(value: object) -> str:
    return "source" if isinstance(value, str) else "mapping"


LanguageModelChoice = Annotated[
    Annotated[Text, Tag("source")] | Annotated[LanguageModel, Tag("mapping")],
    Discriminator(_language_model_kind),
]


class VisionTower(Frozen):
    """The vision tower: `source` for pretrained weights, or `config` for random ones."""

    source: Text | None = Field(
        None,
        description="Hub id or local folder of a CLIP or SigLIP model.",
        examples=["openai/clip-vit-large-patch14-336"],
    )
    revision: Text | None = Field(None, description="Hub revision to use: a commit, a tag or a branch.")
    config: dict[str, JsonValue] | None = Field(
        None,
        description="Inline Hugging Face vision config with its `model_type`; the weights are random.",
        examples=[{"model_type": "clip_vision_model", "hidden_size": 32}],
    )
    image_processor: dict[str, JsonValue] | None = Field(
        None,
        description="Settings of the image processor (size, crop, mean, std) that replace its defaults, "
        "with `config`.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the random weights, with `config`.")
    select_layer: int = Field(
        -2,
        description="Hidden state of the tower to use: -1 is the last layer, -2 the second to last, 0 the "
        "embeddings.",
    )
    select_feature: Literal["patch", "cls_patch"] = Field(
        "patch", description="`patch` drops the class token, `cls_patch` keeps it."
    )


class Projector(Frozen):
    """The module between vision tower and language model."""

    type: ProjectorName = Field(
        projectors.STOCK,
        description="; ".join(f"`{kind.name}`: {kind.meaning}" for kind in projectors.PROJECTOR_TYPES) + ".",
        examples=["linear", "mlp2x_gelu", "identity"],
    )
    init_from: Text | None = Field(
        None,
        description="File with initial weights, `.bin` or `.safetensors`, under the original's parameter "
        "names.",
        examples=["./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin"],
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the random initial weights.")


class ImageTokens(Frozen):
    """Extra tokens around images."""

    start_end: bool = Field(
        False,
        description="Put `<im_start>` and `<im_end>` around every image; with `template: plain` only if "
        "their embeddings train. Their embeddings start as the mean of all others.",
    )
    patch: bool = Field(False, description="Add the token `<im_patch>` to the tokenizer.")


class Model(Frozen):
    """The parts of the model: language model, vision tower, projector."""

    language_model: LanguageModelChoice = Field(
        description="Hub id or local folder of a causal language model, or a mapping.",
        examples=["lmsys/vicuna-13b-v1.5"],
    )
    vision_tower: VisionTower = Field(description="The vision tower, and which of its features to use.")
    projector: Projector = Field(
        default_factory=lambda: Projector.model_construct(type=projectors.STOCK, init_from=None, seed=0),
        description="The module between vision tower and language model.",
    )
    image_tokens: ImageTokens = Field(
        default_factory=lambda: ImageTokens.model_construct(start_end=False, patch=False),
        description="Extra tokens around images.",
    )


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]
Pinpoint = Annotated[tuple[Annotated[int, Field(gt=0, le=2**20)], ...], Field(min_length=2, max_length=2)]
Report = Literal["wandb", "tensorboard"]
TemplateName = Template | Alias


class Data(Frozen):
    """What a stage trains on, and how it becomes tokens."""

    template: TemplateName | None = Field(
        None,
        description=describe_templates(),
        examples=["v1"],
    )
    chat_template: Literal["tokenizer"] | None = Field(
        None,
        description="`tokenizer` writes conversations with the tokenizer's own chat template. Set this or "
        "`template`.",
    )
    system_prompt: Text | None = Field(
        None, description="Text before the first turn, instead of the template's own system prompt."
    )
    sources: tuple[Source, ...] = Field(min_length=1, description="Annotation files, read one after another.")
    validation: Validation | None = Field(
        None,
        description="Records for a validation loss, measured at the end and as `train.eval_strategy` says.",
        examples=[{"split": 0.01}],
    )
    image_aspect_ratio: Literal["square", "pad", "anyres"] = Field(
        "square",
        description="`square`: the image processor resizes and crops. `pad`: pad to a square with the mean "
        "color first. `anyres`: the whole image, and crops of it in a grid, as in LLaVA-NeXT.",
    )
    image_grid_pinpoints: tuple[Pinpoint, ...] | None = Field(
        None,
        min_length=1,
        description="With `anyres`: sizes that an image may be resized to, as `[width, height]` in pixels, "
        "multiples of the tower's image size. Default: 1 × 2, 2 × 1, 2 × 2, 3 × 1 and 1 × 3 times that size.",
        examples=[[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]],
    )
    mm_patch_merge_type: MergeType | None = Field(
        None,
        description="With `anyres`: order of the features of the crops. `flat` (the default): crop by crop. "
        "`spatial`: row by row over the whole grid. `spatial_unpad`: the same without the padding, and with "
        "a learned `image_newline` at the end of each row.",
        examples=["spatial_unpad"],
    )
    max_length: int = Field(
        2048, gt=0, description="Longest sequence in tokens, including those of the images."
    )
    shuffle: bool = Field(
        True, description="Draw a new order every epoch; `false` keeps the order of the files."
    )
    order: Literal["seed", "original"] = Field(
        "seed",
        description="How the order is drawn. `seed`: by `train.seed`, the same for any number of processes. "
        "`original`: as LLaVA's code drew it. With one process the two are equal; with several, `original` "
        "is another order, which depends neither on their number nor, unless samples are grouped, on the "
        "seed. A resumed run keeps the order of its first start.",
        examples=["original"],
    )
    group_by: Literal["none", "length", "modality_length"] = Field(
        "none",
        description="`length`: batches of samples of similar length. `modality_length`: also samples with "
        "and without images in separate batches. Less padding; the order is still random.",
    )
    on_bad_image: Literal["error", "skip"] = Field(
        "error",
        description="When an image is missing or broken during training: `error` stops the run, `skip` "
        "replaces the sample with the next good one and counts it.",
    )
    lazy_preprocess: bool = Field(
        True, description="Tokenize samples as they are drawn; `false` tokenizes all of them before step 1."
    )


class Train(Frozen):
    """How a stage trains. Names and meanings are those of Hugging Face's TrainingArguments."""

    num_train_epochs: float | None = Field(
        None, gt=0, le=1e6, description="Passes over the data; this or `max_steps` is needed."
    )
    max_steps: int | None = Field(
        None, gt=0, description="Optimizer steps, instead of epochs.", examples=[1000]
    )
    per_device_train_batch_size: int = Field(8, gt=0, description="Samples per device and forward pass.")
    per_device_eval_batch_size: int = Field(
        8, gt=0, description="Samples per device and forward pass in evaluation."
    )
    gradient_accumulation_steps: int | None = Field(
        None,
        gt=0,
        description="Forward passes per optimizer step. Default: 1, or what `global_batch_size` requires.",
        examples=[2],
    )
    global_batch_size: int | None = Field(
        None,
        gt=0,
        description="Samples per optimizer step over all devices. Set this or `gradient_accumulation_steps`.",
        examples=[256],
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate.", examples=[1e-3, 2e-5])
    weight_decay: float = Field(0.0, ge=0, description="Weight decay; never applied to biases and norms.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta 1.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW beta 2.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW epsilon.")
    max_grad_norm: float = Field(
        1.0,
        ge=0,
        description="Norm that the gradient is clipped to; 0 turns clipping off. LLaVA's "
        "own runs were not clipped, whatever the flag said: DeepSpeed 0.12.6 does not clip without "
        "`gradient_clipping` in its file.",
    )
    optim: Text = Field("adamw_torch", description="Optimizer, by its Hugging Face name.")
    warmup_ratio: float | None = Field(
        None, ge=0, lt=1, description="Share of the steps in which the learning rate rises.", examples=[0.03]
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="Number of steps in which the learning rate rises.", examples=[100]
    )
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = Field("cosine", description="Schedule of the learning rate after warm-up.")
    loss_normalization: Literal["device_batch", "token"] = Field(
        "device_batch",
        description="`device_batch`: the mean over the label tokens of each device batch, averaged over "
        "accumulation steps and processes, as in the original. `token`: the mean over all label tokens of "
        "the step.",
    )
    bf16: bool = Field(False, description="Train in bfloat16.")
    fp16: bool = Field(False, description="Train in float16 with loss scaling.")
    tf32: bool = Field(False, description="Allow TF32 matrix products on Ampere and newer GPUs.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass to save memory."
    )
    dataloader_num_workers: int = Field(0, ge=0, description="Processes that load data, per device.")
    eval_strategy: Literal["no", "steps", "epoch"] = Field(
        "no",
        description="When to measure the loss on `data.validation`. It is always measured at the end; with "
        "`no`, only then.",
    )
    eval_steps: int = Field(500, gt=0, description="Steps between evaluations, with `eval_strategy: steps`.")
    logging_steps: int = Field(1, gt=0, description="Steps between log lines.")
    save_strategy: Literal["steps", "epoch", "no"] = Field("steps", description="When to write checkpoints.")
    save_steps: int = Field(500, gt=0, description="Steps between checkpoints, with `save_strategy: steps`.")
    save_total_limit: int | None = Field(
        None, gt=0, description="Number of checkpoints to keep; older ones are deleted."
    )
    report_to: Literal["none"] | Report | tuple[Report, ...] = Field(
        "none",
        description="Where metrics go besides `metrics.jsonl`: `wandb`, `tensorboard`, a list of both, or "
        "`none`.",
    )
    seed: int = Field(
        42,
        ge=0,
        lt=2**32,
        description="Seed of training and of the data order, except for `order: original` on several GPUs.",
    )
    extra: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Other fields of TrainingArguments. Their names are checked.",
        examples=[{"dataloader_pin_memory": False}],
    )


def _freeze_kind(value: object) -> str:
    return "globs" if isinstance(value, (list, tuple)) else "word"


Freeze = Annotated[
    Annotated[Literal["all", "none"], Tag("word")] | Annotated[tuple[Text, ...], Tag("globs")],
    Discriminator(_freeze_kind),
]


def _deepspeed_kind(value: object) -> str:
    return "mapping" if isinstance(value, dict) else "word"


DeepSpeedChoice = Annotated[
    Annotated[Text, Tag("word")] | Annotated[dict[str, JsonValue], Tag("mapping")],
    Discriminator(_deepspeed_kind),
]


class Stage(Frozen):
    """One training run: what trains, on which data, how, and where the results go."""

    name: Name = Field(description="Name of the stage, unique in the recipe.")
    init_from: Text | None = Field(
        None,
        description="Where the weights come from: `base`, the name of an earlier stage, or a path or hub id "
        "of another run's folder, a projector's file, adapters or a LLaVA checkpoint. Default: the stage "
        "before; `base` for the first stage.",
    )
    freeze: Freeze = Field(
        "all", description="What to freeze: `all`, `none`, or a list of module globs.", examples=["all"]
    )
    trainable: tuple[Text, ...] = Field(
        (),
        description="Globs of modules to train; they override `freeze`. Roots: vision_tower, projector, "
        "language_model, lm_head; image_tokens, the embeddings of `<im_start>` and `<im_end>` alone; and "
        "image_newline, with `spatial_unpad`.",
        examples=[["projector"]],
    )
    lora: Lora | None = Field(
        None,
        description="Train low-rank adapters next to linear layers, which stay frozen. What `trainable` "
        "matches trains in full as well.",
        examples=[{"r": 128, "alpha": 256}],
    )
    param_groups: tuple[ParamGroup, ...] = Field(
        (),
        description="Modules with a learning rate or weight decay of their own; all others use those of "
        "`train`.",
        examples=[[{"modules": ["projector"], "learning_rate": 2e-5}]],
    )
    data: Data = Field(description="What the stage trains on.")
    train: Train = Field(description="How the stage trains.")
    deepspeed: DeepSpeedChoice = Field(
        "none",
        description="`none`, a preset ("
        + ", ".join(f"`{name}`" for name in PRESETS)
        + "), a DeepSpeed JSON file, or the config inline.",
        examples=["zero2"],
    )
    sample_every: int | None = Field(
        None,
        gt=0,
        description="Steps between samples of what the model answers: a few fixed images are asked about, "
        "and again after the last step. Written to `samples.jsonl`; training is the same without it.",
        examples=[500],
    )
    samples: Samples | None = Field(
        None, description="Which images `sample_every` asks about, and what it asks."
    )
    expect: Expect | None = Field(
        None,
        description="Where the loss should end, for a warning where it does not.",
        examples=[{"loss": [0.8, 1.2]}],
    )
    output_dir: Text = Field(
        description="Folder for everything that the stage writes.",
        examples=["./checkpoints/llava-v1.5-13b-pretrain"],
    )


class Recipe(Frozen):
    """One YAML file: one run of one or more stages."""

    version: Literal[1] = Field(description="Version of the recipe language.")
    name: Name = Field(description="Name of the recipe, for logs and reports.")
    extends: Text | tuple[Text, ...] | None = Field(
        None,
        description="Recipe file that this one builds on, or a list of them; a later one overrides an "
        "earlier one, and this file overrides them all. Paths start from the folder of this file. Mappings "
        "are merged, stages are merged by name, other values are replaced.",
        examples=["base/pretrain_v15.yaml"],
    )
    env: tuple[EnvironmentName, ...] = Field(
        (),
        description="Environment variables that this recipe may use as `${NAME}`. No others are read.",
        examples=[["DATA_DIR"]],
    )
    vars: dict[Name, str | int | float | bool] = Field(
        default_factory=dict, description="Values that this recipe may use as `${name}`."
    )
    model: Model = Field(description="The parts of the model: language model, vision tower, projector.")
    stages: tuple[Stage, ...] = Field(min_length=1, description="Training stages, in order.")
