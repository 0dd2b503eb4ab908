"""Whether a stage can have learned anything, and whether its loss ended where its recipe expects it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from pydantic import JsonValue

from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.train.checkpoints import NOTHING_LEARNED
from llava_recipes.train.finite import Verdict

FIRST_STEPS: Final = 10
"""So many steps with images, and with no gradient at all, are not a coincidence."""
FEWEST_STEPS: Final = 3
"""An adapter's first matrix has no gradient in the first step, since the second one starts at 0."""
MANY_SKIPPED: Final = 100
LAST_LOSSES: Final = 10
"""Logged losses whose mean is compared with `expect`."""
_LOOK_AT: Final = (10, 100, 1000)


class LearningCheck:
    """Counts over the steps of a run what learning needs: a gradient, a rate, an update, images.

    `count_skipped` gives the number of samples skipped for their image, over all processes; `warn` receives
    a sentence. `without_gradient` of `note_step` is a question to all processes, asked rarely.
    """

    def __init__(
        self,
        *,
        stage: KeyPath,
        first_step: int,
        num_steps: int,
        count_skipped: Callable[[], int],
        warn: Callable[[str], None],
    ) -> None:
        self._stage = stage
        self._first_step = first_step
        self._num_steps = num_steps
        self._count_skipped = count_skipped
        self._warn = warn
        self._steps = 0
        self._telling_steps = 0
        self._had_gradient = self._had_images = self._had_update = False
        self._largest_rate = 0.0
        self._skipped_before = 0
        self._warned: list[str] = []

    def to_json(self) -> dict[str, JsonValue]:
        """What was counted until now, for a run that goes on. All processes must call it."""
        return {
            "steps": self._steps,
            "telling_steps": self._telling_steps,
            "had": [self._had_gradient, self._had_images, self._had_update],
            "largest_rate": self._largest_rate,
            "skipped": self._num_skipped(),
            "warned": [*self._warned],
        }

    def go_on(self, counted: Mapping[str, Any] | None) -> None:
        """Count on from what a checkpoint has; one without counts leaves the steps before it out."""
        if counted is None:
            return
        self._first_step = 0
        self._steps, self._telling_steps = int(counted["steps"]), int(counted["telling_steps"])
        self._had_gradient, self._had_images, self._had_update = map(bool, counted["had"])
        self._largest_rate, self._skipped_before = float(counted["largest_rate"]), int(counted["skipped"])
        for sentence in counted["warned"]:
            self._say(str(sentence))

    def _say(self, sentence: str) -> None:
        if sentence in self._warned:
            return
        self._warned.append(sentence)
        self._warn(sentence)

    def _num_skipped(self) -> int:
        return max(self._skipped_before, self._count_skipped())

    def note_step(
        self, verdict: Verdict, rates: Iterable[float], without_gradient: Callable[[], Collection[str]]
    ) -> None:
        """Count a step, whose numbers are good, before its update. Raises RecipeError as `check_end`."""
        self._steps += 1
        self._telling_steps += verdict.has_images
        self._had_gradient |= verdict.has_gradient
        self._had_images |= verdict.has_images
        self._had_update |= not verdict.bad_gradient
        self._largest_rate = max(self._largest_rate, *rates)
        if self._telling_steps == FIRST_STEPS and verdict.has_images and not self._had_gradient:
            raise self._no_gradient()
        if self._steps in _LOOK_AT and not self._had_images and self._num_skipped() >= MANY_SKIPPED:
            raise self._no_images()
        is_last = self._first_step + self._steps == self._num_steps and self._telling_steps >= FEWEST_STEPS
        if verdict.has_images and (self._telling_steps == FIRST_STEPS or is_last):
            for root in without_gradient():
                self._say(f"no gradient reaches {root}: it does not learn")

    def check_end(self) -> None:
        """Raise RecipeError when a whole run cannot have learned."""
        if self._first_step or not self._steps:
            return
        if self._largest_rate == 0:
            raise RecipeError.of(
                "nothing was learned: the learning rate was 0 in every step",
                code=NOTHING_LEARNED,
                path=(*self._stage, "train"),
                on_key=True,
                found=f"{_steps(self._steps)}, and a warm-up starts at 0",
                hint="train for more steps, or write `warmup_ratio: 0`",
            )
        if not self._had_update:
            raise RecipeError.of(
                "nothing was learned: every update was skipped, since its gradients overflow in fp16",
                code=NOTHING_LEARNED,
                path=(*self._stage, "train"),
                on_key=True,
                found=_steps(self._steps),
                hint="write `bf16: true` instead of `fp16: true`, or train for more steps: the loss scale is "
                "halved in each one",
            )
        if not self._had_gradient:
            raise self._no_gradient()
        if not self._had_images and self._num_skipped():
            raise self._no_images()

    def _no_gradient(self) -> RecipeError:
        return RecipeError.of(
            "nothing was learned: the gradient of all that trains was exactly 0 in every step",
            code=NOTHING_LEARNED,
            path=(*self._stage, "trainable"),
            on_key=True,
            found=_steps(self._steps),
            hint="let `trainable` name modules that the loss depends on; weights of 0 in the modules that "
            "follow them stop every gradient",
        )

    def _no_images(self) -> RecipeError:
        return RecipeError.of(
            "no image was learned from: every sample with an image was skipped",
            code=NOTHING_LEARNED,
            path=(*self._stage, "data"),
            on_key=True,
            found=f"{self._num_skipped():,} samples skipped in {_steps(self._steps)}",
            hint="check the image folder; `on_bad_image: error` names the first image that cannot be used",
        )


def roots_without(names: Collection[str], trained: Collection[str]) -> tuple[str, ...]:
    """The root modules all of whose trained weights are among `names`."""
    some = {name.partition(".")[0] for name in trained if name not in names}
    return tuple(dict.fromkeys(root for name in names if (root := name.partition(".")[0]) not in some))


class LossBand:
    """Compares the mean of the last logged losses with the band that a recipe expects."""

    def __init__(self, band: tuple[float, float] | None, logged: Iterable[float]) -> None:
        self._band = band
        self._losses = deque(logged, maxlen=LAST_LOSSES)

    def append(self, loss: float) -> None:
        self._losses.append(loss)

    def warning(self) -> str | None:
        """A sentence where the loss ended outside the band; None inside it, and without one."""
        if self._band is None or not self._losses:
            return None
        low, high = self._band
        mean = sum(self._losses) / len(self._losses)
        if low <= mean <= high:
            return None
        lines = "logged loss" if len(self._losses) == 1 else f"{len(self._losses)} logged losses"
        side = "below" if mean < low else "above"
        return f"the mean of the last {lines} is {mean:.4g}, {side} {low:g} to {high:g}, which `expect` names"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"
