"""The world that a launcher started this command in: torchrun, srun, mpirun, a pod; or that its options name.

Two shapes exist. A launcher with one task per process makes this command one rank of the world. One with one
task per node leaves it to this command to start the processes of its node.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llava_recipes.errors import RecipeError

Environment = Mapping[str, str]

_BY_OPTIONS = "--nnodes"
_PORTS = range(20_000, 30_000)
"""Below the ports that Linux gives to outgoing connections."""

_NAMES = frozenset(
    {
        *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "NODE_RANK", "CROSS_RANK"),
        *("CROSS_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "GROUP_NAME", "ROLE_NAME", "ROLE_RANK"),
        *("ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "FORK_LAUNCHED"),
        *("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    }
)
_PREFIXES = (
    *("TORCHELASTIC_", "PET_", "OMPI_COMM_WORLD_", "PMI_", "PMIX_", "MV2_COMM_WORLD_"),
    # accelerate takes the whole way of training from these: FSDP, Megatron, precision.
    *("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_"),
)
# Slurm numbers the steps of batch scripts and of interactive shells from here on.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class World:
    """Commands that train together: this one's number among them, and where they meet."""

    launcher: str
    """Who started them, as messages name it."""
    rank: int | None
    """None where the commands number themselves: the one at the address is the first."""
    size: int
    address: str
    port: int
    name: str
    """Keeps two runs apart that meet at one place."""
    per_node: int | None = None
    """With one task per node: the processes that each of them starts, if the launcher says so."""
    is_per_node: bool = False
    local_rank: int = 0
    local_size: int = 1
    is_hosted: bool = False
    """The launcher keeps a store at the address; otherwise the first command opens one."""

    @property
    def is_optional(self) -> bool:
        """Whether the command's own options name it, not a launcher."""
        return self.launcher == _BY_OPTIONS


@dataclass(frozen=True)
class NodeOptions:
    """What the command line says of nodes; None or empty where it says nothing."""

    processes: int | None = None
    nnodes: int | None = None
    node_rank: int | None = None
    rdzv_backend: str | None = None
    rdzv_endpoint: str = ""
    rdzv_id: str = ""

    def given(self) -> list[str]:
        """Names of the options that were given, without `--processes`."""
        values = {
            "--nnodes": self.nnodes,
            "--node-rank": self.node_rank,
            "--rdzv-backend": self.rdzv_backend,
            "--rdzv-endpoint": self.rdzv_endpoint or None,
            "--rdzv-id": self.rdzv_id or None,
        }
        return [name for name, value in values.items() if value is not None]


class BadOptions(Exception):
    """Options that contradict each other or the launcher; carries the line to print."""


