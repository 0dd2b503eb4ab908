"""Flags of Hugging Face's TrainingArguments, as transformers 4 had them, and what they are in a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from llava_recipes.migrate.commands import UntoldLabel
from llava_recipes.migrate.draft import STAGE, Draft, spell_path
from llava_recipes.migrate.evaluation import EVALUATION_FLAGS, translate_evaluation
from llava_recipes.migrate.flags import Flags
from llava_recipes.migrate.programs import Program
from llava_recipes.plan.arguments import EXTRA_FIELDS, REFUSED_FIELDS
from llava_recipes.recipe.scalars import Value, say_number
from llava_recipes.recipe.spelling import did_you_mean, nearest

_Type = Literal["number", "whole", "switch", "text"]

_FLAGS: Mapping[str, tuple[_Type, Value]] = MappingProxyType(
    {
        "per_device_train_batch_size": ("whole", 8),
        "per_device_eval_batch_size": ("whole", 8),
        "gradient_accumulation_steps": ("whole", 1),
        "learning_rate": ("number", 5e-5),
        "weight_decay": ("number", 0.0),
        "adam_beta1": ("number", None),
        "adam_beta2": ("number", None),
        "adam_epsilon": ("number", None),
        "max_grad_norm": ("number", 1.0),
        "optim": ("text", "adamw_torch"),
        "lr_scheduler_type": ("text", "linear"),
        "bf16": ("switch", False),
        "fp16": ("switch", None),
        "tf32": ("switch", None),
        "gradient_checkpointing": ("switch", False),
        "dataloader_num_workers": ("whole", 0),
        "logging_steps": ("whole", 500),
        "save_strategy": ("text", "steps"),
        "save_steps": ("whole", 500),
        "save_total_limit": ("whole", None),
        "seed": ("whole", 42),
    }
)
"""Flags that keep their name under `train`, and the value when they are left out (None: the recipe's own)."""

_NEEDLESS: Mapping[str, str] = MappingProxyType(
    {
        "remove_unused_columns": "the data is read as the recipe says",
        "do_train": "a stage always trains",
        "overwrite_output_dir": "a finished run is never overwritten",
        "logging_dir": "logs go to `output_dir`",
        "cache_dir": "the variable HF_HOME says where models are kept",
        "local_rank": "`llava-recipe run` starts the processes",
        "attn_implementation": "the fastest attention at hand is used; the numbers are the same",
        "tokenizer_use_fast": "the token ids are those of the slow tokenizer",
        "is_multimodal": "a source with `images` holds pictures",
        "save_safetensors": "both forms are written",
        "logging_strategy": "`logging_steps` counts steps",
        "logging_first_step": "with `logging_steps: 1` every step is logged",
        "mpt_attn_impl": "it speaks of another language model",
        "verbose_logging": "it changes nothing in training",
        "disable_tqdm": "progress is shown by llava-recipe itself",
        "resume_from_checkpoint": "run `llava-recipe run FILE --resume`",
        "tokenizer_padding_side": "sequences are padded at the right",
    }
)
_LABELS: Mapping[str, str] = MappingProxyType({"run_name": "the recipe is named after its folder"})
_LARGEST_BATCH = 10_000_000
_TRACKERS = ("wandb", "tensorboard")


def translate_training(
    flags: Flags, draft: Draft, *, defaults: Mapping[str, Value] = MappingProxyType({})
) -> None:
    """Fill in `train` and `output_dir`; `defaults` are the program's own, where Hugging Face's are others."""
    for name, (kind, usual) in _FLAGS.items():
        default = defaults.get(name, usual)
        value: Value = getattr(flags, kind)(name)
        path = (STAGE, "train", name)
        if value is not None:
            draft.mapped(f"--{name}", flags[name].text, path, value, mark=flags[name].mark)
        elif default is not None and name not in flags:
            draft.default(f"--{name}", path, default)
    _translate_length(flags, draft)
    _translate_warmup(flags, draft)
    translate_evaluation(flags, draft)
    _translate_reports(flags, draft)
    folder = flags.text("output_dir")
    if folder is not None:
        draft.mapped("--output_dir", folder, (STAGE, "output_dir"), folder, mark=flags["output_dir"].mark)


def put_total_batch(draft: Draft, num_processes: int | None) -> None:
    """Say the samples of a step in all where the launcher says how many processes take part."""
    train = (STAGE, "train")
    per_device, accumulation = (
        draft.read(*train, key) for key in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    if num_processes is None or not isinstance(per_device, int) or not isinstance(accumulation, int):
        return
    total = per_device * num_processes * accumulation
    if total <= 0 or total > _LARGEST_BATCH:
        return
    values = draft.read(*train)
    assert isinstance(values, dict)
    del values["gradient_accumulation_steps"]
    draft.comments.pop((*train, "gradient_accumulation_steps"), None)
    processes = "1 process" if num_processes == 1 else f"{num_processes} processes"
    product = f"{per_device} per device × {processes} × {accumulation} = {total} samples a step"
    path = (*train, "global_batch_size")
    draft.put(path, total, f"{per_device} × {processes} × {accumulation}")
    draft.entries = [
        replace(entry, key=spell_path(path), remark=product)
        if entry.key == "train.gradient_accumulation_steps"
        else entry
        for entry in draft.entries
    ]


def translate_rest(flags: Flags, draft: Draft, known: tuple[str, ...], program: Program) -> None:
    """Say of every flag that is left what becomes of it. `known` are the flags that this program has.

    Of a fork that is not known: it may well have a flag of its own whose name is near one of these.
    """
    for flag in flags.unread():
        name = flag.name
        if name in EXTRA_FIELDS and _translate_extra(name, flags, draft):
            continue
        if name in _NEEDLESS:
            draft.needless(f"--{name}", flag.text, _NEEDLESS[name], flag.mark)
        elif name in REFUSED_FIELDS:
            draft.lost(f"--{name}", flag.text, REFUSED_FIELDS[name].removeprefix("remove it: "), flag.mark)
        else:
            names = (*known, *_FLAGS, *_NEEDLESS, *EVALUATION_FLAGS, *EXTRA_FIELDS)
            draft.lost(f"--{name}", flag.text, _why_lost(name, names, program), flag.mark)


def tell_untold_labels(labels: Sequence[UntoldLabel], draft: Draft) -> None:
    """Say of labels that only a shell could tell why nothing is lost without them."""
    for label in labels:
        instead = _LABELS.get(label.name) or _NEEDLESS.get(label.name) or "nothing depends on it"
        why = f"{label.problem.message.partition(',')[0]}, and it is a label: {instead}"
        draft.needless(f"--{label.name}", label.text, why, label.problem.mark)


def _why_lost(name: str, names: Sequence[str], program: Program) -> str:
    if name.startswith("video_"):
        return "recipes train on images alone"
    if name in names:
        return "recipes have no key for it yet"
    if not program.is_known:
        near = nearest(name, names)
        why = "recipes have no key for it: a flag of the program's own"
        return why if near is None else f"{why}, or `--{near}` misspelt"
    near = did_you_mean(name, [f"--{other}" for other in names])
    return near or f"{program.name} has no such flag: it is a fork's, or misspelt"


def _translate_length(flags: Flags, draft: Draft) -> None:
    max_steps, epochs = flags.whole("max_steps"), flags.number("num_train_epochs")
    if max_steps is not None and max_steps > 0:
        path = (STAGE, "train", "max_steps")
        draft.mapped("--max_steps", str(max_steps), path, max_steps, mark=flags["max_steps"].mark)
        if epochs is not None:
            draft.needless("--num_train_epochs", say_number(epochs), "`max_steps` goes before it")
        return
    if max_steps is not None:
        draft.needless("--max_steps", str(max_steps), "training is counted in epochs")
    length = (STAGE, "train", "num_train_epochs")
    if epochs is not None:
        value = int(epochs) if epochs == int(epochs) else epochs
        flag = flags["num_train_epochs"]
        draft.mapped("--num_train_epochs", flag.text, length, value, mark=flag.mark)
    elif "num_train_epochs" not in flags:
        draft.default("--num_train_epochs", length, 3)


def _translate_warmup(flags: Flags, draft: Draft) -> None:
    steps, ratio = flags.whole("warmup_steps"), flags.number("warmup_ratio")
    schedule = draft.read(STAGE, "train", "lr_scheduler_type")
    given = [(name, value) for name, value in (("warmup_steps", steps), ("warmup_ratio", ratio)) if value]
    for index, (name, value) in enumerate(given):
        flag = flags[name]
        if schedule == "constant":
            draft.needless(f"--{name}", flag.text, "the schedule `constant` does not warm up", flag.mark)
        elif index:
            draft.needless(f"--{name}", flag.text, "`warmup_steps` goes before it", flag.mark)
        else:
            draft.mapped(f"--{name}", flag.text, (STAGE, "train", name), value, mark=flag.mark)
    if not given:
        for name in ("warmup_steps", "warmup_ratio"):
            if name in flags:
                draft.needless(f"--{name}", flags[name].text, "no warm-up, as without it", flags[name].mark)


def _translate_reports(flags: Flags, draft: Draft) -> None:
    path = (STAGE, "train", "report_to")
    flag = flags.take("report_to")
    if flag is None:
        remark = "the original reports to every tracker that is installed"
        draft.default("--report_to", path, "none", remark=remark)
        return
    given = [name for value in flag.values for name in value.replace(",", " ").split()]
    names = [name for name in dict.fromkeys(given) if name in _TRACKERS]
    for name in given:
        if name not in (*_TRACKERS, "none"):
            draft.lost("--report_to", name, "trackers: wandb, tensorboard", flag.mark)
    value: Value = "none"
    if names:
        value = names[0] if len(names) == 1 else list[Value](names)
    draft.mapped("--report_to", flag.text, path, value, mark=flag.mark)


def _translate_extra(name: str, flags: Flags, draft: Draft) -> bool:
    """Whether the flag could be read as the type that `train.extra` takes."""
    kinds = EXTRA_FIELDS[name].split("|")
    value: Value
    if "bool" in kinds:
        value = flags.switch(name)
    elif "int" in kinds:
        value = flags.whole(name)
    elif "float" in kinds:
        value = flags.number(name)
    elif "str" in kinds:
        value = flags.text(name)
    else:
        return False
    if value is not None:
        path = (STAGE, "train", "extra", name)
        draft.mapped(f"--{name}", flags[name].text, path, value, mark=flags[name].mark)
    return True
