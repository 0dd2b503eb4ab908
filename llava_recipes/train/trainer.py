"""The Trainer of a stage, and the errors that it raises while it trains.

It differs from Hugging Face's Trainer in six things: the order of samples is a pure function of seed and
epoch; modules may have a learning rate and weight decay of their own; only trainable weights are saved and
loaded; a checkpoint is sealed when it is whole; a number that is not finite ends the run before it reaches a
weight; the validation loss is the mean over all label tokens, whatever the batches.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import TrainerControl, TrainerState

from llava_recipes.data.collate import SAMPLE_INDEX
from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.model.among_processes import all_reduce_sum, num_processes
from llava_recipes.model.checkpoint import not_finite
from llava_recipes.model.weight_names import canonical_name, canonical_parameters
from llava_recipes.plan.arguments import accepted_by_transformers
from llava_recipes.plan.trainable import groups_of
from llava_recipes.plan.types import ParamGroupPlan, TrainPlan
from llava_recipes.screen import say
from llava_recipes.train.checkpoints import (
    PROGRESS,
    TRAINER_STATE,
    SealFacts,
    list_checkpoints,
    loading,
    remove_old,
    saving,
)
from llava_recipes.train.dealt_trainer import DealtTrainer
from llava_recipes.train.evaluation import MeasureAtTheEnd, Measured, ValidationSet
from llava_recipes.train.finite import CODE, StepCheck, blamed_group, zero_gradient_norm
from llava_recipes.train.learning import LearningCheck, roots_without
from llava_recipes.train.optimizer_states import check_storable
from llava_recipes.train.saved_state import Live, SavedState, restore, restore_random, save_state
from llava_recipes.train.step_batches import Batch
from llava_recipes.train.stop_on_request import leave_evaluation
from llava_recipes.train.stopping import EVALUATION, EvaluationCut, Stop

Group = dict[str, Any]
"""A parameter group of a torch optimizer: `params`, `lr`, `weight_decay` and the optimizer's own keys."""

_LARGEST_WEIGHT = 1e12
"""The product of a few that are larger is infinite in float32, and a checkpoint of them is of no use."""

Metrics = dict[str, float]


