"""What differs in meaning between two plans, and between two models of plans."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import JsonValue

from llava_recipes.plan.types import Plan, StagePlan

Values: TypeAlias = dict[str, JsonValue]

# Names and notes have no effect on a run; stages are compared separately.
_LABELS = {"recipe", "notes", "stages", "world_size", "plan_version"}


@dataclass(frozen=True)
class Difference:
    """A path of the plan with the value of each plan that has one."""

    path: str
    a: JsonValue = None
    b: JsonValue = None
    in_a: bool = True
    in_b: bool = True


def compare(a: Plan, b: Plan) -> tuple[Difference, ...]:
    """Every difference between two plans for the same number of processes; empty where they mean the same.

    Stages are compared by name, and the remaining ones in their order. Two spellings of the same thing (globs
    that match the same modules, a DeepSpeed preset and a file with the same content) are not a difference;
    nor are names, since no step of a run depends on them.
    """
    assert a.world_size == b.world_size
    left, right = (_without(plan.model_dump(mode="json"), _LABELS) for plan in (a, b))
    found = list(_between(left, right, ""))
    pairs, only_a, only_b = _pair(a.stages, b.stages)
    for one, other in pairs:
        place = f"stages.{one.name}" if one.name == other.name else f"stages.{one.name}|{other.name}"
        found += _between(*_comparable(one, other), place)
    found += [Difference(f"stages.{stage.name}", a="there", in_b=False) for stage in only_a]
    found += [Difference(f"stages.{stage.name}", b="there", in_a=False) for stage in only_b]
    order_a = [one.name for one in a.stages if one not in only_a]
    order_b = [one.name for one, other in sorted(pairs, key=lambda pair: b.stages.index(pair[1]))]
    if order_a != order_b:
        found.append(Difference("stages", a=list[JsonValue](order_a), b=list[JsonValue](order_b)))
    return tuple(found)


def _pair(
    a: tuple[StagePlan, ...], b: tuple[StagePlan, ...]
) -> tuple[list[tuple[StagePlan, StagePlan]], list[StagePlan], list[StagePlan]]:
    """Pairs of stages to compare, and the stages of each plan without a partner."""
    names = {stage.name: stage for stage in b}
    partners = {stage.name: names[stage.name] for stage in a if stage.name in names}
    rest_a = [stage for stage in a if stage.name not in partners]
    rest_b = [stage for stage in b if stage.name not in partners]
    partners |= {one.name: other for one, other in zip(rest_a, rest_b, strict=False)}
    pairs = [(stage, partners[stage.name]) for stage in a if stage.name in partners]
    return pairs, rest_a[len(rest_b) :], rest_b[len(rest_a) :]


def _comparable(a: StagePlan, b: StagePlan) -> tuple[Values, Values]:
    """The values of two stages, without those that are only spelled differently."""
    left_out = {"name"}
    if a.trainable_modules is not None and b.trainable_modules is not None:
        left_out |= {"freeze", "trainable"}
    if a.deepspeed == b.deepspeed:
        left_out.add("deepspeed_source")
    return _without(a.model_dump(mode="json"), left_out), _without(b.model_dump(mode="json"), left_out)


def _without(values: Values, keys: set[str]) -> Values:
    return {key: value for key, value in values.items() if key not in keys}


def _between(a: JsonValue, b: JsonValue, path: str) -> Iterator[Difference]:
    a, b = _by_name(a), _by_name(b)
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys((*a, *b)):
            inner = f"{path}.{key}" if path else key
            if key not in a or key not in b:
                yield Difference(inner, a=a.get(key), b=b.get(key), in_a=key in a, in_b=key in b)
            else:
                yield from _between(a[key], b[key], inner)
    elif (
        isinstance(a, list)
        and isinstance(b, list)
        and len(a) == len(b)
        and any(isinstance(entry, dict) for entry in a)
    ):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _between(one, other, f"{path}[{index}]")
    elif a != b or isinstance(a, bool) != isinstance(b, bool):
        yield Difference(path, a=a, b=b)


def _by_name(value: JsonValue) -> JsonValue:
    """A list of named mappings as a mapping by name; any other value as it is."""
    if not isinstance(value, list) or not value:
        return value
    named: Values = {}
    for entry in value:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(name, str):
            return value
        named[name] = _without(entry, {"name"})
    return named if len(named) == len(value) else value


def identity(part: Mapping[str, JsonValue]) -> str | None:
    """What identifies a language model or a tower of a plan: its source, or its config and seed."""
    source = part.get("source")
    if isinstance(source, str):
        return source
    config = part.get("config")
    return json.dumps([config, part.get("seed")], sort_keys=True) if config is not None else None


def is_same(left: str, right: str | None) -> bool:
    """Whether two identities are the same: equal, or a folder with the name of the hub's repository."""
    if right is None or left == right:
        return left == right
    return not left.startswith("[") and last_name(left) == last_name(right)


def last_name(source: str) -> str:
    """`vicuna-7b-v1.5`, from `lmsys/Vicuna-7B-v1.5` or a folder of that name."""
    return source.rstrip("/").rpartition("/")[2].lower()


def spell_identity(identity: str | None) -> str:
    """An identity in words: the source, or the kind of random weights."""
    if identity is None:
        return "none"
    if not identity.startswith("["):
        return identity
    config, seed = json.loads(identity)
    return f"random weights of a {config.get('model_type')} config, seed {seed}"
