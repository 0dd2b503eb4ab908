"""What `--accept` names: keys of a recipe whose change a run that goes on may learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llava_recipes.recipe.keys import all_keys
from llava_recipes.recipe.names import EXTRA_FIELDS
from llava_recipes.recipe.renames import did_you_mean
from llava_recipes.runner.changes import Change
from llava_recipes.runner.identity import RULES

_FREE = ("model.language_model.config.", "model.vision_tower.", "deepspeed.")


class AcceptError(Exception):
    """An `--accept` that names no key, or a key without a change to accept: wrong usage."""


@dataclass(frozen=True)
class Accepted:
    """One `--accept`: a key of the model or of a stage, for one stage or for all of them."""

    text: str
    key: str
    stage: str | None

    def covers(self, change: Change, stage: str) -> bool:
        """Whether it names the change of a stage: one of its keys, or an entry inside."""
        if self.stage not in (None, stage):
            return False
        own = f"{change.place}."
        return any(
            self.key == key or (self.key.startswith(f"{key}.") and own.startswith(f"{self.key}."))
            for key in change.keys
        )


def read_accepted(texts: Sequence[str], stages: Sequence[str]) -> tuple[Accepted, ...]:
    """The keys that `--accept` names, for a recipe with these stages. Raises AcceptError."""
    return tuple(_read(text.strip(), stages) for text in texts)


def _read(text: str, stages: Sequence[str]) -> Accepted:
    stage, key = None, text
    if "," in text:
        raise AcceptError(f"--accept {text}: write `--accept` once for each key")
    if text.removeprefix("stages.") in stages and text.startswith("stages."):
        raise AcceptError(f"--accept {text}: name the key too, such as {text}.train.learning_rate")
    if text.startswith("stages."):
        # A stage's name may contain dots.
        rest = text.removeprefix("stages.")
        named = [name for name in sorted(stages, key=len, reverse=True) if rest.startswith(f"{name}.")]
        word, _, after = rest.partition(".")
        if named:
            stage, key = named[0], rest.removeprefix(f"{named[0]}.")
        elif word.isdecimal() and int(word) < len(stages):
            stage, key = stages[int(word)], after
        else:
            advice = did_you_mean(word, stages) or f"stages: {', '.join(stages)}"
            raise AcceptError(f"--accept {text}: the recipe has no stage `{word}`; {advice}")
    known = _known_keys()
    plain = ".".join(word for word in key.split(".") if not word.isdecimal())
    if plain in known or plain.startswith(_FREE):
        return Accepted(text, key, stage)
    inside = [each for each in known if each.startswith(f"{plain}.")]
    if plain and inside:
        raise AcceptError(f"--accept {text}: name the key, such as {inside[0]}")
    raise AcceptError(f"--accept {text}: no such key; {_advise(plain, known)}")


def _advise(word: str, known: Sequence[str]) -> str:
    last = word.rpartition(".")[2]
    same = [key for key in known if key.rpartition(".")[2] == last and not key.startswith("param_groups.")]
    if same:
        return f"did you mean {' or '.join(f'`{key}`' for key in same[:3])}?"
    near = did_you_mean(word, known)
    if near is None:
        names = {key.rpartition(".")[2]: key for key in known}
        near = did_you_mean(last, names)
    return near or "it takes keys such as train.learning_rate, data.sources or model.language_model"


def _known_keys() -> list[str]:
    """Every key of the model and of a stage that has a rule of its own, and those of the language in it."""
    ruled = {key for rule in RULES.values() for key in rule.keys}
    language = {key.path.removeprefix("stages[].").replace("[]", "") for key in all_keys()}
    extra = {f"train.extra.{name}" for name in EXTRA_FIELDS}
    within = {key for key in language if any(key.startswith(f"{each}.") for each in ruled)}
    return sorted((ruled & (language | extra)) | within | extra)


def needless(accepted: Sequence[Accepted], changes: Sequence[tuple[str, Change]]) -> Iterator[str]:
    """What is wrong with each `--accept` that no change needs; `changes` are by the name of their stage."""
    for each in accepted:
        mine = [change for stage, change in changes if each.covers(change, stage)]
        if any(change.kind != "harmless" for change in mine):
            continue
        inside = [change.key for _, change in changes if change.key.startswith(f"{each.key}.")]
        if inside and not mine:
            yield f"--accept {each.text}: name what has changed in it: {', '.join(dict.fromkeys(inside))}"
            continue
        why = "this change needs none" if mine else "nothing has changed there"
        yield f"--accept {each.text}: {why}; remove it"
