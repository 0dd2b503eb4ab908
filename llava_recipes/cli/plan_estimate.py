"""A plan's estimate as sections of text: modules, tokens, hours, disk, memory, verdict, what to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llava_recipes.cli.plan_overview import Row, Section
from llava_recipes.estimate.assignment import Assignment
from llava_recipes.estimate.cost import GIB, GPUS, Compute, Disk, Tokens
from llava_recipes.estimate.estimate import Estimate, Fit, StageEstimate
from llava_recipes.estimate.memory import Memory
from llava_recipes.plan.trainable import ADAPTER
from llava_recipes.plan.types import Plan, StagePlan
from llava_recipes.recipe.globs import fold_layers
from llava_recipes.recipe.scalars import say_number, spell

if TYPE_CHECKING:
    from llava_recipes.estimate.fit import Proposal

_NUM_SHOWN_MODULES = 4


def fit_advice(fitted: bool) -> str:
    """What to do where a stage doesn't fit; `fitted` if the output of `--fit` follows."""
    return ": see below" if fitted else ": --fit suggests changes"


def estimate_sections(estimate: Estimate, *, fitted: bool) -> Iterator[Section]:
    """The sections of each stage: modules, cost, memory; `fitted` if the output of `--fit` follows."""
    advice = fit_advice(fitted)
    for stage in estimate.stages:
        yield f"stage {stage.name}, modules", list(module_rows(stage.modules))
        yield f"stage {stage.name}, cost", list(_cost_rows(stage, estimate))
        yield f"stage {stage.name}, memory of one GPU", list(_memory_rows(stage, advice))
    yield "estimate", [("–", estimate.basis)]


def config_sections(plan: Plan) -> Iterator[Section]:
    """The arguments of TrainingArguments and the DeepSpeed config, stage by stage."""
    from llava_recipes.plan.arguments import keyword_arguments
    from llava_recipes.plan.deepspeed import effective_deepspeed

    hidden = plan.model.sizes.language_hidden_size if plan.model.sizes else None
    for stage in plan.stages:
        rows = [(key, spell(value)) for key, value in sorted(keyword_arguments(stage.train).items())]
        yield f"stage {stage.name}, TrainingArguments", rows
        config = effective_deepspeed(stage, world_size=plan.world_size, hidden=hidden)
        if config is None:
            yield f"stage {stage.name}, DeepSpeed", [("none", "")]
        else:
            rows = [(key, spell(value)) for key, value in config.items()]
            yield f"stage {stage.name}, DeepSpeed ({stage.deepspeed_source})", rows


def proposal_sections(proposals: Sequence[tuple[StagePlan, Proposal | None]], gpu: str) -> Iterator[Section]:
    """What `--fit` proposes for each stage, with the lines to write."""
    for stage, proposal in proposals:
        title = f"stage {stage.name}, to fit on {GPUS[gpu].title}"
        if proposal is None:
            advice = "use more or larger GPUs" + (
                ", or train in half precision" if stage.train.precision == "fp32" else ""
            )
            yield title, [("–", f"no micro batch, checkpointing, ZeRO stage or offload fits: {advice}")]
            continue
        if not proposal.changes:
            yield title, [("–", f"nothing to change: {_margin(proposal.fit.longest_margin_bytes)}")]
            continue
        rows = [("change to", "; ".join(proposal.changes)), ("then", verdict_words(proposal.fit, ""))]
        rows += [("write" if number == 0 else "", line) for number, line in enumerate(proposal.lines)]
        rows += [("or" if n == 0 else "", f"--set '{value}'") for n, value in enumerate(proposal.overrides)]
        yield title, [*rows, *(("note", note) for note in proposal.notes)]


def group_modules(modules: Sequence[Assignment]) -> list[list[Assignment]]:
    """Modules of one root that are treated alike, together."""
    grouped: dict[Assignment, list[Assignment]] = {}
    for each in modules:
        alike = replace(each, module=each.module.split(".")[0], num_parameters=0, num_decayed=0)
        grouped.setdefault(alike, []).append(each)
    return list(grouped.values())


def module_rows(modules: Sequence[Assignment]) -> Iterator[Row]:
    """Modules that are treated alike in one row, their layers folded."""
    for members in group_modules(modules):
        names = module_names(members, modules)
        shown = ", ".join(names[:_NUM_SHOWN_MODULES])
        if len(names) > _NUM_SHOWN_MODULES:
            shown += f" and {len(names) - _NUM_SHOWN_MODULES} more"
        yield members[0].module.split(".")[0], _treatment(members, shown)


