"""Measure a stage while it trains: the loss on its validation data, and sample answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava_recipes.data.collate import SAMPLE_INDEX, IndexedCollator
from llava_recipes.data.dataset import Sample, StageDataset
from llava_recipes.data.images import BadImage, open_images, read_prepared
from llava_recipes.data.prompts import IGNORED
from llava_recipes.data.workers import worker_options
from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.files import expanded, naming, real_path, write_text
from llava_recipes.layouts import IMAGE
from llava_recipes.model.among_processes import all_reduce_sum, by_first
from llava_recipes.model.base_weights import private_randomness
from llava_recipes.model.generate import Answerer, Decoding, Prompt, PromptImage, evaluating
from llava_recipes.model.placing import TORCH_DTYPES
from llava_recipes.plan.types import SamplingPlan, StagePlan
from llava_recipes.screen import escape_json
from llava_recipes.templates import Turn
from llava_recipes.train.stop_on_request import leave_evaluation
from llava_recipes.train.stopping import SAMPLING, EvaluationCut, Stop


@dataclass(frozen=True)
class Measured:
    """The mean loss over all label tokens of the validation samples, and how long it took."""

    loss: float
    num_samples: int
    num_tokens: int
    seconds: float


@dataclass(frozen=True)
class ValidationSet:
    """Validation samples, and how they are batched."""

    dataset: StageDataset
    collator: Callable[[Sequence[Sample]], dict[str, Tensor]]
    batch_size: int
    num_workers: int

    def measure(
        self,
        model: nn.Module,
        prepare: Callable[[dict[str, Tensor]], Mapping[str, Any]],
        device: torch.device,
        *,
        is_cut: Callable[[torch.device], bool] = lambda device: False,
    ) -> Measured:
        """The mean loss over all label tokens, in eval mode: without dropout and gradients.

        Every process must call it. Each takes its share of the samples, and runs as many batches as the
        others, since ZeRO-3 gathers weights from all of them: one that has run out repeats a sample that
        does not count. `prepare` moves a batch to the device. The global random state stays as it is. Raises
        EvaluationCut where `is_cut`, asked before each batch, says so: the same on every process.
        """
        started_s = time.monotonic()
        total = torch.zeros(2, dtype=torch.float64, device=device)
        with evaluating(model):
            for batch in self._batches():
                if is_cut(device):
                    raise EvaluationCut
                batch.pop(SAMPLE_INDEX)
                output = model(**prepare(batch), num_items_in_batch=1)
                total[0] += output.loss.double()
                total[1] += output.num_label_tokens
        all_reduce_sum(total)
        sum_of_losses, num_tokens = total.tolist()
        return Measured(
            loss=sum_of_losses / num_tokens,
            num_samples=len(self.dataset),
            num_tokens=int(num_tokens),
            seconds=time.monotonic() - started_s,
        )

    def _batches(self) -> Any:
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        own = range(rank, len(self.dataset), world_size)
        num_rows = -(-len(self.dataset) // world_size)
        loader = DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            sampler=[*own, *[0] * (num_rows - len(own))],
            collate_fn=IndexedCollator(self.collator),
            num_workers=self.num_workers,
            **worker_options(self.num_workers),
            # Without its own generator a loader draws from the one that dropout uses in training.
            generator=torch.Generator(),
        )
        for number, batch in enumerate(loader):
            num_counted = max(0, len(own) - number * self.batch_size)
            batch["labels"][num_counted:] = IGNORED
            yield batch


class MeasureAtTheEnd(TrainerCallback):  # type: ignore[misc]
    """Requests an evaluation after the last step, whatever the strategy."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
        return control


@dataclass(frozen=True)
class Subject:
    """A question that is asked every time, prepared once; `reference` is the record's own answer."""

    images: tuple[str, ...]
    question: str
    reference: str | None
    input_ids: tuple[int, ...]
    prepared: tuple[PromptImage, ...]


@dataclass(frozen=True)
class Sampled:
    """One answer, as a line of samples.jsonl."""

    step: int
    image: str | list[str]
    prompt: str
    answer: str
    reference: str | None


def choose_subjects(
    plan: SamplingPlan, answerer: Answerer, records: StageDataset, *, stage_path: KeyPath
) -> list[Subject]:
    """The subjects of a stage: the recipe's images, or the first records that have one.

    Raises RecipeError when no record has an image, when an image cannot be used, or when a question leaves
    no room for its answer.
    """
    path, where = (*stage_path, "samples", "images"), (*stage_path, "sample_every")
    found = (
        [_own(answerer, file, plan.prompt, (*path, number)) for number, file in enumerate(plan.images)]
        if plan.images
        else _of_records(answerer, records, plan.num_records or 0)
    )
    if not found:
        raise RecipeError.of(
            "no record has an image to ask about",
            code="no-image-to-sample",
            path=where,
            hint="name images of your own in `samples.images`",
        )
    for subject in found:
        counts = [image.num_tokens for image in subject.prepared]
        num_tokens = answerer.num_tokens(subject.input_ids, counts)
        problem = answerer.does_not_fit(num_tokens, counts, Decoding(plan.max_new_tokens))
        if problem is not None:
            hint = "lower `samples.max_new_tokens`, or name other images in `samples.images`"
            raise RecipeError(replace(problem, path=where, hint=hint))
    return found