def without_launcher(environment: Environment) -> dict[str, str]:
    """An environment without what launchers say of ranks and of ways to train."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _NAMES and not name.startswith(_PREFIXES)
    }


def find_world(environment: Environment, options: NodeOptions) -> World | None:
    """The world that this command belongs to; None where it trains alone, in processes of this machine.

    Raises BadOptions for options that contradict each other or the launcher, and RecipeError where a launcher
    started several commands that cannot find each other.
    """
    started = _started(environment)
    if started is None or started.size == 1:
        if options.nnodes is None and options.given():
            names = " and ".join(options.given())
            raise BadOptions(f"{names} without --nnodes: add --nnodes, or leave out {names}")
        return _optional(options, None if started is None else started.per_node)
    given = options.given()
    who = f"{started.launcher} started this command as task {started.rank} of {started.size}"
    if not started.is_per_node:
        if options.processes is not None:
            given.insert(0, "--processes")
        if given:
            raise BadOptions(f"{who}, which is one process each: leave out {' and '.join(given)}")
        return started
    if not given:
        return started
    wanted = _optional(options, started.per_node)
    if wanted is None or wanted.size != started.size or wanted.rank not in (None, started.rank):
        raise BadOptions(f"{who}: leave out {' and '.join(given)}")
    return wanted


def is_first(environment: Environment) -> bool:
    """Whether this command is the only one or the first of those that a launcher started."""
    try:
        started = _started(environment)
    except RecipeError:
        return True
    return started is None or started.rank in (0, None)


def _optional(options: NodeOptions, per_node: int | None) -> World | None:
    """The world that the options name."""
    if options.nnodes in (None, 1):
        return None
    if not (options.rdzv_endpoint and options.rdzv_id):
        raise BadOptions("--nnodes needs --rdzv-endpoint and --rdzv-id")
    backend = options.rdzv_backend or "c10d"
    if backend not in ("c10d", "static"):
        raise BadOptions(f"--rdzv-backend {backend} is not supported: use c10d or static")
    if backend == "static" and options.node_rank is None:
        raise BadOptions("--rdzv-backend static needs --node-rank")
    if options.node_rank is not None and options.node_rank not in range(options.nnodes):
        raise BadOptions(f"--node-rank {options.node_rank} is not between 0 and {options.nnodes - 1}")
    address, port = _split_endpoint(options.rdzv_endpoint)
    if not address or not port.isdecimal() or int(port) not in range(1, 65536):
        raise BadOptions(f"--rdzv-endpoint {options.rdzv_endpoint} is not HOST:PORT")
    return World(
        launcher=_BY_OPTIONS,
        rank=options.node_rank,
        size=options.nnodes,
        address=address,
        port=int(port),
        name=options.rdzv_id,
        per_node=per_node,
        is_per_node=True,
    )


def _started(environment: Environment) -> World | None:
    """The world that the environment describes. A launcher inside another one counts, not the outer one."""
    for find in (_of_torchrun, _of_ranks, _of_open_mpi, _of_pmi, _of_slurm, _of_pods):
        world = find(environment)
        if world is not None:
            return world
    return None


def _of_torchrun(environment: Environment) -> World | None:
    if "TORCHELASTIC_RUN_ID" not in environment or "LOCAL_RANK" not in environment:
        return None
    world = _of_ranks(environment, launcher="torchrun")
    if world is None:
        return None
    # A restart meets under a name of its own, past what the first try left in the store.
    name = f"{environment['TORCHELASTIC_RUN_ID']}.{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    is_hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return World(**{**vars(world), "name": name, "is_hosted": is_hosted})


def _of_ranks(environment: Environment, *, launcher: str = "a launcher") -> World | None:
    """RANK, LOCAL_RANK and WORLD_SIZE, which deepspeed and others set for each process."""
    rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    local_rank = _number(environment, "LOCAL_RANK")
    if rank is None or local_rank is None or size is None or size == 1:
        return None
    local_size = _number(environment, "LOCAL_WORLD_SIZE", "LOCAL_SIZE") or local_rank + 1
    return _meet(
        environment,
        launcher=f"{launcher} (RANK={rank}, WORLD_SIZE={size})" if launcher == "a launcher" else launcher,
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        default=None,
        advice="unset RANK, WORLD_SIZE and LOCAL_RANK to train alone",
    )


def _of_open_mpi(environment: Environment) -> World | None:
    rank, size = (_number(environment, f"OMPI_COMM_WORLD_{name}") for name in ("RANK", "SIZE"))
    if rank is None or size is None:
        return None
    local_rank = _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK") or 0
    local_size = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE") or local_rank + 1
    job = environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid") or ""
    return _meet(
        environment,
        launcher="mpirun",
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        default=("127.0.0.1", _port_of(job)) if local_size == size else None,
        advice="mpirun -x MASTER_ADDR=FIRST_HOST -x MASTER_PORT=29500 …",
        is_per_node=local_size == 1,
    )


def _of_pmi(environment: Environment) -> World | None:
    """MPICH, Intel MPI and others with Hydra; under srun, whose own numbers say more, nothing."""
    rank, size = _number(environment, "PMI_RANK"), _number(environment, "PMI_SIZE")
    if rank is None or size is None or _number(environment, "SLURM_STEP_NUM_TASKS") == size:
        return None
    local_rank = _number(environment, "MPI_LOCALRANKID", "PMI_LOCAL_RANK")
    local_size = _number(environment, "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE")
    return _meet(
        environment,
        launcher="mpiexec",
        rank=rank,
        size=size,
        local_rank=rank if local_rank is None else local_rank,
        local_size=size if local_size is None else local_size,
        # Hydra names its job differently in each version.
        default=("127.0.0.1", 29500) if local_size == size else None,
        advice="mpiexec -genv MASTER_ADDR FIRST_HOST -genv MASTER_PORT 29500 …",
        is_per_node=local_size == 1,
    )


def _of_slurm(environment: Environment) -> World | None:
    """The step of srun that this is a task of. Batch scripts and the shells of salloc are no world."""
    step, rank = _number(environment, "SLURM_STEP_ID"), _number(environment, "SLURM_PROCID")
    size = _number(environment, "SLURM_STEP_NUM_TASKS")
    if step is None or step >= _FIRST_SPECIAL_STEP or rank is None or size is None:
        return None
    per_node = list(expand_counts(environment.get("SLURM_STEP_TASKS_PER_NODE", "")))
    node, local_rank = (_number(environment, f"SLURM_{name}") or 0 for name in ("NODEID", "LOCALID"))
    hosts = expand_hosts(environment.get("SLURM_STEP_NODELIST", ""))
    job = _number(environment, "SLURM_JOB_ID", "SLURM_JOBID") or 0
    port = _PORTS[(job * 7 + step) % len(_PORTS)]
    return _meet(
        environment,
        launcher="srun",
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=per_node[node] if node < len(per_node) else local_rank + 1,
        default=(hosts[0], port) if hosts else None,
        advice="MASTER_ADDR=FIRST_HOST MASTER_PORT=29500 srun …",
        is_per_node=bool(per_node) and set(per_node) == {1},
        name=f"{job}.{step}.{environment.get('SLURM_RESTART_COUNT', '0')}",
    )


def _of_pods(environment: Environment) -> World | None:
    """Kubernetes' PyTorchJob and TrainJob, whose PET_… are torchrun's options; older ones set RANK alone."""
    elastic = environment.get("PET_NNODES", "")
    low, _, high = elastic.partition(":")
    if high and low != high:
        raise RecipeError.of(
            f"PET_NNODES={elastic}: the number of nodes may change while the run goes on",
            code="launcher-is-elastic",
            found="a run keeps the number of processes that it was started with",
            hint="leave out the job's elasticPolicy, or set its minReplicas and maxReplicas to one number",
        )
    size = int(low) if low.isdecimal() else _number(environment, "WORLD_SIZE")
    rank = _number(environment, "PET_NODE_RANK", "RANK")
    if size is None or (rank is None and not environment.get("PET_RDZV_ENDPOINT")):
        return None
    given = environment.get("PET_NPROC_PER_NODE", "")
    if size == 1:
        per_node = int(given) if given.isdecimal() else None
        return World("PyTorchJob", rank, 1, "", 0, "", per_node=per_node, is_per_node=True)
    return _meet(
        environment,
        launcher="PyTorchJob" if elastic else f"a launcher (RANK={rank}, WORLD_SIZE={size})",
        rank=rank,
        size=size,
        local_rank=0,
        local_size=1,
        default=None,
        advice="unset RANK and WORLD_SIZE to train alone",
        is_per_node=True,
        per_node=int(given) if given.isdecimal() else None,
    )


def _meet(
    environment: Environment,
    *,
    launcher: str,
    rank: int | None,
    size: int,
    local_rank: int,
    local_size: int,
    default: tuple[str, int] | None,
    advice: str,
    is_per_node: bool = False,
    per_node: int | None = None,
    name: str = "run",
) -> World:
    """A world whose place is in the environment, or else `default`. Raises RecipeError without either."""
    address = environment.get("MASTER_ADDR") or environment.get("PET_MASTER_ADDR")
    port = _number(environment, "MASTER_PORT", "PET_MASTER_PORT")
    endpoint = environment.get("PET_RDZV_ENDPOINT", "")
    if address is None and endpoint:
        address, behind = _split_endpoint(endpoint)
        port = int(behind) if behind.isdecimal() else None
    if address is None and default is not None:
        address, port = default[0], default[1] if port is None else port
    if size > 1 and address is None:
        raise RecipeError.of(
            f"{launcher} started {size} commands that do not know where to meet",
            code="launcher-without-address",
            found="no MASTER_ADDR in the environment",
            hint=f"{advice}; FIRST_HOST is the host of rank 0"
            if "FIRST_HOST" in advice
            else f"set MASTER_ADDR to the host of rank 0 and MASTER_PORT to a free port; {advice}",
        )
    port = 29500 if port is None else port
    is_sound = rank in (None, *range(size)) and local_rank < local_size and port in range(1, 65536)
    if size != 1 and not is_sound:
        raise RecipeError.of(
            f"{launcher}: its variables contradict each other",
            code="launcher-contradicts",
            found=f"rank {rank} of {size}, {local_rank} of {local_size} on this machine, port {port}",
            hint=f"correct them, or {advice}" if "unset" in advice else "start it again, or unset them",
        )
    return World(
        launcher=launcher,
        rank=rank,
        size=size,
        address=(address or "").strip("[]"),
        port=port,
        name=name,
        per_node=per_node,
        is_per_node=is_per_node,
        local_rank=local_rank,
        local_size=local_size,
    )


def _split_endpoint(text: str) -> tuple[str, str]:
    """HOST:PORT, [IPv6]:PORT or HOST as host and port."""
    host, colon, port = text.rpartition(":")
    return (host.strip("[]"), port) if colon else (text, "29500")


def expand_hosts(text: str) -> list[str]:
    """Slurm's `gpu[01-03,7],login` as names of hosts, as `scontrol show hostnames` prints them."""
    hosts: list[str] = []
    for word in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        names = [""]
        for plain, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", word):
            ends = [plain] if plain else list(_expand_ranges(ranges))
            names = [name + end for name in names for end in ends]
        hosts += names
    return hosts


def _expand_ranges(text: str) -> Iterator[str]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not last:
            yield first
        else:
            yield from (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))


def expand_counts(text: str) -> Iterator[int]:
    """Slurm's `8(x3),4` as one number per node."""
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        yield from [int(count)] * int(times or 1)


def _port_of(name: str) -> int:
    return _PORTS[zlib.crc32(name.encode()) % len(_PORTS)]


def _number(environment: Environment, *names: str) -> int | None:
    """The first of these variables that contains a whole number of 0 or more."""
    for name in names:
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    return None