def module_names(members: Sequence[Assignment], modules: Sequence[Assignment]) -> tuple[str, ...]:
    """Names for modules that are treated alike: adapters by layer, others by their root where it is whole."""
    root = members[0].module.split(".")[0]
    if ADAPTER.search(f"{members[0].module}."):
        layers = dict.fromkeys(each.module.partition(".lora_")[0] for each in members)
        return tuple(f"{name}.lora_*" for name in fold_layers(tuple(layers)))
    in_full = [each for each in modules if not ADAPTER.search(f"{each.module}.")]
    if all(each in members for each in in_full if each.module.split(".")[0] == root):
        return (root,)
    return fold_layers(tuple(each.module for each in members))


def _treatment(members: Sequence[Assignment], shown: str) -> str:
    first = members[0]
    size = sum(member.num_parameters for member in members)
    words = [f"{size:,} in {shown}" if "." in shown else f"{size:,}"]
    if first.trains:
        decay = decay_words(members)
        words.append(f"train at {say_number(first.learning_rate or 0)}")
        words.append("no weight decay" if decay == "none" else f"decay {decay}")
    else:
        words.append("frozen")
    words.append(dtype_words(first))
    return f"{', '.join(words)}  ({first.rule})"


def decay_words(members: Sequence[Assignment]) -> str:
    """The weight decay of trained modules and how many parameters it applies to."""
    decayed = sum(member.num_decayed for member in members)
    return f"{say_number(members[0].weight_decay or 0)} on {decayed:,}" if decayed else "none"


def dtype_words(module: Assignment) -> str:
    return module.dtype + (" and float32 masters" if module.masters else "")


def _cost_rows(stage: StageEstimate, estimate: Estimate) -> Iterator[Row]:
    yield from token_rows(stage.tokens)
    yield from compute_rows(stage.compute, estimate)
    yield from disk_rows(stage.disk)


def token_rows(tokens: Tokens) -> Iterator[Row]:
    yield (
        "sample",
        f"{tokens.usual_length:,} tokens = {tokens.image:,} of an image"
        + (f" of {tokens.crops} crops" if tokens.crops > 1 else "")
        + f" + {tokens.text:,} of text, "
        f"{tokens.labels:,} of them learned (text is assumed; see --text-tokens, --label-tokens)",
    )
    if tokens.usual is None or tokens.at_most is None or tokens.from_images is None:
        yield "tokens", "not counted"
        return
    images = f", {millions(tokens.from_images)} of them of images" if tokens.image else ""
    at_most = f"at most {millions(tokens.at_most)}, every sample at max_length"
    yield "tokens", f"{millions(tokens.usual)} usually{images}; {at_most}"


def compute_rows(compute: Compute, estimate: Estimate) -> Iterator[Row]:
    if compute.flops is None:
        yield "compute", "not counted"
        return
    yield (
        "compute",
        f"{say_number(compute.flops, digits=3)} floating-point operations, recomputation included",
    )
    if compute.hours is None or compute.efficiency is None or estimate.gpu is None:
        yield "time", "name a GPU with --gpu"
        return
    gpu = GPUS[estimate.gpu]
    yield (
        "time",
        f"{duration(compute.hours)} on {estimate.world_size} × {gpu.title}, "
        f"{compute.hours * estimate.world_size:,.1f} GPU hours; {compute.efficiency:.0%} of the rate is "
        f"assumed, since {compute.kind}",
    )


def disk_rows(disk: Disk) -> Iterator[Row]:
    final = f"{size(disk.final_bytes)} of trained weights at the end"
    if disk.num_checkpoints is None:
        yield "disk", f"{size(disk.checkpoint_bytes)} a checkpoint, {final}"
    elif disk.num_checkpoints == 0:
        yield "disk", f"no checkpoints, {final}"
    else:
        yield (
            "disk",
            f"{size(disk.checkpoint_bytes)} a checkpoint, {disk.num_checkpoints:,} written, "
            f"{disk.num_kept:,} kept; {final}; at most {size(disk.peak_bytes or 0)} at once",
        )


