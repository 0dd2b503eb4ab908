"""The rows of benchmarks/gpu.py as Markdown, for benchmarks/README.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Row = dict[str, Any]

_NONE = "–"
_GOLDEN = ("fp32", "fp32, usual TF32", "bf16")
_STEPS = (
    *("model", "training", "checkpointing", "batch", "tokens"),
    *("s/step", "samples/s", "TFLOP/s", "of (a)", "model FLOPs"),
    *("allocated", "reserved", "plan, tensors", "plan, in all", "plan says"),
)


def markdown(rows: Sequence[Row]) -> str:
    """Tables of all that was measured, and a list of what was not."""
    rate = next((row["tflops"] for row in rows if "tflops" in row), None)
    blocks = [
        *_machine(rows),
        *_speed(rows),
        *_golden(rows),
        *_steps(rows, rate),
        *_resumed(rows),
        *_not_measured(rows),
    ]
    return "\n\n".join(blocks) + "\n"


def _machine(rows: Sequence[Row]) -> Iterator[str]:
    for row in _with(rows, "machine"):
        memory = "" if row["memory_gib"] is None else f", {row['memory_gib']:.2f} GiB"
        cuda = "" if row["cuda"] is None else f", CUDA {row['cuda']}"
        versions = ", ".join(f"{name} {found}" for name, found in row["versions"].items() if found)
        yield f"{row['device']}{memory}{cuda}; Python {row['python']}, {versions}."


def _speed(rows: Sequence[Row]) -> Iterator[str]:
    for row in _figures(rows, "a"):
        yield (
            f"(a) A matrix product of {row['size']} × {row['size']} × {row['size']} in bf16: "
            f"{row['tflops']:.4g} TFLOP/s (median of {row['num_products']}, {row['slowest_tflops']:.4g} to "
            f"{row['fastest_tflops']:.4g})."
        )


def _golden(rows: Sequence[Row]) -> Iterator[str]:
    found = list(_figures(rows, "b"))
    if found:
        yield "(b) Largest difference in the loss from the original's recorded runs."
        names = dict.fromkeys(row["run"] for row in found)
        off = {(row["run"], row["precision"]): row["largest_difference"] for row in found}
        steps = {row["run"]: row["num_steps"] for row in found}
        yield _table(
            ("run", "steps", *_GOLDEN),
            (
                (name, str(steps[name]), *(_number(off.get((name, each)), ".2g") for each in _GOLDEN))
                for name in names
            ),
        )
    for row in _with(rows, "rotary"):
        yield (
            f"Rotary angles at {row['num_positions']} positions are off by up to {row['ieee']:.2g} rad in "
            f"float32, and by {row['tf32']:.2g} rad with TF32."
        )


def _steps(rows: Sequence[Row], rate: float | None) -> Iterator[str]:
    found = [*_figures(rows, "c"), *_figures(rows, "d")]
    if found:
        yield (
            "(c), (d) Training steps with random weights. TFLOP/s are by `estimate/cost.py`, recomputation "
            "included; model FLOPs are the same without recomputation, as a share of (a). Memory is in GiB; "
            "*plan, tensors* is the plan's figure without its allowance for the CUDA context, to be compared "
            "with what torch allocated and reserved."
        )
        yield _table(_STEPS, (_step_cells(row, rate) for row in found))
    outside = [row["outside_torch_gib"] for row in found if "outside_torch_gib" in row]
    if outside:
        yield (
            "Outside torch's allocator, for the CUDA context and all else on the card: "
            f"{min(outside):.2f} to {max(outside):.2f} GiB."
        )


def _step_cells(row: Row, rate: float | None) -> tuple[str, ...]:
    fits = {True: "fits", False: "does not fit", None: _NONE}[row["plan_says_fits"]]
    measured = row["status"] == "measured"
    tflops = row["flops_per_sample"] * row["samples_per_s"] / 1e12 if measured else None
    model_tflops = row["model_flops_per_sample"] * row["samples_per_s"] / 1e12 if measured else None
    return (
        row["model"],
        row["tuning"],
        "on" if row["checkpointing"] else "off",
        str(row["batch"]),
        str(row["tokens"]),
        _number(row["step_s"], ".3f") if measured else "out of memory",
        _number(row.get("samples_per_s"), ".2f"),
        _number(tflops, ".3g"),
        _share(tflops, rate),
        _share(model_tflops, rate),
        _number(row.get("allocated_gib") if measured else None, ".2f"),
        _number(row.get("reserved_gib") if measured else None, ".2f"),
        _number(row["planned_without_context_gib"], ".2f"),
        _number(row["planned_gib"], ".2f"),
        fits,
    )


def _resumed(rows: Sequence[Row]) -> Iterator[str]:
    for row in _figures(rows, "e"):
        yield (
            f"(e) `llava-recipe run` with {row['deepspeed']}, {row['num_steps']} steps: stopped by a signal "
            f"at step {row['stopped_at']} and resumed, killed after step {row['killed_after']} and resumed "
            f"from step {row['resumed_from']}. The losses are off by at most "
            f"{row['largest_difference']:.2g} from an uncut run's; the last is {row['last_loss']:.4f}, and "
            f"{row['last_loss_uncut']:.4f} without a cut. DONE exists: "
            f"{'yes' if all(row['done'].values()) else 'no'}."
        )


def _not_measured(rows: Sequence[Row]) -> Iterator[str]:
    lines = [
        f"- {_name(row)}: {row['status']}, {row['why']}"
        for row in _with(rows, "ended")
        if row["status"] != "done"
    ]
    if lines:
        yield "\n".join(["Not measured:", "", *lines])


def _name(row: Row) -> str:
    words = [row["part"] if row["part"] == "machine" else f"({row['part']})"]
    words += [str(row[key]) for key in ("model", "tuning", "deepspeed") if key in row]
    if "checkpointing" in row:
        words.append(f"checkpointing {'on' if row['checkpointing'] else 'off'}")
    return " ".join(words)


def _with(rows: Sequence[Row], event: str) -> list[Row]:
    return [row for row in rows if row["event"] == event]


def _figures(rows: Sequence[Row], part: str) -> list[Row]:
    return [row for row in _with(rows, "figures") if row["part"] == part]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---" if name in ("run", "model", "training", "checkpointing") else "---:" for name in head]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _number(value: float | None, spec: str) -> str:
    return _NONE if value is None else format(value, spec)


def _share(tflops: float | None, rate: float | None) -> str:
    return _NONE if tflops is None or not rate else f"{100 * tflops / rate:.0f} %"
