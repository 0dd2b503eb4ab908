"""Measure time and peak memory of a Stage-1 step on a model that fits a CPU.

    python benchmarks/step.py                 # with and without gradient checkpointing, a process each
    python benchmarks/step.py --engine run    # the same through `llava-recipe run`: Trainer, logs, files

Images (640×480 JPEG), captions (about 28 tokens) and a tokenizer of 32,000 words are drawn into a temporary
folder, so that nothing is downloaded. Results are in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

if __name__ == "__main__":
    # The script's own folder comes first otherwise, and its modules are those of a package.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.drawn import draw_data, draw_tokenizer

VOCAB_SIZE = 32_000
CAPTION_WORDS = range(24, 28)

RECIPE = """\
version: 1
name: step-benchmark
model:
  language_model:
    config:
      model_type: llama
      hidden_size: 512
      num_hidden_layers: 8
      intermediate_size: 1376
      num_attention_heads: 8
      num_key_value_heads: 8
      vocab_size: {vocab_size}
      max_position_embeddings: 2048
      tie_word_embeddings: false
    tokenizer: {folder}/tokenizer
  vision_tower:
    config:
      model_type: clip_vision_model
      hidden_size: 256
      intermediate_size: 1024
      num_hidden_layers: 6
      num_attention_heads: 4
      image_size: 336
      patch_size: 14
    select_layer: -2
  projector: {{type: mlp2x_gelu}}
stages:
  - name: pretrain
    freeze: all
    trainable: [projector]
    data:
      template: plain
      sources:
        - annotations: {folder}/captions.json
          images: {folder}/images
      max_length: 2048
    train:
      max_steps: {num_steps}
      per_device_train_batch_size: {batch_size}
      learning_rate: 1e-3
      warmup_ratio: 0.03
      gradient_checkpointing: {gradient_checkpointing}
      logging_steps: 1
      save_strategy: no
    output_dir: {output_dir}
"""


@dataclass(frozen=True)
class Setting:
    """What one process measures."""

    recipe: str
    output_dir: str
    num_warmup: int
    num_threads: int


@dataclass(frozen=True)
class Figures:
    """What one process measured: seconds (medians over the steps after warm-up), GiB, tokens."""

    step_s: float
    fastest_step_s: float
    slowest_step_s: float
    first_step_after_s: float
    peak_memory_gib: float
    parts_s: dict[str, float]
    sequence_length: int | None
    last_loss: float


def seconds_since_process_start() -> float:
    """Age of this process, interpreter start-up included."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    return uptime_s - ticks / os.sysconf("SC_CLK_TCK")


class Stopwatch:
    """Seconds per named part, one list entry per step."""

    def __init__(self) -> None:
        self.parts_s: dict[str, list[float]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.parts_s.setdefault(name, []).append(time.perf_counter() - begin)


def measure_loop(setting: Setting) -> Figures:
    """Take the steps in a bare loop over the parts that a run is made of, each part timed by itself."""
    step, num_steps = _prepare(setting)
    watch = Stopwatch()
    steps_s: list[float] = []
    first_step_after_s = seconds_since_process_start()
    for _ in range(num_steps):
        begin = time.perf_counter()
        loss, length = step(watch)
        steps_s.append(time.perf_counter() - begin)
    measured = steps_s[setting.num_warmup :]
    return Figures(
        step_s=statistics.median(measured),
        fastest_step_s=min(measured),
        slowest_step_s=max(measured),
        first_step_after_s=first_step_after_s,
        peak_memory_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        parts_s={name: statistics.median(each[setting.num_warmup :]) for name, each in watch.parts_s.items()},
        sequence_length=length,
        last_loss=loss,
    )


Step = Callable[[Stopwatch], tuple[float, int]]


def _prepare(setting: Setting) -> tuple[Step, int]:
    """Build model, data and optimizer; return a function that takes one step, and how many to take."""
    import torch
    from torch.utils.data import DataLoader

    from benchmarks.stage_model import build_stage, trained_parameters
    from llava_recipes.model.assemble import collator_of, open_samples
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.runner.facts import plan_recipe

    torch.set_num_threads(setting.num_threads)
    plan = plan_recipe(load_recipe(setting.recipe), world_size=1)
    stage = plan.stages[0]
    parts = build_stage(plan)
    model = parts.model
    dataset = open_samples(parts, stage.data, start_end=False)
    batches = iter(
        DataLoader(
            dataset,
            batch_size=stage.train.per_device_train_batch_size,
            collate_fn=collator_of(parts, dataset),
        )
    )
    trained = trained_parameters(model)
    optimizer = torch.optim.AdamW(trained, lr=stage.train.learning_rate, weight_decay=0.0)

    def step(watch: Stopwatch) -> tuple[float, int]:
        with watch.part("data"):
            batch = next(batches)
        with watch.part("forward"):
            loss = model(**batch).loss
        with watch.part("backward"):
            loss.backward()
        with watch.part("optimizer"):
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach()), batch["input_ids"].shape[1]

    num_steps = stage.train.max_steps
    assert num_steps is not None
    return step, num_steps