def _memory_rows(stage: StageEstimate, advice: str) -> Iterator[Row]:
    usual, longest = stage.usual, stage.longest
    lengths = f"{usual.length:,}", f"{longest.length:,}"
    yield "", _columns(*lengths, "tokens in every sample of a batch")
    for name, one, another, formula in merged_parts(usual, longest):
        yield name, _columns(gib(one), gib(another), formula)
    yield "in all", _columns(gib(usual.total_bytes), gib(longest.total_bytes), moments(stage))
    yield from aside_rows(stage)
    if usual.host_bytes:
        yield "main memory", _columns(gib(usual.host_bytes), gib(longest.host_bytes), "for each process")
    yield from fit_rows(stage.fits, advice)


def aside_rows(stage: StageEstimate) -> Iterator[Row]:
    """Memory at other moments than the fullest, and with gradient checkpointing switched."""
    usual, longest, other = stage.usual, stage.longest, stage.otherwise
    if all(part.name != "logits" for part in (*usual.parts, *longest.parts)):
        yield "logits", _columns(gib(usual.logits_bytes), gib(longest.logits_bytes), "at the end of forward")
    for one, another in zip(usual.moments, longest.moments, strict=True):
        if one.name not in (usual.moment, longest.moment):
            yield "", _columns(gib(one.num_bytes), gib(another.num_bytes), f"in all, {one.name}")
    words = f"in all, {'with' if other.checkpointing else 'without'} gradient checkpointing"
    yield "otherwise", _columns(gib(other.usual_bytes), gib(other.longest_bytes), words)
    activations = gib(other.usual_activations_bytes), gib(other.longest_activations_bytes)
    yield "", _columns(*activations, "of it activations")


def _columns(left: str, right: str, words: str) -> str:
    return f"{left:>12}  {right:>12}  {words}"


def fit_rows(fits: Sequence[Fit], advice: str) -> Iterator[Row]:
    if len(fits) == 1:
        yield GPUS[fits[0].gpu].title, verdict_words(fits[0], advice)
        if fits[0].caution is not None:
            yield "but", fits[0].caution
        return
    for verdict in ("fits", "fits at the usual length", "does not fit"):
        names = [fit.gpu for fit in fits if fit.verdict == verdict]
        if names:
            yield verdict.replace("fits at the usual length", "usual length"), ", ".join(names)


def verdict_words(fit: Fit, advice: str) -> str:
    """Whether it fits; where it doesn't, `advice` follows."""
    if fit.verdict == "fits":
        return f"fits, {_margin(fit.usual_margin_bytes)} at the usual length, " + (
            f"{_margin(fit.longest_margin_bytes)} at max_length"
        )
    if fit.verdict == "fits at the usual length":
        return (
            f"fits at the usual length, {_margin(fit.usual_margin_bytes)}; a batch at max_length lacks "
            f"{gib(-fit.longest_margin_bytes)}{advice}"
        )
    return f"does not fit, {gib(-fit.usual_margin_bytes)} are missing{advice}"


def merged_parts(usual: Memory, longest: Memory) -> Iterator[tuple[str, int, int, str]]:
    """The parts of both lengths side by side, temporary ones last."""
    parts = {part.name: part for part in (*longest.parts, *usual.parts)}
    ordered = dict.fromkeys(part.name for part in (*usual.parts, *longest.parts))
    at_usual = {part.name: part.num_bytes for part in usual.parts}
    at_longest = {part.name: part.num_bytes for part in longest.parts}
    for name in ordered:
        yield name, at_usual.get(name, 0), at_longest.get(name, 0), parts[name].formula


def moments(stage: StageEstimate) -> str:
    if stage.usual.moment == stage.longest.moment:
        return f"at the {stage.usual.moment}"
    return f"at the {stage.usual.moment}; at max_length at the {stage.longest.moment}"


def _margin(num_bytes: int) -> str:
    return f"{gib(num_bytes)} to spare"


def gib(num_bytes: int) -> str:
    if abs(num_bytes) < GIB / 100:
        return f"{num_bytes / 2**20:,.2f} MiB" if num_bytes else "–"
    return f"{num_bytes / GIB:,.2f} GiB"


def size(num_bytes: int) -> str:
    """Bytes on disk, in the decimal units that disks are sold in."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes} bytes"


def millions(number: int) -> str:
    return f"{number / 1e6:,.1f} million" if number >= 1e6 else f"{number:,}"


def duration(hours: float) -> str:
    if hours >= 100:
        return f"about {hours / 24:.1f} days"
    return f"about {hours:.1f} h" if hours >= 1 else f"about {max(hours * 60, 0.1):.2g} min"