class StageTrainer(DealtTrainer):
    """Trains one stage in the order of `sampler`; the first process calls `on_metrics` per logged step.

    With `validation` its loss is measured when the arguments say so and after the last step. `on_metrics`
    receives it as a line of its own, with `eval_loss` instead of `loss`.
    """

    def __init__(
        self,
        *,
        stage_path: KeyPath,
        keep_checkpoints: int | None,
        on_metrics: Callable[[Metrics], None],
        param_groups: tuple[ParamGroupPlan, ...] = (),
        validation: ValidationSet | None = None,
        sample_name: Callable[[int], str] = "sample {}".format,
        run: str | None = None,
        stop: Stop | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs, eval_dataset=None if validation is None else validation.dataset)
        if validation is not None:
            self.add_callback(MeasureAtTheEnd())
        self._validation = validation
        self._stop = stop or Stop()
        self.measured: tuple[int, Measured] | None = None
        """The last measured validation loss, and the step after which it was measured."""
        self._resumed: SavedState | None = None
        self._resumed_state: Mapping[str, Any] = {}
        self._saved_step: int | None = None
        self.last_loss: float | None = None
        """The last logged one."""
        self._stage_path = stage_path
        self._keep_checkpoints = keep_checkpoints
        self._run = run
        self._on_metrics = on_metrics
        self._param_groups = param_groups
        self._weights = canonical_parameters(self.model)
        self._trained = {name: each for name, each in self._weights.items() if each.requires_grad}
        self._step_check = StepCheck(
            self._trained, device=self.args.device, blame=self._blame, sample_name=sample_name
        )
        self.learning: LearningCheck | None = None
        self._samples: Tensor | None = None
        self._guarded: object = None
        self._num_tokens: torch.Tensor | None = None
        self._num_samples = 0
        self._logged_at_s = time.monotonic()
        self._started_s = self._logged_at_s

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            # Resumed after the last step: the Trainer would train one more before it looks.
            self.control.should_training_stop = True
            return
        if self._resumed is not None and epoch == kwargs["epochs_trained"]:
            self._continue_losses()
            if self.must_measure():
                self.evaluate()
        super()._run_epoch(epoch=epoch, **kwargs)

    # ---- optimizer ---------------------------------------------------------------------------------------

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        is_new, names = self.optimizer is None, ("optim_args", "optim_target_modules")
        given = ["optim", *(name for name in names if getattr(self.args, name))]
        with accepted_by_transformers(given, path=(*self._stage_path, "train", "optim")):
            optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new and self._param_groups:
            split_groups(optimizer, self.model if model is None else model, self._param_groups)
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        given = ["lr_scheduler_kwargs"] if self.args.lr_scheduler_kwargs else []
        with accepted_by_transformers(given, path=(*self._stage_path, "train", "extra")):
            return super().create_scheduler(*args, **kwargs)

    # ---- step and metrics --------------------------------------------------------------------------------

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.is_deepspeed_enabled and self._guarded is not model:
            self._guard(model)
        inputs = dict(inputs)
        # Which samples the batch has, for counting and for messages: not the model's.
        self._samples = inputs.pop(SAMPLE_INDEX)
        if self._samples.numel():
            num_tokens = inputs["attention_mask"].sum()
            self._num_tokens = num_tokens if self._num_tokens is None else self._num_tokens + num_tokens
            self._num_samples += self._samples.numel()
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
        loss: Tensor = super().compute_loss(model, inputs, **kwargs)
        self._step_check.note_pass(loss, samples=self._samples, has_images="pixel_values" in inputs)
        return loss

    def _guard(self, engine: Any) -> None:
        """Check the numbers before DeepSpeed's step, which follows its backward pass at once."""
        update = engine.step

        def checked(*args: Any, **kwargs: Any) -> Any:
            optimizer = engine.optimizer
            norm = zero_gradient_norm(optimizer, self._trained.values(), self.args.device)
            self._decide(norm, scale=float(optimizer.loss_scale) if self.args.fp16 else None)
            return update(*args, **kwargs)

        engine.step = checked
        self._guarded = engine

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        if self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        norm = self._checked_norm(model)
        clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        return norm

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        if self.is_deepspeed_enabled:
            return super()._get_grad_norm(model, grad_norm=grad_norm)
        return self._checked_norm(model) if grad_norm is None else grad_norm

    def _checked_norm(self, model: torch.nn.Module) -> Tensor:
        """The norm of all gradients, as torch computes it to clip them. Raises RecipeError as `_decide`."""
        self.accelerator.unscale_gradients()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        norm = get_total_norm(gradients)
        scaler = self.accelerator.scaler
        self._decide(norm, scale=None if scaler is None else scaler.get_scale())
        return norm

    def _decide(self, norm: Tensor, *, scale: float | None) -> None:
        """Raise RecipeError, on every process, when this step's update must not happen."""
        verdict = self._step_check.decide(
            step=self.state.global_step + 1,
            gradient_norm=norm,
            all_weights=self._weights,
            scale=scale,
        )
        if self.learning is not None:
            rates = [group["lr"] for group in self.optimizer.param_groups]
            self.learning.note_step(verdict, rates, self._roots_without_gradient)

    def _blame(self, weight: str | None) -> tuple[KeyPath, str]:
        """The key to lower where numbers aren't finite, and how to go on; `weight` shows it, if known."""
        rate, decay = self.args.learning_rate, self.args.weight_decay
        section: KeyPath = ("train",)
        index, of_group = blamed_group(self._trained, self._param_groups, weight), ""
        if index is not None:
            group = self._param_groups[index]
            if (group.learning_rate, group.weight_decay) != (rate, decay):
                rate, decay, section = group.learning_rate, group.weight_decay, ("param_groups", index)
                of_group = f" of this group, which is {rate:g}"
        key, advice = "learning_rate", f"lower the learning rate{of_group}, or lengthen the warm-up"
        if rate * decay > 1:
            key, advice = "weight_decay", "lower `weight_decay`: times the learning rate it is above 1"
        path = (*self._stage_path, *section, key)
        if self.args.fp16:
            advice += ", or train in bf16 instead of fp16"
        names = [each.folder.name for each in list_checkpoints(Path(self.args.output_dir))]
        first = ""
        if names[:1] == [f"checkpoint-{self.state.global_step}"]:
            # Its weights give these numbers, whatever the rate is.
            first = f"remove {names.pop(0)}, whose weights lead to this, "
        if not names:
            return path, f"{advice}, {first}and run again"
        accepted = "param_groups" if of_group else f"train.{key}"
        then = f"`--resume --accept {accepted}` continues from {names[0]} with another value"
        return path, f"{advice}; {first and first + 'then '}{then}"

    def check_finite(self, state: Mapping[str, Tensor], *, step: int) -> None:
        """Raise RecipeError when a trained weight is NaN, infinite or absurd: no run can continue from it."""
        for name, tensor in state.items():
            trouble, what = not_finite(tensor), "NaN or infinite values"
            if trouble is None and ":" not in name and tensor.numel():
                largest = tensor.abs().max().item()
                if largest > _LARGEST_WEIGHT:
                    trouble, what = f"{largest:g}", "values that no loss can be computed with"
            if trouble is not None:
                path, advice = self._blame(name.partition(":")[0])
                raise RecipeError.of(
                    f"{name} has {what} after step {step:,}; the weights were not saved",
                    code="weights-not-finite",
                    path=path,
                    found=trouble,
                    hint=advice,
                )

    def _roots_without_gradient(self) -> tuple[str, ...]:
        return roots_without(self._step_check.without_gradient(), self._trained)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            metrics = self._step_metrics(logs)
            self.last_loss = metrics["loss"]
            if self.is_world_process_zero():
                self._on_metrics(metrics)
            logs = logs | {name: metrics[name] for name in ("samples_per_s", "tokens_per_s")}
        super().log(logs, start_time)

    def _step_metrics(self, logs: dict[str, float]) -> Metrics:
        """One line of metrics.jsonl; rates are over all processes, since the previous line."""
        now_s = time.monotonic()
        elapsed_s = max(now_s - self._logged_at_s, 1e-9)
        local = torch.tensor([0.0, float(self._num_samples)], device=self.args.device, dtype=torch.float64)
        if self._num_tokens is not None:
            local[0] = self._num_tokens
        all_reduce_sum(local)
        num_tokens, num_samples = local.tolist()
        self._num_tokens, self._num_samples, self._logged_at_s = None, 0, now_s
        return {
            "step": self.state.global_step,
            "epoch": float(self.state.epoch or 0.0),
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "grad_norm": float(logs.get("grad_norm", float("nan"))),
            "samples_per_s": num_samples / elapsed_s,
            "tokens_per_s": num_tokens / elapsed_s,
            "seconds": now_s - self._started_s,
        }

    # ---- evaluation --------------------------------------------------------------------------------------

    def evaluate(self, *args: object, **kwargs: object) -> Metrics:
        """Measure the validation loss, once per step, and log it. Raises RecipeError for NaN or infinity."""
        assert self._validation is not None
        step = self.state.global_step
        if self.measured is not None and self.measured[0] == step:
            return {"eval_loss": self.measured[1].loss}
        # ZeRO-3's weights are whole only inside its engine; DDP's wrapper would wait for the other processes.
        model = self.model_wrapped if self.is_deepspeed_enabled else self.model
        try:
            with self._stop.phase(EVALUATION):
                measured = self._validation.measure(
                    model, self._prepare_inputs, self.args.device, is_cut=self._stop.agree
                )
        except EvaluationCut:
            leave_evaluation(self._stop, self.control)
            return {}
        if not math.isfinite(measured.loss):
            path, advice = self._blame(None)
            raise RecipeError.of(
                f"the validation loss is {measured.loss} at step {step:,}; training stopped, and nothing was "
                "saved after it",
                code=CODE,
                path=path,
                hint=advice,
            )
        self.measured = step, measured
        # The rates of training leave out the time of an evaluation.
        self._logged_at_s += measured.seconds
        if self.is_world_process_zero():
            self._on_metrics(
                {
                    "step": step,
                    "epoch": float(self.state.epoch or 0.0),
                    "eval_loss": measured.loss,
                    "eval_samples": measured.num_samples,
                    "eval_tokens": measured.num_tokens,
                    "eval_seconds": measured.seconds,
                    "seconds": time.monotonic() - self._started_s,
                }
            )
        metrics = {"eval_loss": measured.loss, "eval_runtime": measured.seconds}
        super().log(dict(metrics))
        self.control: TrainerControl = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def must_measure(self) -> bool:
        """Whether the validation loss after this step is missing, as where a run was asked to stop."""
        step = self.state.global_step
        if self._validation is None or (self.measured is not None and self.measured[0] == step):
            return False
        if step >= self.state.max_steps:
            return True
        by_steps = self.args.eval_strategy == "steps" and not step % self.state.eval_steps
        by_epoch = self.args.eval_strategy == "epoch" and not self._step_in_epoch
        since = step if by_steps else self.state.epoch or 0
        return (by_steps or by_epoch) and self.args.eval_delay <= since

    # ---- checkpoints -------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: None) -> None:
        """Write a checkpoint on the first process, once per step; all processes send what they have."""
        step = self.state.global_step
        if self._saved_step == step:
            return
        self.store_flos()
        run_dir = Path(self.args.output_dir)
        with saving(run_dir, step) if self.is_world_process_zero() else nullcontext() as checkpoint:
            save_state(
                self._live(),
                checkpoint,
                beginnings=self._beginnings,
                progress=self._progress(),
                check=lambda name, tensor: self.check_finite({name: tensor}, step=step),
            )
            if checkpoint is not None:
                checkpoint.write_json(TRAINER_STATE, asdict(self.state))
                checkpoint.commit(
                    SealFacts(step, self.args.world_size, self.layout.to_json(), self.last_loss, self._run)
                )
        if checkpoint is not None and self._keep_checkpoints is not None:
            remove_old(run_dir, newest=step, keep=self._keep_checkpoints)
        self._saved_step = step
        self.accelerator.wait_for_everyone()

    def _live(self) -> Live:
        return Live(
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.lr_scheduler,
            scaler=getattr(self.accelerator, "scaler", None),
            engine=self.model_wrapped if self.is_deepspeed_enabled else None,
            device=self.args.device,
        )

    def _progress(self) -> dict[str, JsonValue]:
        """Losses since the last logged step, the last validation loss, and what was seen of learning."""
        unlogged = self._tr_loss.detach().clone().float()
        all_reduce_sum(unlogged)
        unlogged /= num_processes()
        measured: JsonValue = None
        if self.measured is not None:
            measured = [self.measured[0], {**vars(self.measured[1])}]
        return {
            "unlogged": [unlogged.item(), self._globalstep_last_logged],
            "measured": measured,
            "learning": None if self.learning is None else self.learning.to_json(),
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights are loaded with the rest, once the optimizer exists."""

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: object, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, object]:
        prepared: tuple[nn.Module, object] = super()._prepare_for_training(max_steps, train_dataloader, None)
        live = self._live()
        if self.args.save_strategy != "no":
            check_storable(live.states(), uses_deepspeed=live.engine is not None)
        self._beginnings = live.beginnings()
        if self._resumed is not None:
            note = restore(live, self._resumed, beginnings=self._beginnings)
            if note is not None and self.is_world_process_zero():
                say(note)
            with loading(self._resumed.folder, PROGRESS):
                measured = self._resumed.progress["measured"]
                if measured is not None:
                    self.measured = int(measured[0]), Measured(**measured[1])
                if self.learning is not None:
                    self.learning.go_on(self._resumed.progress.get("learning"))
        return prepared

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._resumed is not None:
            rank, step = self.args.process_index, self.state.global_step
            restore_random(self._resumed, self.args.device, rank=rank, seed=self.args.seed, step=step)

    def resume(self, saved: SavedState, *, loss: float | None, state: str) -> None:
        """Train on from a checkpoint to the end; `state` is the text of its trainer_state.json."""
        self._resumed, self.last_loss = saved, loss
        with loading(saved.folder, TRAINER_STATE):
            self._resumed_state = json.loads(state)
            TrainerState(**self._resumed_state)
        self.train()

    def _inner_training_loop(self, **kwargs: Any) -> Any:
        if self._resumed is not None:
            # A word that there is one: nothing is read from it, since the folder may be on another node.
            kwargs["resume_from_checkpoint"] = str(self._resumed.folder)
        return super()._inner_training_loop(**kwargs)

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, num_epochs: int, resume_from: str | None, trial: None
    ) -> tuple[int, int]:
        begun: tuple[int, int] = super()._init_training_state(
            max_steps, steps_per_epoch, num_epochs, None, trial
        )
        if self._resumed is None:
            return begun
        self.state = TrainerState(**self._resumed_state)
        # When to log, to save and to measure is the recipe's, not the checkpoint's.
        self.state.compute_steps(self.args, max_steps)
        self.state.init_training_references(self, max_steps, num_epochs, trial)
        epochs, steps = divmod(self.state.global_step, steps_per_epoch)
        return epochs, steps * self.args.gradient_accumulation_steps

    def _continue_losses(self) -> None:
        assert self._resumed is not None
        with loading(self._resumed.folder, PROGRESS):
            unlogged, last_logged = self._resumed.progress["unlogged"]
            self._tr_loss += float(unlogged)
            self._globalstep_last_logged = int(last_logged)


def split_groups(
    optimizer: torch.optim.Optimizer, model: nn.Module, groups: Sequence[ParamGroupPlan]
) -> None:
    """Split the Trainer's two parameter groups, with weight decay and without, into those of the plan.

    Must run before the first step. Parameters in no group of the plan come first and keep their values:
    their learning rate is the one that is reported. Biases and norms have no weight decay in any group.
    """
    assert not optimizer.state, "an optimizer that has stepped cannot be regrouped"
    named = {canonical_name(name): parameter for name, parameter in model.named_parameters()}
    index_of = groups_of(named, groups)
    membership = {id(parameter): index_of.get(name) for name, parameter in named.items()}

    def part(group: Group, index: int | None) -> Group:
        members = [parameter for parameter in group["params"] if membership[id(parameter)] == index]
        return {**group, "params": members}

    decayed, plain = optimizer.param_groups
    parts = [part(decayed, None), part(plain, None)]
    for index, wanted in enumerate(groups):
        rate = {"lr": wanted.learning_rate}
        parts.append(part(decayed, index) | rate | {"weight_decay": wanted.weight_decay})
        parts.append(part(plain, index) | rate)
    optimizer.param_groups[:] = [group for group in parts if group["params"]]


def out_of_memory(*, detail: str, stage: KeyPath) -> RecipeError:
    """The device ran out of memory; `detail` is torch's own message."""
    return RecipeError.of(
        "the device ran out of memory",
        code="out-of-memory",
        path=(*stage, "train", "per_device_train_batch_size"),
        found=detail,
        hint="halve per_device_train_batch_size (and double gradient_accumulation_steps, unless "
        "global_batch_size is set), turn on gradient_checkpointing, or use `deepspeed: zero3`",
    )


def rate_too_large(train: TrainPlan, groups: Sequence[ParamGroupPlan], *, stage: KeyPath) -> RecipeError:
    """An optimizer cannot compute with a learning rate: the largest one."""
    rates: list[tuple[float, KeyPath]] = [(train.learning_rate, (*stage, "train", "learning_rate"))]
    rates += [
        (group.learning_rate, (*stage, "param_groups", index, "learning_rate"))
        for index, group in enumerate(groups)
    ]
    rate, path = max(rates, key=lambda each: each[0])
    return RecipeError.of(
        "the learning rate is too large for float32, in which the update is computed",
        code=CODE,
        path=path,
        found=f"{rate:g}",
        hint="usual rates are 2e-6 to 2e-3",
    )
