"""The Trainer's callback that stops a stage after the current step, with a checkpoint."""

from __future__ import annotations

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava_recipes.train.stopping import DATA, SAVING, STEP, Stop


def save_and_stop(control: TrainerControl) -> None:
    """Save after this step, and stop. The sender of the signal may not wait for an evaluation."""
    control.should_save = control.should_training_stop = True
    control.should_evaluate = False


def leave_evaluation(stop: Stop, control: TrainerControl) -> None:
    """Save and stop without an evaluation or answers: a resumed run makes up for them."""
    stop.has_cut_evaluation = True
    save_and_stop(control)
    stop.enter(SAVING)


class StopOnRequest(TrainerCallback):  # type: ignore[misc]
    """Saves and stops after the current step once any process is asked to."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._saved_step = -1

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._stop.enter(DATA)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._stop.enter(STEP)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._stop.tick()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        self._stop.note_step(state.global_step)
        if self._stop.agree(args.device) and state.global_step < state.max_steps:
            save_and_stop(control)
        self._stop.enter(SAVING if control.should_save else DATA)
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._saved_step = state.global_step
        self._stop.note_saved()
        self._stop.enter(DATA)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        if self._stop.has_agreed and control.should_training_stop:
            control.should_evaluate = False
            control.should_save = control.should_save and self._saved_step != state.global_step
        if control.should_save:
            self._stop.enter(SAVING)
        return control
