"""The recipe language: every key, its type, default and meaning.

These models hold shape, type and range alone. Rules between keys live in `rules.py`.
Descriptions are written for the person who types the key: they feed the JSON Schema and the reference.
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
    """A value that never changes and refuses keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), defer_build=True
    )


class ParamGroup(Frozen):
    """Modules with a learning rate or weight decay of their own."""

    modules: tuple[Text, ...] = Field(
        min_length=1,
        description="Globs of modules; of what they match, that which trains makes the group.",
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
    """Low-rank adapters beside frozen linear layers."""

    r: int = Field(64, gt=0, description="Rank of the adapters.", examples=[128])
    alpha: float = Field(
        16, gt=0, description="Scale: an adapter's output is multiplied by alpha / r.", examples=[256]
    )
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on what enters an adapter.")
    modules: tuple[Text, ...] = Field(
        ("language_model",),
        min_length=1,
        description="Globs; the linear layers under them are adapted. vision_tower, projector and lm_head "
        "only where a glob begins with their name.",
        examples=[["language_model"], ["language_model.layers.*.self_attn"]],
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        "none",
        description="Biases that train too: none, all of the adapted parts, or those of the adapted layers.",
    )
    use_dora: bool = Field(False, description="DoRA: train the length of each weight row apart.")
    use_rslora: bool = Field(False, description="rsLoRA: scale by alpha / sqrt(r).")


class Samples(Frozen):
    """What `sample_every` asks the model."""

    num: int | None = Field(
        None,
        gt=0,
        le=100,
        description="How many records are asked: the first with a picture, of the validation data, or of the "
        "training data where there is none. Default 4.",
        examples=[4],
    )
    images: tuple[Text, ...] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Picture files of your own instead, each asked `prompt`.",
        examples=[["./pictures/cat.jpg"]],
    )
    prompt: Text | None = Field(
        None,
        description="What is asked of each of `images`. Not with `template: plain`, which captions.",
        examples=["What is in this picture?"],
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
    """One annotation file, the folder of its images, and how much of it is used."""

    annotations: Text = Field(
        description="JSON file: a list of records with `id`, `image` and `conversations`; or JSONL; or a "
        "Parquet file, a folder of them, or a pattern such as `data/train-*.parquet`.",
        examples=["./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"],
    )
    images: Text | None = Field(
        None,
        description="Folder that the records' `image` paths start from. Leave out for text-only data, and "
        "for pictures that lie inside a Parquet file.",
    )
    num_samples: int | None = Field(
        None,
        gt=0,
        description="How many records the file holds. Lets `plan` count steps without the file; "
        "checked when the file is read.",
        examples=[558128],
    )
    sampling_strategy: SamplingStrategy = Field(
        "all",
        description="Which records are used: `all`, or the `first`, the `end` or a `random` part of the "
        "file, as a number or a percentage (rounded up): `first:1000`, `end:5%`, `random:10%`.",
        examples=["random:10%"],
    )
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How many times the chosen records count in an epoch. `2.0` uses each of them twice, "
        "`0.5` a random half; the same records in every epoch.",
        examples=[2.0],
    )


class Validation(Frozen):
    """Records that are never trained on, for a loss that is measured during training."""

    sources: tuple[Source, ...] | None = Field(
        None,
        min_length=1,
        description="Annotation files of their own, with the keys of `data.sources`. One of this and `split` "
        "is needed.",
    )
    split: float | None = Field(
        None,
        gt=0,
        description="Part of the training data that is held out: a share below 1 (rounded up) or a whole "
        "number of records; drawn at random by `train.seed`, from every source in proportion.",
        examples=[0.01, 500],
    )


ProjectorName = Annotated[str, Field(pattern=projectors.pattern())]


class Quantization(Frozen):
    """Hold the language model's linear layers in few bits while adapters train beside them: QLoRA."""

    bits: Literal[4, 8] = Field(description="Bits of a weight. The head `lm_head` keeps its precision.")
    type: Literal["nf4", "fp4"] = Field(
        "nf4",
        description="What the 16 values stand for: `nf4` fits the spread of weights, `fp4` is a small float. "
        "4 bits only.",
    )
    double_quant: bool = Field(
        True, description="Quantize the scales of the blocks too: 0.4 bits less per weight. 4 bits only."
    )