class SampleWhileTraining(TrainerCallback):  # type: ignore[misc]
    """Asks the model about the subjects after every `every` steps and after the last.

    All processes have it. A request to stop cuts the answers, and the run then stops after this step.

    subjects  none on a process that asks nothing: only under ZeRO-3 all ask, since none has whole weights
    log       where answers are written; None on all processes but the first
    """

    def __init__(
        self,
        stage: StagePlan,
        answerer: Answerer,
        subjects: Sequence[Subject],
        *,
        log: SamplesLog | None,
        show: Callable[[int, str, str], None],
        together: bool,
        stop: Stop | None = None,
    ) -> None:
        assert stage.sampling is not None
        self._stop = stop or Stop()
        self._plan, self._answerer, self._subjects = stage.sampling, answerer, tuple(subjects)
        self._log, self._show, self._together = log, show, together
        # DeepSpeed casts the weights themselves; without it, some are float32 and others are not.
        self._dtype = torch.float32 if stage.deepspeed is not None else TORCH_DTYPES[stage.train.precision]
        self._has_cut = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        if not self._is_due(state) or (control.should_training_stop and state.global_step < state.max_steps):
            return control
        with self._stop.phase(SAMPLING):
            self._ask(args, state.global_step, is_cut=self._cuts)
            has_cut = by_first(lambda: self._has_cut, args.device)
        if has_cut:
            self._stop.agree(args.device)
            leave_evaluation(self._stop, control)
        return control

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ask what a run that was asked to stop has left out."""
        step = state.global_step
        if not step or not self._is_due(state):
            return
        if by_first(lambda: self._log is not None and step not in self._log.steps, args.device):
            with self._stop.phase(SAMPLING):
                self._ask(args, step, is_cut=None)

    def _is_due(self, state: TrainerState) -> bool:
        return not state.global_step % self._plan.every or state.global_step == state.max_steps

    def _cuts(self) -> bool:
        self._stop.tick()
        self._has_cut = self._has_cut or self._stop.reason is not None
        return self._has_cut

    def _ask(self, args: TrainingArguments, step: int, *, is_cut: Callable[[], bool] | None) -> None:
        if not self._subjects:
            return
        # Greedy answers draw no random numbers; other ways to decode must not change training either.
        is_cast = self._dtype != torch.float32
        with (
            private_randomness(),
            torch.autocast(args.device.type, dtype=self._dtype, enabled=is_cast),
        ):
            answers = self._answers(is_cut)
        if self._has_cut or self._log is None:
            return
        for subject, answer in zip(self._subjects, answers, strict=True):
            image = subject.images[0] if len(subject.images) == 1 else list(subject.images)
            self._log.append(Sampled(step, image, subject.question, answer, subject.reference))
            self._show(step, str(image), answer)

    def _answers(self, is_cut: Callable[[], bool] | None) -> list[str]:
        images = [image for subject in self._subjects for image in subject.prepared]
        features = iter(self._answerer.look(images))
        prompts = [
            Prompt(subject.input_ids, tuple(next(features) for _ in subject.prepared))
            for subject in self._subjects
        ]
        decoding = Decoding(self._plan.max_new_tokens)
        return self._answerer.answer(prompts, decoding, synced_gpus=self._together, is_cut=is_cut)


class SamplesLog:
    """Appends answers to samples.jsonl. A resumed run continues it after the step it resumes from."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        lines = path.read_text("utf-8", errors="replace").split("\n") if path.exists() else []
        kept = [line for line in lines if _step(line) <= resumed_step]
        self.steps = frozenset(map(_step, kept))
        """After which the model was asked before."""
        write_text(path, "".join(f"{line}\n" for line in kept))
        self._path = path

    def append(self, sampled: Sampled) -> None:
        """Write one line."""
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(escape_json(json.dumps(vars(sampled), ensure_ascii=False)) + "\n")


def _own(answerer: Answerer, file: str, prompt: str | None, path: KeyPath) -> Subject:
    # A recipe may name a link to any place.
    place = real_path(expanded(file))
    try:
        image = read_prepared(str(place.parent), place.name, answerer.prepare)
    except BadImage as error:
        raise RecipeError.of(
            "this image cannot be used", code="bad-image", path=path, found=error.reason
        ) from None
    text = prompt or ""
    question = text if IMAGE in text else f"{IMAGE}\n{text}"
    try:
        input_ids = answerer.prompt_ids([Turn("human", question)])
    except ValueError as error:
        raise RecipeError.of(
            f"the question cannot be written: {error}", code="sample-does-not-fit-template", path=path
        ) from None
    return Subject((file,), question, None, input_ids, (image,))


def _of_records(answerer: Answerer, dataset: StageDataset, number: int) -> list[Subject]:
    found: list[Subject] = []
    for index in range(len(dataset)):
        if len(found) == number:
            break
        record = dataset.records[index]
        human = next((place for place, turn in enumerate(record.turns) if turn.role == "human"), 0)
        turns = record.turns[human : human + 2]
        if not record.images or turns[0].text.count(IMAGE) != len(record.images):
            continue
        sample = f"sample {index}, which `sample_every` asks about"
        mark = dataset.records.mark(index)
        try:
            images = open_images(dataset.records, record, answerer.prepare)
            input_ids = answerer.prompt_ids(turns[:1])
        except BadImage as error:
            if dataset.data.on_bad_image == "skip":
                continue
            raise RecipeError.of(
                f"{sample}: its image cannot be used", code="bad-image", mark=mark, found=str(error)
            ) from None
        except ValueError as error:
            raise RecipeError.of(
                f"{sample}: its question cannot be written: {error}",
                code="output-cannot-be-written",
                mark=mark,
            ) from None
        found.append(
            Subject(
                images=record.images,
                question=turns[0].text,
                reference=turns[1].text if len(turns) > 1 else None,
                input_ids=input_ids,
                prepared=tuple(images),
            )
        )
    return found


def _step(line: str) -> float:
    """The step of a line; infinity for one that is cut short, which is dropped so."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return float("inf")
