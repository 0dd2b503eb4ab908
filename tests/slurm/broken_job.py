"""A job of `llava-recipe slurm` on Slurm itself: preempted, stopped at its limit, queued again, finished.

`python -m tests.slurm.broken_job [--real-limit]` starts Slurm in a folder of its own (setup.sh), as root. Two
nodes are this machine. A job is preempted by one of a partition that goes first, later told that its time
is nearly over, and goes on by itself each time. Its weights and DONE must be those of a job that nothing cut.
With `--real-limit` the signal comes from a real time limit, which Slurm looks at once a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llava_recipes.screen import say
from tests.tiny import read_metrics, stage1_values, write_recipe

SETUP = Path(__file__).with_name("setup.sh")
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol")
STEPS, CUT_AT = 400, (60, 200)
TIMEOUT_S = 600.0


class Failed(Exception):
    """What a job did not do."""


def missing() -> list[str]:
    """What this machine lacks to run Slurm."""
    lacking = [program for program in NEEDED if shutil.which(program, path=_path()) is None]
    return lacking + (["root"] if os.geteuid() != 0 else [])


def main(folder: Path, *, real_limit: bool) -> list[str]:
    """Run both jobs; what happened, one line each. Raises Failed."""
    slurm = folder / "slurm"
    environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(slurm / "slurm.conf")}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    cluster = Cluster(folder, environment, real_limit=real_limit)
    subprocess.run([SETUP, "start", slurm], cwd=folder, check=True, env=environment)
    try:
        cluster.run_both()
    finally:
        subprocess.run([SETUP, "stop", slurm], cwd=folder, check=True, env=environment)
    return cluster.happened


class Cluster:
    """The jobs, and what happened to them."""

    def __init__(self, folder: Path, environment: dict[str, str], *, real_limit: bool) -> None:
        self.folder, self.environment, self.real_limit = folder, environment, real_limit
        self.happened: list[str] = []

    def run_both(self) -> None:
        whole, cut = self.folder / "whole", self.folder / "cut"
        self._note(f"job {(job := self.submit(whole, limit='1:00:00'))} is left alone")
        self.completes(job)
        broken = self.submit(cut, limit="0:02:00" if self.real_limit else "1:00:00")
        self._note(f"job {broken} is to be cut")
        self.until(lambda: self.step(cut) >= CUT_AT[0], f"job {broken} reaches step {CUT_AT[0]}")
        self.preempt(broken)
        self.until(lambda: self.starts(broken) == 1 and self.state(broken) == "RUNNING", "it starts again")
        self._note(f"job {broken} runs again, from {self.resumed(cut, 1)}")
        if not self.real_limit:
            self.until(lambda: self.step(cut) >= CUT_AT[1], f"job {broken} reaches step {CUT_AT[1]}")
            # What Slurm itself sends --signal-before seconds before the limit, as `#SBATCH --signal=B:USR1`.
            self.slurm("scancel", "--batch", "--signal=USR1", str(broken))
            self._note(f"job {broken} is told at step {self.step(cut)} that its time is nearly over")
        self.until(lambda: self.starts(broken) >= 2 and self.state(broken) == "RUNNING", "it starts again")
        self._note(f"job {broken} runs again, from {self.resumed(cut, 2)}")
        self.completes(broken)
        self._note(f"job {broken} is done after {self.starts(broken) + 1} starts")
        self.compare(whole, cut)

    def submit(self, folder: Path, *, limit: str) -> int:
        """Write a recipe and its job with the command line, and submit it."""
        folder.mkdir()
        values = stage1_values(
            Path("run"), max_steps=STEPS, per_device_train_batch_size=2, save_strategy="steps", save_steps=50
        )
        values["stages"][0]["train"].pop("num_train_epochs", None)
        values["stages"][0]["output_dir"] = "./run"
        if self.real_limit:
            values["stages"][0]["train"]["max_steps"] = 40 * STEPS
        write_recipe(values, folder / "recipe.yaml")
        command = [sys.executable, "-m", "llava_recipes", "slurm", "recipe.yaml", "--nodes=2"]
        options = ["--gpus-per-node=0", f"--time={limit}", "--signal-before=60", "--partition=batch"]
        written = subprocess.run(
            [*command, *options, "-o", "job.sbatch"],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if written.returncode != 0:
            raise Failed(written.stderr)
        return int(self.slurm("sbatch", "--parsable", "job.sbatch", cwd=folder))

    def preempt(self, job: int) -> None:
        """Let a job of the partition that goes first take both nodes."""
        urgent = self.slurm(
            *("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"),
            "--wrap=sleep 5",
        )
        self._note(f"job {urgent.strip()} of another partition preempts job {job}")
        self.until(lambda: self.starts(job) == 1 or self.state(job) == "FAILED", f"job {job} is queued again")

    def compare(self, whole: Path, cut: Path) -> None:
        weights = [(each / "run" / "mm_projector.safetensors").read_bytes() for each in (whole, cut)]
        if weights[0] != weights[1]:
            raise Failed("the weights of the job that was cut differ")
        done = [json.loads((each / "run" / "DONE").read_text("utf-8")) for each in (whole, cut)]
        for key in ("steps", "loss"):
            if done[0][key] != done[1][key]:
                raise Failed(f"DONE has {key} {done[1][key]} instead of {done[0][key]}")
        self._note(f"same weights, bit by bit; DONE says {done[1]['steps']} steps, loss {done[1]['loss']}")

    def step(self, folder: Path) -> int:
        file = folder / "run"
        lines = read_metrics(file) if (file / "metrics.jsonl").exists() else []
        return int(lines[-1]["step"]) if lines else 0

    def resumed(self, folder: Path, start: int) -> str:
        """The checkpoint that a start of the job continues from, as its log says."""
        self.until(lambda: "resumes from" in self._since(folder, start), "it says where it resumes")
        return self._since(folder, start).split("resumes from ")[1].split()[0]

    def _since(self, folder: Path, start: int) -> str:
        (log,) = folder.glob("*.log")
        return log.read_text("utf-8").partition(f": start {start} of job")[2]

    def completes(self, job: int) -> None:
        self.until(lambda: self.state(job) in ("COMPLETED", "FAILED", "CANCELLED"), f"job {job} completes")
        if self.state(job) != "COMPLETED":
            raise Failed(f"job {job} ends as {self.state(job)}\n{self._logs()}")

    def state(self, job: int) -> str:
        return self.fact(job, "JobState")

    def starts(self, job: int) -> int:
        return int(self.fact(job, "Restarts"))

    def fact(self, job: int, name: str) -> str:
        words = self.slurm("scontrol", "--oneliner", "show", "job", str(job)).split()
        return dict(word.partition("=")[::2] for word in words)[name]

    def slurm(self, *argv: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            argv, cwd=cwd or self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Failed(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not is_so():
            if time.monotonic() > deadline:
                raise Failed(f"not within {TIMEOUT_S:g} s: {what}\n{self._logs()}")
            time.sleep(0.2)

    def _logs(self) -> str:
        files = [*self.folder.glob("*/*.log"), *self.folder.glob("slurm/*.log")]
        return "\n".join(f"== {file.name}\n{file.read_text('utf-8')[-3000:]}" for file in files)

    def _note(self, line: str) -> None:
        self.happened.append(line)
        say(line)


def _path() -> str:
    """Where Debian puts programs of the administrator, too."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


def _start(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real-limit", action="store_true", help="wait for a real time limit: minutes")
    parser.add_argument("--keep", metavar="DIR", help="work in this new folder, and keep it")
    arguments = parser.parse_args(argv)
    lacking = missing()
    if lacking:
        say(f"not available: {', '.join(lacking)}; apt-get install --no-install-recommends slurm-wlm munge")
        return 2
    folder = Path(arguments.keep or tempfile.mkdtemp(prefix="slurm-", dir="/var/tmp")).absolute()
    folder.mkdir(exist_ok=True)
    try:
        main(folder, real_limit=arguments.real_limit)
    except Failed as failed:
        say(f"FAILED: {failed}", to_stderr=True)
        return 1
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(_start())
