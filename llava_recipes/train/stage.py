"""Train one stage of a plan in this process: build the model, train it, return its trained weights."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from transformers import PrinterCallback, TrainingArguments

from llava_recipes.data.collate import IndexedCollator
from llava_recipes.data.dataset import StageDataset
from llava_recipes.data.order import BatchLayout, EpochSampler
from llava_recipes.errors import KeyPath
from llava_recipes.model.among_processes import all_reduce_max, by_first, num_processes
from llava_recipes.model.assemble import Assembled, assemble, collator_of, open_samples
from llava_recipes.model.forward import trains_in_vain
from llava_recipes.model.generate import Answerer
from llava_recipes.model.learned_rows import free_image_tokens, read_image_tokens
from llava_recipes.model.lora import freeze_model, inject_lora
from llava_recipes.model.placing import TORCH_DTYPES, is_partitioned
from llava_recipes.model.starts import load_start
from llava_recipes.model.weights import trainable_state
from llava_recipes.plan.arguments import accepted_by_transformers, keyword_arguments
from llava_recipes.plan.data import describe_sampling, when_measured
from llava_recipes.plan.deepspeed import zero_stage
from llava_recipes.plan.trainable import describe_quantization, trains_image_tokens
from llava_recipes.plan.types import DataPlan, Plan, StagePlan
from llava_recipes.recipe.names import EXTRA_FIELDS
from llava_recipes.train.checkpoints import SEAL, TRAINER_STATE, loading, read_facts
from llava_recipes.train.evaluation import SamplesLog, SampleWhileTraining, ValidationSet, choose_subjects
from llava_recipes.train.finite import is_overflow
from llava_recipes.train.layout import check_processes, kept_layout, layout_notes
from llava_recipes.train.learning import LearningCheck, LossBand
from llava_recipes.train.metrics import METRICS, SAMPLES, MetricsLog
from llava_recipes.train.progress import Reporter, Start, choose_reporter
from llava_recipes.train.saved_state import open_state
from llava_recipes.train.stop_on_request import StopOnRequest
from llava_recipes.train.stopping import RESULTS, Stop
from llava_recipes.train.trainer import StageTrainer, out_of_memory, rate_too_large
from llava_recipes.versions import load_to_numbered_cpu, training_arguments


@dataclass(frozen=True)
class TrainedStage:
    """A trained stage. `state` has the trained weights on the first process, and is empty on the others."""

    assembled: Assembled
    state: dict[str, torch.Tensor]
    image_tokens: torch.Tensor | None
    """float[2, D]: the embeddings of `<im_start>` and `<im_end>`, where the model has them."""
    num_steps: int
    stopped_early: bool
    last_loss: float | None
    eval_loss: float | None
    """After the last step; None without validation data, or where the stage stopped early."""
    seconds: float
    is_first_process: bool
    num_skipped: int
    """Samples skipped for an image that could not be used, over all processes; each counts once."""
    warnings: tuple[str, ...]
    """What is suspicious about the run: sentences, on every process."""
    trainer: StageTrainer
    reporter: Reporter


def train_stage(
    plan: Plan,
    index: int,
    *,
    output_dir: Path,
    resume_from: Path | None,
    run: str | None = None,
    stop: Stop | None = None,
) -> TrainedStage:
    """Train stage number `index` of a plan in this process, one of `plan.world_size`.

    `resume_from` is a checkpoint folder; `run` is the name that checkpoints carry; `stop` may ask to stop at
    any time.

    Raises RecipeError for what the user can fix: weights that do not fit, a broken image, a loss that is not
    finite, too little memory.
    """
    stage = plan.stages[index]
    stop = stop or Stop()
    arguments, notes = _build_arguments(stage, output_dir=output_dir, run_name=f"{plan.recipe}/{stage.name}")
    _join_processes(stage, arguments)
    stage_path: KeyPath = ("stages", index)
    resumed = by_first(lambda: _facts_of(resume_from), arguments.device)
    layout = kept_layout(stage.train, None if resumed is None else BatchLayout(**resumed["layout"]))
    check_processes(stage, layout, stage_path)
    notes += layout_notes(stage, layout)
    assembled, num_trainable = _build(plan, stage)
    stop.expect_save(num_trainable)
    if arguments.ddp_find_unused_parameters is None and trains_in_vain(assembled.model):
        arguments.ddp_find_unused_parameters = True
    dataset = _dataset(stage.data, plan, assembled)
    validation = _validation(plan, stage, assembled, arguments)
    stop.collective_s = float(arguments.ddp_timeout)
    stop.readings += [dataset.reading, *([] if validation is None else [validation.dataset.reading])]
    first = arguments.process_index == 0
    reporter = choose_reporter(is_first_process=first)
    resumed_step = 0 if resumed is None else int(resumed["step"])
    metrics = MetricsLog(output_dir / METRICS, resumed_step=resumed_step) if first else None
    warnings: list[str] = []
    band = LossBand(
        None if stage.expect is None else stage.expect.loss, metrics.losses if metrics is not None else ()
    )

    def record(line: dict[str, float]) -> None:
        if metrics is not None:
            metrics.append(line)
        if "eval_loss" in line:
            reporter.evaluation(line)
            return
        band.append(line["loss"])
        reporter.step(line)

    def warn(sentence: str) -> None:
        warnings.append(sentence)
        reporter.warn(sentence)

    assert stage.data.shuffle == (stage.data.order != "file")
    keep = stage.train.training_arguments.get("save_total_limit")
    trainer = StageTrainer(
        sampler=EpochSampler(
            len(dataset),
            seed=stage.train.seed,
            # The original's order on one process is that of the seed.
            order="seed" if stage.data.order == "original" and layout.world_size == 1 else stage.data.order,
            grouping=dataset.grouping(
                batch_size=layout.per_device_train_batch_size, num_shares=layout.batches_per_step
            ),
        ),
        layout=layout,
        stage_path=stage_path,
        keep_checkpoints=keep if isinstance(keep, int) else None,
        run=run,
        on_metrics=record,
        param_groups=stage.param_groups,
        model=assembled.model,
        args=arguments,
        train_dataset=dataset,
        data_collator=IndexedCollator(collator_of(assembled, dataset)),
        validation=validation,
        sample_name=dataset.describe,
        callbacks=[StopOnRequest(stop)],
        stop=stop,
    )
    together = zero_stage(stage.deepspeed) == 3
    if stage.sampling is not None:
        answerer, subjects = Answerer(assembled, stage.data, start_end=plan.model.image_tokens.start_end), []
        if first or together:
            held_out = stage.data.for_validation()
            asked = dataset if held_out is None else _dataset(held_out, plan, assembled)
            subjects = choose_subjects(stage.sampling, answerer, asked, stage_path=stage_path)
        log = SamplesLog(output_dir / SAMPLES, resumed_step=resumed_step) if first else None
        trainer.add_callback(
            SampleWhileTraining(
                stage, answerer, subjects, log=log, show=reporter.sample, together=together, stop=stop
            )
        )
    trainer.remove_callback(PrinterCallback)
    num_steps = trainer.set_initial_training_values(arguments, trainer.get_train_dataloader())[-1]
    if stage.train.max_steps is not None and num_steps != stage.train.max_steps:
        raise AssertionError(f"the plan has {stage.train.max_steps} steps, the Trainer {num_steps}")
    learning = LearningCheck(
        stage=stage_path,
        first_step=resumed_step,
        num_steps=num_steps,
        count_skipped=lambda: _count_skipped(dataset, arguments),
        warn=warn,
    )
    trainer.learning = learning
    reporter.start(
        _describe(plan, stage, output_dir, num_trainable, num_steps, resumed_step, len(dataset), notes)
    )
    started_s = time.monotonic()
    try:
        if resumed is None:
            trainer.train()
        else:
            saved = open_state(Path(resumed["folder"]), arguments.device)
            trainer.resume(saved, loss=resumed["loss"], state=resumed["state"])
        if trainer.must_measure():
            trainer.evaluate()
        stopped_early = trainer.state.global_step < num_steps or stop.has_cut_evaluation
        if not stopped_early:
            learning.check_end()
    except BaseException as error:
        reporter.abandon()
        if isinstance(error, torch.OutOfMemoryError):
            raise out_of_memory(detail=str(error).splitlines()[0], stage=stage_path) from error
        if is_overflow(error):
            raise rate_too_large(stage.train, stage.param_groups, stage=stage_path) from error
        raise
    if not stopped_early:
        stop.enter(RESULTS)
    if not stopped_early and (outside := band.warning()) is not None:
        warn(outside)
    return TrainedStage(
        assembled=assembled,
        state=trainable_state(assembled.model),
        image_tokens=read_image_tokens(assembled.model) if plan.model.image_tokens.start_end else None,
        num_steps=trainer.state.global_step,
        stopped_early=stopped_early,
        last_loss=trainer.last_loss,
        eval_loss=trainer.measured[1].loss if trainer.measured and trainer.measured[0] >= num_steps else None,
        seconds=time.monotonic() - started_s,
        is_first_process=first,
        num_skipped=_count_skipped(dataset, arguments),
        warnings=tuple(warnings),
        trainer=trainer,
        reporter=reporter,
    )


def _facts_of(checkpoint: Path | None) -> JsonValue:
    """What a run needs to know of the checkpoint that it resumes from, before anything is loaded."""
    if checkpoint is None:
        return None
    facts, state = read_facts(checkpoint), (checkpoint / TRAINER_STATE).read_text("utf-8")
    with loading(checkpoint, SEAL):
        layout: JsonValue = {**BatchLayout.from_json(dict(facts.layout)).to_json()}
    return {
        "folder": str(checkpoint),
        "step": facts.step,
        "layout": layout,
        "loss": facts.loss,
        "state": state,
    }


def _build_arguments(
    stage: StagePlan, *, output_dir: Path, run_name: str
) -> tuple[TrainingArguments, list[str]]:
    """TrainingArguments of a stage, and notes on what this machine changes in them."""
    wanted = keyword_arguments(stage.train)
    notes: list[str] = []
    on_cpu = not torch.cuda.is_available()
    if on_cpu and wanted.pop("tf32", None):
        notes.append("`tf32` is off, since a CPU trains")
    if on_cpu:
        # Pinned memory only speeds up copies to a GPU.
        wanted.setdefault("dataloader_pin_memory", False)
    if not wanted["dataloader_num_workers"]:
        # Without workers, torch refuses the options that are about them.
        for name in ("multiprocessing_context", "persistent_workers", "prefetch_factor"):
            wanted.pop(f"dataloader_{name}", None)
    ours = {
        "output_dir": str(output_dir),
        "run_name": run_name,
        "use_cpu": on_cpu,
        "deepspeed": stage.deepspeed and dict(stage.deepspeed),
        # StageTrainer removes old checkpoints once a new one is sealed, and ends the run at a NaN loss.
        "save_total_limit": None,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    extra = [name for name in wanted if name in EXTRA_FIELDS]
    with accepted_by_transformers(extra, path=("stages", 0, "train", "extra")):
        return TrainingArguments(**{**training_arguments(wanted), **ours}), notes
    raise AssertionError("unreachable")


def _dataset(data: DataPlan, plan: Plan, assembled: Assembled) -> StageDataset:
    return open_samples(assembled, data, start_end=plan.model.image_tokens.start_end)


def _validation(
    plan: Plan, stage: StagePlan, assembled: Assembled, arguments: TrainingArguments
) -> ValidationSet | None:
    data = stage.data.for_validation()
    if data is None:
        return None
    dataset = _dataset(data, plan, assembled)
    return ValidationSet(
        dataset=dataset,
        collator=collator_of(assembled, dataset),
        batch_size=arguments.per_device_eval_batch_size,
        num_workers=arguments.dataloader_num_workers,
    )


def _join_processes(stage: StagePlan, arguments: TrainingArguments) -> None:
    """Set up the process group; under DeepSpeed before any weight exists, since ZeRO-3 splits new weights."""
    if arguments.use_cpu:
        load_to_numbered_cpu()
    if stage.deepspeed is not None:
        import deepspeed

        backend = "gloo" if arguments.use_cpu else "nccl"
        if arguments.use_cpu:
            # The shared-memory kernel compiles for a minute at its first start; gloo does the same work.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
    assert arguments.device is not None


def _build(plan: Plan, stage: StagePlan) -> tuple[Assembled, int]:
    """The model with the weights that the stage starts from, frozen as it says; the number that trains."""
    zero3 = zero_stage(stage.deepspeed) == 3
    assembled = assemble(plan.model, dtype=TORCH_DTYPES[stage.train.precision], zero3=zero3)
    for start in stage.starts_from:
        load_start(assembled.model, start, ("stages",))
    if trains_image_tokens(stage):
        free_image_tokens(assembled.model)
    targets: tuple[str, ...] = ()
    if stage.lora is not None:
        targets = inject_lora(assembled.model, stage.lora, seed=stage.train.seed)
    freeze_model(
        assembled.model, freeze=stage.freeze, trainable=stage.trainable, lora=stage.lora, targets=targets
    )
    trained = [parameter for parameter in assembled.model.parameters() if parameter.requires_grad]
    if stage.deepspeed is None:
        # DeepSpeed keeps float32 copies itself; without it, trainable weights must be float32 under autocast.
        for parameter in trained:
            parameter.data = parameter.data.float()
    elif zero3 and len({parameter.dtype for parameter in trained}) > 1:
        # ZeRO-3 keeps all that trains in one buffer, of one type, beside its float32 copies.
        for parameter in trained:
            if not is_partitioned(parameter):
                parameter.data = parameter.data.to(TORCH_DTYPES[stage.train.precision])
    assembled.model.accepts_loss_kwargs = stage.train.loss_normalization == "token"
    gc.collect()
    return assembled, sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in trained)


def _count_skipped(dataset: StageDataset, arguments: TrainingArguments) -> int:
    """The number of samples that any process skipped; another process may skip them in another epoch."""
    skipped = dataset.skipped.to(torch.uint8).to(arguments.device)
    all_reduce_max(skipped)
    return int(skipped.count_nonzero())


def _describe(
    plan: Plan,
    stage: StagePlan,
    output_dir: Path,
    num_trainable: int,
    num_steps: int,
    resumed_step: int,
    num_samples: int,
    notes: list[str],
) -> Start:
    train, validation = stage.train, stage.data.validation
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    world_size = num_processes()
    processes = "1 process" if world_size == 1 else f"{world_size} processes"
    modules = ", ".join(stage.trainable_modules or stage.trainable) or "everything"
    batch = (
        f"{train.global_batch_size:,} = {train.per_device_train_batch_size} per device × "
        f"{train.gradient_accumulation_steps} accumulated × {processes}"
    )
    deepspeed = "no DeepSpeed" if stage.deepspeed is None else f"DeepSpeed {stage.deepspeed_source}"
    rows = [
        ("trains", f"{modules}: {num_trainable:,} parameters"),
        ("data", f"{num_samples:,} samples, {stage.data.wording}"),
    ]
    if validation is not None:
        rows.append(("validation", f"{validation.num_samples:,} samples, measured {when_measured(stage)}"))
    if stage.sampling is not None:
        rows.append(("asked", describe_sampling(stage.sampling)))
    rows += [
        ("steps", f"{num_steps:,}" + (f", resumed after step {resumed_step:,}" if resumed_step else "")),
        ("batch", batch),
        ("precision", f"{train.precision}, {deepspeed}, on {device}"),
        ("writes to", str(output_dir)),
    ]
    quantization = plan.model.language_model.quantization
    if quantization is not None:
        linear = f"the language model's linear layers, to {describe_quantization(quantization)}"
        rows.append(("quantized", linear))
    rows += [("note", note) for note in notes]
    return Start(f"{plan.recipe} · {stage.name}", tuple(rows), num_steps, resumed_step)