def measure_run(setting: Setting) -> Figures:
    """Take the steps through `llava-recipe run`, and read what it recorded."""
    metrics = Path(setting.output_dir) / "metrics.jsonl"
    begin = time.monotonic()
    run = subprocess.Popen(
        [sys.executable, "-m", "llava_recipes", "run", setting.recipe, "--processes", "1"],
        stdout=subprocess.DEVNULL,
    )
    first_line_after_s = 0.0
    while run.poll() is None:
        if not first_line_after_s and metrics.exists() and metrics.stat().st_size:
            first_line_after_s = time.monotonic() - begin
        time.sleep(0.01)
    if run.returncode:
        raise SystemExit(run.returncode)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps_s = [after["seconds"] - before["seconds"] for before, after in pairwise(lines)]
    measured = steps_s[max(setting.num_warmup - 1, 0) :]
    return Figures(
        step_s=statistics.median(measured),
        fastest_step_s=min(measured),
        slowest_step_s=max(measured),
        first_step_after_s=first_line_after_s - statistics.median(measured),
        peak_memory_gib=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
        parts_s={},
        sequence_length=None,
        last_loss=lines[-1]["loss"],
    )


ENGINES = {"loop": measure_loop, "run": measure_run}


def measure_apart(folder: Path, *, gradient_checkpointing: bool, options: argparse.Namespace) -> Figures:
    """Measure one setting in a process of its own, so that its peak memory is its own."""
    name = "on" if gradient_checkpointing else "off"
    setting = Setting(
        recipe=str(folder / f"{name}.yaml"),
        output_dir=str(folder / name),
        num_warmup=options.warmup,
        num_threads=options.threads,
    )
    Path(setting.recipe).write_text(
        RECIPE.format(
            folder=folder,
            output_dir=setting.output_dir,
            vocab_size=VOCAB_SIZE,
            num_steps=options.warmup + options.steps,
            batch_size=options.batch,
            gradient_checkpointing=str(gradient_checkpointing).lower(),
        )
    )
    done = subprocess.run(
        [sys.executable, __file__, "--engine", options.engine, "--measure", json.dumps(asdict(setting))],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"},
    )
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def machine() -> str:
    """Processor, cores and the versions that matter."""
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    processor = models[0].partition(": ")[2] if models else platform.machine()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"{processor}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def report(figures: Figures, *, gradient_checkpointing: bool) -> str:
    """One setting's figures as lines for a person."""
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in figures.parts_s.items())
    return (
        f"gradient checkpointing {'on' if gradient_checkpointing else 'off'}\n"
        f"  step {figures.step_s:.2f} s ({figures.fastest_step_s:.2f} to {figures.slowest_step_s:.2f} s)"
        f"{': ' + parts if parts else ''}\n"
        f"  peak memory {figures.peak_memory_gib:.2f} GiB\n"
        f"  {figures.first_step_after_s:.1f} s from process start to the first step\n"
        f"  last loss {figures.last_loss:.4f}"
        + (f", sequence of {figures.sequence_length} tokens" if figures.sequence_length else "")
    )


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", choices=sorted(ENGINES), default="loop")
    parser.add_argument("--gradient-checkpointing", choices=["on", "off", "both"], default="both")
    parser.add_argument("--steps", type=int, default=8, help="measured steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those")
    parser.add_argument("--batch", type=int, default=4, help="samples per step")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--measure", metavar="SETTING", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure every requested setting and print the figures."""
    options = read_options()
    if options.measure:
        print(json.dumps(asdict(ENGINES[options.engine](Setting(**json.loads(options.measure))))))
        return
    choices = {"on": [True], "off": [False], "both": [False, True]}[options.gradient_checkpointing]
    if not options.json:
        print(machine())
    with tempfile.TemporaryDirectory(prefix="step-benchmark-") as name:
        folder = Path(name)
        words = draw_tokenizer(folder / "tokenizer", vocab_size=VOCAB_SIZE)
        draw_data(
            folder,
            num_samples=(options.warmup + options.steps) * options.batch,
            words=words,
            num_answer_words=CAPTION_WORDS,
        )
        for on in choices:
            figures = measure_apart(folder, gradient_checkpointing=on, options=options)
            if options.json:
                print(json.dumps({"gradient_checkpointing": on, **asdict(figures)}))
            else:
                print(report(figures, gradient_checkpointing=on), flush=True)


if __name__ == "__main__":
    main()
