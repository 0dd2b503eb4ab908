"""Which world a command joins, by what launchers set; then real launchers, and failures among commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_recipes.cli.main import main
from llava_recipes.errors import RecipeError
from llava_recipes.runner.world import (
    BadOptions,
    NodeOptions,
    World,
    expand_counts,
    expand_hosts,
    find_world,
    is_first,
    without_launcher,
)

TORCHRUN = {
    **{"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "9"},
    **{"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "16", "TORCHELASTIC_RESTART_COUNT": "0"},
    **{"MASTER_ADDR": "node0", "MASTER_PORT": "29500"},
}
DEEPSPEED = {
    **{"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2", "CROSS_RANK": "1"},
    **{"CROSS_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
}
OPEN_MPI = {
    **{"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
    **{"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "1721761793", "PMIX_RANK": "1"},
}
HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
SRUN = {
    **{"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_PROCID": "9", "SLURM_LOCALID": "1"},
    **{"SLURM_NODEID": "1", "SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "16"},
    **{"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_STEP_NODELIST": "gpu[07-08]"},
}
SRUN_PER_NODE = SRUN | {
    **{"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"},
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
POD = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
PET = {
    **{"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "8"},
    **{"PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29400"},
}
ADDRESS = {"MASTER_ADDR": "first", "MASTER_PORT": "29501"}


def shape(world: World | None) -> tuple[object, ...] | None:
    if world is None:
        return None
    place = f"{world.address}:{world.port}"
    return world.rank, world.size, world.local_rank, world.local_size, world.is_per_node, place


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, (9, 16, 1, 8, False, "node0:29500")),
        (DEEPSPEED, (3, 4, 1, 2, False, "10.0.0.1:29500")),
        (OPEN_MPI | ADDRESS, (1, 2, 1, 2, False, "first:29501")),
        (HYDRA | ADDRESS, (2, 4, 0, 2, False, "first:29501")),
        (SRUN, (9, 16, 1, 8, False, "gpu07:22977")),
        (SRUN | {"PMI_RANK": "9", "PMI_SIZE": "16"}, (9, 16, 1, 8, False, "gpu07:22977")),
        (SRUN_PER_NODE, (1, 2, 0, 1, True, "gpu07:22977")),
        # mpirun under Slurm starts its daemons by srun; torchrun may be started by either.
        (SRUN_PER_NODE | OPEN_MPI | ADDRESS, (1, 2, 1, 2, False, "first:29501")),
        (SRUN | OPEN_MPI | PET | TORCHRUN, (9, 16, 1, 8, False, "node0:29500")),
        (POD, (1, 2, 0, 1, True, "job-master-0:23456")),
        (PET, (1, 2, 0, 1, True, "job-node-0-0.job:29400")),
        # The operator's WORLD_SIZE counts processes, PET_NNODES nodes.
        (PET | POD | {"WORLD_SIZE": "16"}, (1, 2, 0, 1, True, "job-master-0:23456")),
        ({"PET_NNODES": "2:2", "PET_RDZV_ENDPOINT": "a:1"}, (None, 2, 0, 1, True, "a:1")),
        ({"PET_NNODES": "2", "PET_RDZV_ENDPOINT": "[fd::1]:9"}, (None, 2, 0, 1, True, "fd::1:9")),
        ({"PET_NNODES": "2", "PET_RDZV_ENDPOINT": "head"}, (None, 2, 0, 1, True, "head:29500")),
        # No world: alone, stale, a batch script, a shell of salloc, of srun.
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "a"}, None),
        ({"WORLD_SIZE": "4"}, None),
        ({"RANK": "3"}, None),
        (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, None),
        (SRUN | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "2"}, None),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"PET_NNODES": "1", "PET_NODE_RANK": "0", "PET_NPROC_PER_NODE": "auto"}, None),
    ],
)
def test_worlds(environment: dict[str, str], expected: tuple[object, ...] | None) -> None:
    assert shape(find_world(environment, NodeOptions())) == expected


def test_processes_of_a_pod_are_counted_by_the_job() -> None:
    found = find_world(PET, NodeOptions())
    assert found is not None and found.per_node == 8


def test_ranks_of_one_mpirun_meet_at_one_port() -> None:
    first, second = (
        find_world(OPEN_MPI | {"OMPI_COMM_WORLD_RANK": rank}, NodeOptions()) for rank in ("0", "1")
    )
    assert first is not None and second is not None
    assert (first.address, first.port) == (second.address, second.port) == ("127.0.0.1", first.port)
    other = find_world(OPEN_MPI | {"PMIX_NAMESPACE": "17"}, NodeOptions())
    assert other is not None and other.port != first.port


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "launcher-without-address"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "launcher-without-address"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "launcher-without-address"),
        (HYDRA, "launcher-without-address"),
        (PET | {"PET_NNODES": "1:4"}, "launcher-is-elastic"),
        (DEEPSPEED | {"RANK": "4", "WORLD_SIZE": "4"}, "launcher-contradicts"),
        (DEEPSPEED | {"RANK": "0", "WORLD_SIZE": "0"}, "launcher-contradicts"),
        (DEEPSPEED | {"LOCAL_RANK": "9", "LOCAL_SIZE": "2"}, "launcher-contradicts"),
        (DEEPSPEED | {"MASTER_PORT": "99999"}, "launcher-contradicts"),
    ],
)
def test_worlds_that_cannot_be_joined(environment: dict[str, str], code: str) -> None:
    with pytest.raises(RecipeError) as raised:
        find_world(environment, NodeOptions())
    (problem,) = raised.value.problems
    assert problem.code == code
    assert problem.hint


TWO_NODES = NodeOptions(nnodes=2, rdzv_endpoint="head:29500", rdzv_id="x")


@pytest.mark.parametrize(
    ("environment", "options", "words"),
    [
        (TORCHRUN, NodeOptions(processes=8), "leave out --processes"),
        (SRUN, TWO_NODES, "leave out --nnodes"),
        (DEEPSPEED, NodeOptions(node_rank=1), "task 3 of 4"),
        (SRUN_PER_NODE, NodeOptions(nnodes=4, rdzv_endpoint="head:29500", rdzv_id="x"), "leave out --nnodes"),
        (PET, NodeOptions(node_rank=0), "leave out --node-rank"),
        ({}, NodeOptions(nnodes=2), "needs --rdzv-endpoint"),
        ({}, NodeOptions(rdzv_endpoint="head:29500", rdzv_id="x"), "without --nnodes"),
        ({}, NodeOptions(nnodes=2, rdzv_endpoint=":29500", rdzv_id="x"), "is not HOST:PORT"),
        ({}, NodeOptions(nnodes=2, rdzv_endpoint="a:b", rdzv_id="x"), "is not HOST:PORT"),
        ({}, NodeOptions(nnodes=2, rdzv_endpoint="a", rdzv_id="x", node_rank=2), "between 0 and 1"),
        ({}, NodeOptions(nnodes=2, rdzv_endpoint="a", rdzv_id="x", rdzv_backend="static"), "--node-rank"),
        ({}, NodeOptions(nnodes=2, rdzv_endpoint="a", rdzv_id="x", rdzv_backend="etcd"), "not supported"),
    ],
)
def test_options_that_contradict(environment: dict[str, str], options: NodeOptions, words: str) -> None:
    with pytest.raises(BadOptions, match=words):
        find_world(environment, options)


def test_options_beside_a_launcher_that_say_the_same() -> None:
    """The form that needs no recognition: one task per node, and the nodes by hand."""
    found = find_world(SRUN_PER_NODE, TWO_NODES)
    assert shape(found) == (None, 2, 0, 1, True, "head:29500")
    found = find_world({}, NodeOptions(nnodes=2, node_rank=1, rdzv_endpoint="[::1]:29500", rdzv_id="x"))
    assert shape(found) == (1, 2, 0, 1, True, "::1:29500")
    assert found is not None and found.is_optional
    found = find_world(SRUN_PER_NODE, NodeOptions(processes=4))
    assert found is not None and not found.is_optional


def test_one_of_all_speaks() -> None:
    assert is_first({})
    assert is_first(TORCHRUN | {"RANK": "0"})
    assert not is_first(TORCHRUN)
    assert not is_first(SRUN)


def test_workers_inherit_nothing_that_contradicts() -> None:
    given = {**TORCHRUN, **OPEN_MPI, **PET, **DEEPSPEED, **HYDRA}
    given |= {"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}
    assert without_launcher(given) == {}
    kept = {"PATH": "/bin", "NCCL_DEBUG": "INFO", "SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "0"}
    assert without_launcher(given | kept) == kept


@pytest.mark.parametrize("words", [["run", "recipe.yaml", "--processes", "2"], ["demo"]])
def test_a_contradiction_is_printed_by_one_of_all(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (TORCHRUN | {"RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv("RANK", "1")
    assert main(words) == 2
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_slurm_lists() -> None:
    assert expand_hosts("login,gpu[07-09,11],a1-b[2]c") == [
        *("login", "gpu07", "gpu08", "gpu09", "gpu11", "a1-b2c")
    ]
    assert expand_hosts("r[1-2]n[01-02]") == ["r1n01", "r1n02", "r2n01", "r2n02"]
    assert list(expand_counts("8(x3),4")) == [8, 8, 8, 4]
