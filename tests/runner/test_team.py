"""Commands that train together, under torchrun or on nodes with disks of their own; and their failures."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from llava_recipes.errors import RecipeError
from llava_recipes.runner import team as team_module
from llava_recipes.runner.interruption import Interruption
from llava_recipes.runner.team import Team, TeamLost, join
from llava_recipes.runner.world import World
from tests.processes import python, run_process, started
from tests.tiny import read_metrics, stage1_values, write_recipe


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two_stages(folder: Path, *, max_steps: int) -> Path:
    """A recipe whose second stage starts from the first; its run folders are relative, its data are not."""
    folder.mkdir()
    values = stage1_values(
        Path("run"), max_steps=max_steps, per_device_train_batch_size=1, save_steps=4, save_strategy="steps"
    )
    first = values["stages"][0]
    first["train"].pop("num_train_epochs", None)
    first["output_dir"] = "./first"
    second = json.loads(json.dumps(first)) | {"name": "second", "init_from": first["name"]}
    second["output_dir"] = "./second"
    return write_recipe(values | {"stages": [first, second]}, folder / "recipe.yaml")


def weights(folder: Path) -> list[bytes]:
    return [(folder / name / "mm_projector.safetensors").read_bytes() for name in ("first", "second")]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joining sets it for good, in the process of the command."""
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")


@pytest.fixture(scope="module")
def by_torchrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages on two processes, each of which torchrun starts as a command of its own."""
    folder = tmp_path_factory.mktemp("torchrun") / "run"
    recipe = two_stages(folder, max_steps=8)
    launcher = [*python("torch.distributed.run"), "--standalone", "--nproc-per-node=2"]
    done = run_process([*launcher, "-m", "llava_recipes", "run", recipe.name], cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("step 8/8") == 2
    return folder


def test_under_torchrun_the_plan_has_the_real_number_of_processes(by_torchrun: Path) -> None:
    for name in ("first", "second"):
        plan = json.loads((by_torchrun / name / "plan.json").read_text("utf-8"))
        assert plan["world_size"] == 2
        assert plan["stages"][0]["train"]["global_batch_size"] == 2
        assert (by_torchrun / name / "DONE").exists()
        assert [line["step"] for line in read_metrics(by_torchrun / name)] == [*range(1, 9)]


@contextmanager
def pods(folders: list[Path], *words: str) -> Iterator[list[Popen[str]]]:
    """The command in the environment that a PyTorchJob gives its pods, each in a folder of its own."""
    port = str(free_port())
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                started(
                    [*python("llava_recipes"), "run", "recipe.yaml", *words],
                    cwd=folder,
                    env={
                        **{"RANK": str(rank), "WORLD_SIZE": str(len(folders)), "MASTER_ADDR": "127.0.0.1"},
                        **{"MASTER_PORT": port, "PET_NNODES": str(len(folders))},
                    },
                )
            )
            for rank, folder in enumerate(folders)
        ]


def ends(commands: list[Popen[str]]) -> list[tuple[int, str, str]]:
    found = []
    for command in commands:
        out, err = command.communicate(timeout=240)
        found.append((command.returncode, out, err))
    return found


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def nodes(folder: Path, *, max_steps: int) -> list[Path]:
    first, second = folder / "node0", folder / "node1"
    two_stages(first, max_steps=max_steps)
    shutil.copytree(first, second)
    return [first, second]


def test_nodes_with_disks_of_their_own(by_torchrun: Path, tmp_path: Path) -> None:
    """Stopped on the second node, resumed where that one has nothing: the weights of the uncut run."""
    folders = nodes(tmp_path, max_steps=8)
    with pods(folders, "--rdzv-timeout", "120") as commands:
        until(lambda: (folders[0] / "first" / "DONE").exists())
        commands[1].send_signal(signal.SIGTERM)
        stopped = ends(commands)
    assert [code for code, *_ in stopped] == [130, 130], stopped
    assert stopped[1][1] == ""
    with pods(folders, "--resume", "--rdzv-timeout", "120") as commands:
        finished = ends(commands)
    assert [code for code, *_ in finished] == [0, 0], finished
    assert "already done" in finished[0][1]
    assert weights(folders[0]) == weights(by_torchrun)
    assert [path.name for path in folders[1].iterdir()] == ["recipe.yaml"]


def test_a_killed_process_ends_all_commands_and_is_reported_once(tmp_path: Path) -> None:
    folders = nodes(tmp_path, max_steps=5000)
    with pods(folders, "--rdzv-timeout", "120") as commands:
        until(lambda: len(read_lines(folders[0] / "first" / "metrics.jsonl")) > 2)
        (worker,) = workers_in(folders[1])
        os.kill(worker, signal.SIGKILL)
        ended = ends(commands)
    assert [code for code, *_ in ended] == [1, 1], ended
    assert "was killed by SIGKILL on" in ended[0][2]
    assert ended[1][1] + ended[1][2] == ""


def test_what_a_node_lacks_is_reported_by_the_first_with_its_name(tmp_path: Path) -> None:
    folders = nodes(tmp_path, max_steps=8)
    for folder, name in zip(folders, ("", "gone-"), strict=True):
        text = (folder / "recipe.yaml").read_text("utf-8")
        data = next(line.split("annotations: ")[1] for line in text.splitlines() if "annotations: " in line)
        if not name:
            shutil.copy(data, folder / "data.json")
        (folder / "recipe.yaml").write_text(text.replace(data, "data.json"), "utf-8")
    with pods(folders, "--rdzv-timeout", "120") as commands:
        ended = ends(commands)
    assert [code for code, *_ in ended] == [1, 1], ended
    assert "on node 1 (" in ended[0][2] and "data.json" in ended[0][2]
    assert ended[1][1] + ended[1][2] == ""
    assert not (folders[0] / "first").exists()


def world(**facts: Any) -> World:
    usual: dict[str, Any] = {"rank": 0, "size": 2, "address": "127.0.0.1", "port": free_port(), "name": "x"}
    return World(launcher="--nnodes", is_per_node=True, **(usual | facts))


def test_a_node_that_never_comes_is_named() -> None:
    with Interruption() as interruption, pytest.raises(RecipeError) as raised:
        join(world(), {}, interruption, timeout_s=0.5)
    (problem,) = raised.value.problems
    assert problem.code == "nodes-missing"
    assert problem.message == "1 of 2 nodes came within 0.5 s"
    assert problem.found is not None and "missing: 1" in problem.found


def test_a_first_node_that_never_comes() -> None:
    with Interruption() as interruption, pytest.raises(RecipeError) as raised:
        join(world(rank=1), {}, interruption, timeout_s=0.5)
    assert raised.value.problems[0].code == "nodes-missing"


def test_a_place_that_is_taken() -> None:
    with socket.socket() as other, Interruption() as interruption:
        other.bind(("0.0.0.0", 0))
        other.listen()
        with pytest.raises(RecipeError) as raised:
            join(world(port=other.getsockname()[1]), {}, interruption, timeout_s=5)
    assert raised.value.problems[0].code == "rendezvous-taken"


def test_nobody_waits_for_a_command_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import HashStore  # type: ignore[attr-defined]

    monkeypatch.setattr(team_module, "_LOST_S", 0.3)
    first = Team(HashStore(), world(), 0, Interruption())
    first.watch()
    first.order("train")
    began_s = time.monotonic()
    with pytest.raises(TeamLost, match="has not answered for 0 s"):
        first.answers()
    first.end(1)
    assert time.monotonic() - began_s < 10


def read_lines(file: Path) -> list[str]:
    return file.read_text("utf-8").splitlines() if file.exists() else []


def workers_in(folder: Path) -> list[int]:
    """The training processes of a command in a folder; one that is forked ends with what stands in for it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        # One that ends meanwhile has no file any more.
        with suppress(OSError):
            if b"runner.worker" in (process / "cmdline").read_bytes() and (process / "cwd").samefile(folder):
                found.append(int(process.name))
    return found


