"""The job that `llava-recipe slurm` writes; on Slurm itself where it is installed."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

import pytest
import yaml

from llava_recipes.authoring.slurm_job import seconds_of
from llava_recipes.cli.main import main
from llava_recipes.train import stopping
from tests.processes import run_process
from tests.slurm import broken_job
from tests.tiny import stage1_values, write_recipe


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "it's a $(folder)"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return write_recipe(stage1_values(Path("run")), folder / "recipe.yaml")


WORDS = ["slurm", "recipe.yaml", "--nodes=4", "--gpus-per-node=8", "-o", "job.sbatch"]


def test_a_job_quotes_what_it_was_given(recipe: Path) -> None:
    """Run by bash, with programs of Slurm that only print, it starts exactly what was asked for."""
    name = 'stages.0.data.sources.0.images=a\'b; touch oops & "c" > oops \\ d'
    assert main([*WORDS, "--set", name, "--sbatch", "comment=a b", "--time", "2:00:00"]) == 0
    (bin_folder := recipe.parent / "bin").mkdir()
    for program, does in {"scontrol": "echo first", "srun": 'printf "%s\\n" "$PWD" "$@" > seen'}.items():
        (bin_folder / program).write_text(f"#!/bin/bash\n{does}\n")
        (bin_folder / program).chmod(0o755)
    environment = {"PATH": f"{bin_folder}:/usr/bin:/bin", "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "a"}
    done = run_process(["bash", "job.sbatch"], cwd=recipe.parent, env=environment)
    assert done.returncode == 0, done.stderr
    seen = (recipe.parent / "seen").read_text().splitlines()
    assert seen[0] == str(recipe.parent)
    assert seen[-5:] == ["run", "recipe.yaml", "--resume", "--processes=8", f"--set={name}"]
    assert not (recipe.parent / "oops").exists()
    text = (recipe.parent / "job.sbatch").read_text()
    head = text[: text.index("\ncd ")]
    assert all(line.startswith("#") or not line for line in head.splitlines())
    assert "on 4 nodes, 8 GPUs each: 32 processes.\n" in head
    for option in (
        "nodes=4",
        "gpus-per-node=8",
        "time=2:00:00",
        'comment="a b"',
        "requeue",
        "signal=B:USR1@300",
    ):
        assert f"#SBATCH --{option}\n" in text
    assert shlex.split(text, comments=True)


def test_a_job_is_planned_before_it_is_written(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = yaml.safe_load(recipe.read_text())
    train = values["stages"][0]["train"]
    del train["per_device_train_batch_size"]
    write_recipe(
        values | {"stages": [values["stages"][0] | {"train": train | {"global_batch_size": 24}}]}, recipe
    )
    assert main(WORDS) == 1
    assert "global_batch_size" in capsys.readouterr().err
    assert not (recipe.parent / "job.sbatch").exists()


def test_a_job_replaces_no_file(recipe: Path) -> None:
    (recipe.parent / "job.sbatch").write_text("mine")
    assert main(WORDS) == 1
    assert (recipe.parent / "job.sbatch").read_text() == "mine"
    assert main([*WORDS, "--force"]) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        *(["--time", "4h"], ["--partition", "a\n#SBATCH --wrap=x"], ["--account", ""]),
        *(["--sbatch", "mem 0"], ["--sbatch", "mem=0\nrm"], ["--gpus-per-node=-1"]),
        *(["--sbatch", "nodes=2"], ["--sbatch", "signal=TERM@60"], ["--sbatch", "time=1:00"]),
    ],
)
def test_values_that_are_none_of_slurms(wrong: list[str], recipe: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        main([*WORDS, *wrong])
    assert raised.value.code == 2


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("5", 300),
        ("5:30", 330),
        ("1:00:00", 3600),
        ("1-2", 93_600),
        ("1-2:30", 95_400),
        ("1-2:30:10", 95_410),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(limit: str, seconds: int) -> None:
    assert seconds_of(limit) == seconds


def test_a_limit_that_leaves_no_time_to_train_is_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, "--time", "5"]) == 2
    assert "lower --signal-before" in capsys.readouterr().err
    assert main([*WORDS, "--time", "5", "--signal-before", "60"]) == 0


def test_options_of_the_user_come_last_and_count(recipe: Path) -> None:
    assert main([*WORDS, "--sbatch", "output=my.log", "--sbatch", "no-requeue"]) == 0
    lines = (recipe.parent / "job.sbatch").read_text().splitlines()
    assert lines.index("#SBATCH --output=my.log") > lines.index("#SBATCH --output=%x-%j.log")
    assert lines.index("#SBATCH --no-requeue") > lines.index("#SBATCH --requeue")
    assert {"##SBATCH --cpus-per-task=64", "##SBATCH --mem=0"} < set(lines)
    assert main([*WORDS, "--force", "--sbatch", "cpus-per-task=4"]) == 0
    lines = (recipe.parent / "job.sbatch").read_text().splitlines()
    assert [line for line in lines if "--cpus-per-task" in line] == ["#SBATCH --cpus-per-task=4"]


def test_a_save_that_the_limit_would_cut_is_warned_of(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(WORDS) == 0
    said = capsys.readouterr().err
    assert "warning: the batch of a step is larger than the data" in said and "may take" not in said
    monkeypatch.setattr(stopping, "_BYTES_PER_S", 20.0)
    assert main([*WORDS, "--force"]) == 0
    said = capsys.readouterr().err
    assert "stage `pretrain` may take 1,267 s" in said and "give --signal-before 2100" in said
    assert main([*WORDS, "--force", "--signal-before", "2100"]) == 0
    assert "may take" not in capsys.readouterr().err


# Slurm's own waits take minutes: for `make test-long` and `make slurm`, which the workflow runs too.
@pytest.mark.long
@pytest.mark.skipif(bool(broken_job.missing()), reason=f"no {', '.join(broken_job.missing())}")
def test_a_job_that_is_preempted_and_reaches_its_limit() -> None:
    # The path of a Unix socket is short.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        happened = broken_job.main(Path(folder), real_limit=False)
    assert "same weights" in happened[-1]
