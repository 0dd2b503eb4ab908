"""The Plan: everything a run does, with nothing left to guess. JSON in, JSON out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Final, Literal

from pydantic import Field, JsonValue

from llava_recipes.anyres import MergeType
from llava_recipes.layouts import Template
from llava_recipes.recipe.scalars import as_list, as_mapping
from llava_recipes.recipe.schema import (
    Expect,
    Frozen,
    ImageTokens,
    Lora,
    Projector,
    Quantization,
    VisionTower,
)

Precision = Literal["fp32", "bf16", "fp16"]
"""What a stage computes in, in the words of `plan`."""


class LanguageModelPlan(Frozen):
    """Where the language model comes from; exactly one of `source` and `config` is set."""

    source: str | None
    revision: str | None
    config: dict[str, JsonValue] | None
    tokenizer: str = Field(description="Hub id or folder of the tokenizer.")
    seed: int
    quantization: Quantization | None = Field(
        None, description="How the linear layers are quantized; None where they are not."
    )


class ModuleSize(Frozen):
    """Parameters of one root module, counted from the configs."""

    name: Literal["vision_tower", "projector", "language_model", "image_newline", "lm_head"]
    num_parameters: int


class ModelSizes(Frozen):
    """What the configs say about the assembled model."""

    language_hidden_size: int
    vision_hidden_size: int
    image_px: int = Field(description="Height and width of the tower's input, pixels.")
    num_image_tokens: int = Field(
        description="Tokens that one image of the tower's size becomes; with `anyres` an image is several."
    )
    vocab_size: int
    max_position_embeddings: int | None
    modules: tuple[ModuleSize, ...]
    num_parameters: int


class ModelPlan(Frozen):
    """The model to assemble."""

    language_model: LanguageModelPlan
    vision_tower: VisionTower
    projector: Projector
    image_tokens: ImageTokens
    image_newline: bool = Field(
        False, description="Whether the model has a learned end of a row of features: `spatial_unpad`."
    )
    sizes: ModelSizes | None = Field(description="None where a config is missing; see the plan's notes.")


class ImageCounts(Frozen):
    """What one image of a stage takes, in the sequence and in the tower."""

    least_tokens: int = Field(description="Tokens of the smallest image.")
    usual_tokens: int = Field(description="Tokens of a photo of 640 × 480 pixels.")
    most_tokens: int = Field(description="Tokens of the largest possible image.")
    usual_crops: int = Field(description="Crops of that photo that the tower sees.")
    most_crops: int = Field(description="Crops of an image that the tower sees at most.")


class SourcePlan(Frozen):
    """One annotation file, and which of its records are samples."""

    annotations: str
    images: str | None
    num_samples: int | None = Field(description="Records in the file; None while it is missing.")
    sampling_strategy: str = "all"
    weight: float = 1.0
    num_held_out: int | None = Field(0, description="Of the chosen records, those kept for validation.")
    part: Literal["training", "held_out"] = Field(
        "training", description="Which of the two parts the samples belong to."
    )
    num_used: int | None = Field(None, description="Samples that an epoch draws from it.")
    draw_seed: str = Field(
        "",
        description="Seeds the random draws: the stage's seed and the source. Empty where nothing is drawn.",
    )

    @property
    def may_have_images(self) -> bool:
        """Whether its samples may have images, as far as the recipe says."""
        return self.images is not None or not self.annotations.endswith((".json", ".jsonl"))


class ValidationPlan(Frozen):
    """What the validation loss is measured on, and how often."""

    sources: tuple[SourcePlan, ...]
    split: float | None = Field(description="None where the sources are separate files.")
    num_samples: int | None
    num_evaluations: int | None = Field(description="Over the stage, including the one at the end.")


class DataPlan(Frozen):
    template: Template | None = Field(description="The main one of its names; None with a chat template.")
    chat_template: Literal["tokenizer"] | None = None
    system_prompt: str | None = Field(None, description="None for that of the template.")
    tokens_in_plain: bool = Field(
        False, description="Whether `plain` writes `<im_start>` and `<im_end>`, as it does where they train."
    )
    sources: tuple[SourcePlan, ...]
    num_samples: int | None = Field(
        description="Samples of an epoch, the sum over the sources; None while a file is missing."
    )
    image_aspect_ratio: Literal["square", "pad", "anyres"]
    image_grid_pinpoints: tuple[tuple[int, int], ...] | None = Field(
        None,
        description="Sizes that an image may be spread over, width and height in pixels. None without "
        "`anyres`, and where the tower's size is not known: then its usual five.",
    )
    mm_patch_merge_type: MergeType = Field(
        "flat", description="How the features of an image's crops are joined."
    )
    image_counts: ImageCounts | None = Field(None, description="None where the tower's size is not known.")
    max_length: int
    shuffle: bool
    order: Literal["file", "seed", "original"] = Field(
        "seed",
        description="Order of the samples: that of the files, one drawn from the seed, or the original's, "
        "which is that of the seed in a run that was started with one process.",
    )
    group_by: Literal["none", "length", "modality_length"]
    on_bad_image: Literal["error", "skip"]
    lazy_preprocess: bool
    validation: ValidationPlan | None = None

    def for_validation(self) -> DataPlan | None:
        """The validation data as data of a stage, in file order; None where there is none."""
        if self.validation is None:
            return None
        changes = {
            "sources": self.validation.sources,
            "num_samples": self.validation.num_samples,
            "shuffle": False,
            "order": "file",
            "group_by": "none",
            "validation": None,
        }
        return self.model_copy(update=changes)

    @property
    def may_have_images(self) -> bool:
        """Whether its samples may have images, as far as the recipe says."""
        return any(source.may_have_images for source in self.sources)

    @property
    def wording(self) -> str:
        """What writes the conversations: `template v1`, or the chat template."""
        return "the tokenizer's chat template" if self.template is None else f"template {self.template}"


class TrainPlan(Frozen):
    """Batch and step arithmetic, and the other keyword arguments of TrainingArguments."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    global_batch_size: int
    num_train_epochs: float | None
    steps_per_epoch: int | None = Field(
        description="Optimizer steps per epoch; None while samples are not counted."
    )
    max_steps: int | None = Field(description="Optimizer steps in all; None while samples are not counted.")
    warmup_steps: int | None
    learning_rate: float
    precision: Precision
    loss_normalization: Literal["device_batch", "token"]
    seed: int
    training_arguments: dict[str, JsonValue] = Field(
        description="Keyword arguments of transformers.TrainingArguments that are in no other field, without "
        "paths and processes."
    )

    @property
    def num_processes(self) -> int:
        return self.global_batch_size // (self.per_device_train_batch_size * self.gradient_accumulation_steps)

    @property
    def gradient_checkpointing(self) -> bool:
        return bool(self.training_arguments.get("activation_checkpointing"))