class LanguageModel(Frozen):
    """The language model: `source` for pretrained weights, or `config` for random ones."""

    source: Text | None = Field(
        None,
        description="Hub id or local folder of a pretrained causal language model.",
        examples=["lmsys/vicuna-13b-v1.5"],
    )
    revision: Text | None = Field(None, description="Hub revision (commit, tag or branch) to pin.")
    config: dict[str, JsonValue] | None = Field(
        None,
        description="Inline Hugging Face config with its `model_type`; the weights are random.",
        examples=[{"model_type": "llama", "hidden_size": 64}],
    )
    tokenizer: Text | None = Field(
        None,
        description="Hub id or local folder of the tokenizer. Needed with `config`; default: `source`.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the random weights; used with `config`.")
    quantization: Quantization | None = Field(
        None,
        description="Hold the linear layers in 4 or 8 bits; needs `source`, and bitsandbytes. "
        "Default: in the 16 or 32 bits of the stage.",
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
    revision: Text | None = Field(None, description="Hub revision (commit, tag or branch) to pin.")
    config: dict[str, JsonValue] | None = Field(
        None,
        description="Inline Hugging Face vision config with its `model_type`; the weights are random.",
        examples=[{"model_type": "clip_vision_model", "hidden_size": 32}],
    )
    image_processor: dict[str, JsonValue] | None = Field(
        None,
        description="Image processor settings (size, crop, mean, std), over the defaults for `config`.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the random weights; used with `config`.")
    select_layer: int = Field(
        -2,
        description="Which hidden state of the tower is used: -1 the last layer, -2 the second to last. "
        "Index 0 is the embedding output.",
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
        description="File with initial weights, `.bin` or `.safetensors`, with the original's key names.",
        examples=["./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin"],
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the random initial weights.")


class ImageTokens(Frozen):
    """Extra tokens around the image."""

    start_end: bool = Field(
        False,
        description="Put `<im_start>` and `<im_end>` around every image; `plain` does so only where they "
        "train. Their embeddings begin as the mean of all others.",
    )
    patch: bool = Field(False, description="Add the token `<im_patch>` to the tokenizer.")


class Model(Frozen):
    """What is assembled: language model, vision tower, projector."""

    language_model: LanguageModelChoice = Field(
        description="Hub id or folder of a causal language model, or a mapping.",
        examples=["lmsys/vicuna-13b-v1.5"],
    )
    vision_tower: VisionTower = Field(description="The vision tower and which of its features are used.")
    projector: Projector = Field(
        default_factory=lambda: Projector.model_construct(type=projectors.STOCK, init_from=None, seed=0),
        description="The module between vision tower and language model.",
    )
    image_tokens: ImageTokens = Field(
        default_factory=lambda: ImageTokens.model_construct(start_end=False, patch=False),
        description="Extra tokens around the image.",
    )


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]
Pinpoint = Annotated[tuple[Annotated[int, Field(gt=0, le=2**20)], ...], Field(min_length=2, max_length=2)]
Report = Literal["wandb", "tensorboard"]
TemplateName = Template | Alias


class Data(Frozen):
    """What a stage trains on and how it is written as tokens."""

    template: TemplateName | None = Field(
        None,
        description=describe_templates(),
        examples=["v1"],
    )
    chat_template: Literal["tokenizer"] | None = Field(
        None,
        description="`tokenizer`: the tokenizer's own chat template writes the conversations, in place of "
        "`template`. One of the two is needed.",
    )
    system_prompt: Text | None = Field(
        None, description="What stands before the first turn, in place of the template's own system prompt."
    )
    sources: tuple[Source, ...] = Field(min_length=1, description="Annotation files, read one after another.")
    validation: Validation | None = Field(
        None,
        description="Records for a loss that is measured as `train.eval_strategy` says and at the end.",
        examples=[{"split": 0.01}],
    )
    image_aspect_ratio: Literal["square", "pad", "anyres"] = Field(
        "square",
        description="`square` lets the image processor resize and crop; `pad` first pads to a square "
        "with the mean colour; `anyres` takes the whole picture and the crops of a grid besides, as "
        "LLaVA-NeXT does.",
    )
    image_grid_pinpoints: tuple[Pinpoint, ...] | None = Field(
        None,
        min_length=1,
        description="With `anyres`, the sizes that a picture may be spread over, as `[width, height]` in "
        "pixels, multiples of the tower's image size. Default: 1 × 2, 2 × 1, 2 × 2, 3 × 1 and 1 × 3 of it.",
        examples=[[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]],
    )
    mm_patch_merge_type: MergeType | None = Field(
        None,
        description="With `anyres`, how the features of the crops are put in a row: `flat`, crop by crop "
        "(the default); `spatial`, row by row over the whole grid; `spatial_unpad`, so without what padding "
        "covers and with a learned `image_newline` at the end of each row.",
        examples=["spatial_unpad"],
    )
    max_length: int = Field(
        2048, gt=0, description="Longest sequence in tokens, counted after the image is expanded."
    )
    shuffle: bool = Field(True, description="Draw a new order every epoch; false keeps the file order.")
    order: Literal["seed", "original"] = Field(
        "seed",
        description="Which order is drawn. `seed`: one from `train.seed`, the same for any number "
        "of processes. `original`: the one that LLaVA's code drew. With one process that is the order of "
        "`seed`; with two or more it is another one, which depends neither on their number nor, unless "
        "samples are grouped, on the seed. The first start decides, and a resumed run keeps its order.",
        examples=["original"],
    )
    group_by: Literal["none", "length", "modality_length"] = Field(
        "none",
        description="`length` puts samples of like length in one batch; `modality_length` also keeps samples "
        "with and without pictures apart. Less padding; the order is still random.",
    )
    on_bad_image: Literal["error", "skip"] = Field(
        "error",
        description="What a missing or broken image does during training: stop the run, "
        "or replace the sample by the next good one and count it.",
    )
    lazy_preprocess: bool = Field(
        True, description="Tokenise samples as they are drawn; false tokenises all of them before step 1."
    )


class Train(Frozen):
    """How a stage trains. Names and meanings are those of Hugging Face TrainingArguments."""

    num_train_epochs: float | None = Field(
        None, gt=0, le=1e6, description="Passes over the data. One of this and `max_steps` is needed."
    )
    max_steps: int | None = Field(
        None, gt=0, description="Optimizer steps, instead of epochs.", examples=[1000]
    )
    per_device_train_batch_size: int = Field(8, gt=0, description="Samples per device and forward pass.")
    per_device_eval_batch_size: int = Field(8, gt=0, description="The same for evaluation.")
    gradient_accumulation_steps: int | None = Field(
        None,
        gt=0,
        description="Forward passes per optimizer step. Default 1, or what `global_batch_size` needs.",
        examples=[2],
    )
    global_batch_size: int | None = Field(
        None,
        gt=0,
        description="Samples per optimizer step over all devices. Give this instead of "
        "`gradient_accumulation_steps`.",
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
        description="Clip the gradient norm; 0 turns clipping off. LLaVA's own runs weren't clipped, "
        "whatever the flag said: DeepSpeed 0.12.6 doesn't clip without `gradient_clipping` in its file.",
    )
    optim: Text = Field("adamw_torch", description="Optimizer, by its Hugging Face name.")
    warmup_ratio: float | None = Field(
        None, ge=0, lt=1, description="Share of the steps with a rising learning rate.", examples=[0.03]
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="Steps with a rising learning rate.", examples=[100]
    )
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = Field("cosine", description="Shape of the learning rate after warm-up.")
    loss_normalization: Literal["device_batch", "token"] = Field(
        "device_batch",
        description="`device_batch`: the original's mean over the label tokens of each device batch, "
        "averaged over accumulation steps and processes. "
        "`token`: the mean over all label tokens of the step.",
    )
    bf16: bool = Field(False, description="Train in bfloat16.")
    fp16: bool = Field(False, description="Train in float16 with loss scaling.")
    tf32: bool = Field(False, description="Allow TF32 matrix products on Ampere and newer GPUs.")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass to save memory."
    )
    dataloader_num_workers: int = Field(0, ge=0, description="Processes per device that load data.")
    eval_strategy: Literal["no", "steps", "epoch"] = Field(
        "no",
        description="When the loss on `data.validation` is measured; with `no` at the end alone, as it "
        "always is.",
    )
    eval_steps: int = Field(500, gt=0, description="Steps between them, with `eval_strategy: steps`.")
    logging_steps: int = Field(1, gt=0, description="Steps between log lines.")
    save_strategy: Literal["steps", "epoch", "no"] = Field(
        "steps", description="When checkpoints are written."
    )
    save_steps: int = Field(500, gt=0, description="Steps between checkpoints, with `save_strategy: steps`.")
    save_total_limit: int | None = Field(None, gt=0, description="Checkpoints to keep; older ones go.")
    report_to: Literal["none"] | Report | tuple[Report, ...] = Field(
        "none", description="Where metrics go besides `metrics.jsonl`: wandb, tensorboard, a list, or none."
    )
    seed: int = Field(
        42,
        ge=0,
        lt=2**32,
        description="Seed of training and of the data order, except for `order: original` on several GPUs.",
    )
    extra: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Any other TrainingArguments field, checked by name.",
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
    """One training run: what trains, on what, how, and where it is written."""

    name: Name = Field(description="Name of the stage, unique in the recipe.")
    init_from: Text | None = Field(
        None,
        description="Where the weights start: `base`, the name of an earlier stage, or a path or hub id: "
        "another run's folder, a projector's file, adapters, or a LLaVA checkpoint. "
        "Default: the stage before, `base` for the first.",
    )
    freeze: Freeze = Field(
        "all", description="What is frozen: `all`, `none`, or a list of module globs.", examples=["all"]
    )
    trainable: tuple[Text, ...] = Field(
        (),
        description="Globs of modules that train; they win over `freeze`. Roots: vision_tower, projector, "
        "language_model, lm_head; image_tokens, the embeddings of `<im_start>` and `<im_end>` alone; and "
        "with `spatial_unpad` image_newline.",
        examples=[["projector"]],
    )
    lora: Lora | None = Field(
        None,
        description="Train low-rank adapters beside linear layers, which stay frozen. "
        "What `trainable` names trains in full beside them.",
        examples=[{"r": 128, "alpha": 256}],
    )
    param_groups: tuple[ParamGroup, ...] = Field(
        (),
        description="Modules with a learning rate or weight decay of their own; all else takes `train`'s.",
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
        description="Steps between looks at what the model says: it answers about a few fixed pictures, and "
        "after the last step too. Written to `samples.jsonl`; training is the same with and without.",
        examples=[500],
    )
    samples: Samples | None = Field(None, description="Which pictures `sample_every` asks about, and what.")
    output_dir: Text = Field(
        description="Folder for everything the stage writes.",
        examples=["./checkpoints/llava-v1.5-13b-pretrain"],
    )


class Recipe(Frozen):
    """One YAML file: one run of one or several stages."""

    version: Literal[1] = Field(description="Version of the recipe language.")
    name: Name = Field(description="Name of the recipe, for logs and reports.")
    extends: Text | tuple[Text, ...] | None = Field(
        None,
        description="Recipe file that this one is laid over, or a list of them, the later over the earlier. "
        "Paths start from the folder of this file. Mappings merge, stages merge by name, other values are "
        "replaced.",
        examples=["base/pretrain_v15.yaml"],
    )
    env: tuple[EnvironmentName, ...] = Field(
        (),
        description="Environment variables to use elsewhere as `${NAME}`. No others are read.",
        examples=[["DATA_DIR"]],
    )
    vars: dict[Name, str | int | float | bool] = Field(
        default_factory=dict, description="Values to use elsewhere as `${name}`."
    )
    model: Model = Field(description="What is assembled.")
    stages: tuple[Stage, ...] = Field(min_length=1, description="Training stages, in order.")