def test_a_request_to_one_command_is_one_to_all() -> None:
    """That another process stops is no reason: somebody knows one. A second request counts for all too."""
    from torch.distributed import HashStore  # type: ignore[attr-defined]

    store = HashStore()
    first, second = (Team(store, world(), index, Interruption()) for index in range(2))
    first.interruption.ask("another process")
    first._share_request()
    second._share_request()
    assert second.interruption.reason is None
    second.interruption.ask("SIGUSR1")
    second.interruption.is_repeated = True
    second.leave()
    first._share_request()
    assert (first.interruption.reason, first.interruption.is_repeated) == ("SIGUSR1", True)


def test_commands_know_whether_another_one_advances() -> None:
    from torch.distributed import HashStore  # type: ignore[attr-defined]

    store = HashStore()
    teams = [Team(store, world(size=3), index, Interruption()) for index in range(3)]

    def heard() -> list[float]:
        for number, team in enumerate(3 * teams):
            team._beat(number)
            team._look()
        return [team.note_still(team._still_s) for team in teams]

    assert heard() == [math.inf] * 3
    with teams[1].training(), teams[2].training():
        teams[1].note_still(70.0)
        teams[2].note_still(4.0)
        assert heard() == [4.0] * 3
    # They have ended: nobody waits for them.
    assert heard() == [math.inf] * 3