class ParamGroupPlan(Frozen):
    """Modules with a learning rate or weight decay of their own."""

    modules: tuple[str, ...]
    learning_rate: float
    weight_decay: float = Field(description="Not applied to biases and norms.")
    num_parameters: int | None = Field(description="Trainable ones in the group; None without sizes.")


class SamplingPlan(Frozen):
    """What the model is asked during training, and when."""

    every: int = Field(description="Steps between two rounds; one more follows the last step.")
    num_records: int | None = Field(
        description="The first records with an image; None where `images` are set."
    )
    images: tuple[str, ...]
    prompt: str | None
    max_new_tokens: int


class StagePlan(Frozen):
    name: str
    starts_from: tuple[str, ...] = Field(
        description="Output folders whose trained weights replace base weights, in order."
    )
    freeze: Literal["all", "none"] | tuple[str, ...]
    trainable: tuple[str, ...]
    num_trainable_parameters: int | None
    trainable_modules: tuple[str, ...] | None = Field(
        description="Shortest list of module names that covers exactly what trains; globs for adapters. "
        "None without sizes."
    )
    lora: Lora | None
    param_groups: tuple[ParamGroupPlan, ...]
    data: DataPlan
    train: TrainPlan
    deepspeed: dict[str, JsonValue] | None
    sampling: SamplingPlan | None = None
    expect: Expect | None = Field(None, description="Where the loss should end; outside, the run warns.")
    deepspeed_source: str = Field(description="Name of a preset, path of a file, `inline` or `none`.")
    output_dir: str


PLAN_VERSION: Final = 2


class Plan(Frozen):
    """A compiled recipe for a number of processes."""

    plan_version: Literal[2]
    recipe: str
    world_size: int = Field(gt=0, description="Processes, one per GPU.")
    model: ModelPlan
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...] = Field(
        description="What the reader should know: derived values, warnings, things not yet known."
    )


# Version 1 said these in a field and again among the arguments.
_SAID_TWICE = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps"),
    *("learning_rate", "seed", "bf16", "fp16", "average_tokens_across_devices"),
)


def plan_from_json(values: Mapping[str, JsonValue]) -> Plan:
    """The plan of a run folder, written by this version or an earlier one.

    Raises ValidationError where it is damaged, or of a later version.
    """
    plan = deepcopy(dict(values))
    if plan.get("plan_version") == 1:
        plan["plan_version"] = PLAN_VERSION
        for stage in as_list(plan.get("stages")):
            train = as_mapping(as_mapping(stage).get("train"))
            warmup = () if train.get("warmup_steps") is None else ("warmup_steps",)
            for key in (*_SAID_TWICE, *warmup):
                as_mapping(train.get("training_arguments")).pop(key, None)
    return Plan.model_validate_json(json.dumps(plan))
