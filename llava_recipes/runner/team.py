"""The commands of one run on several nodes, or one per process: the first decides, the others follow.

They talk through a store that the first one, or the launcher, keeps at a place that all know. Nothing goes
through a disk: nodes may have disks of their own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.runner.interruption import Interruption
from llava_recipes.runner.world import World
from llava_recipes.stop_signals import OF_OTHERS

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

Message = dict[str, Any]

JOIN_S = 600.0
"""How long the commands wait for one another by default, as torchrun does."""

_POLL_S, _BEAT_S, _LOST_S = 0.1, 2.0, 30.0
_TO_LEAVE_S = 15.0
_LAST_WORDS_S = 3.0
"""What a process has to report why it failed, once another one has failed."""
_STOP, _STOP_NOW = "stop", "stop-now"
_ALONE = {"srun": "; in the shell of `srun --pty`, unset SLURM_STEP_ID to train alone"}
_STORE_S = timedelta(seconds=60)


class TeamLost(Exception):
    """Another command of the run failed or does not answer any more; carries the line to print."""


@dataclass(frozen=True)
class Outcome:
    """How the training processes of one command ended."""

    code: int
    host: str
    problems: tuple[Problem, ...] = ()
    bug: str | None = None
    killed: str | None = None
    """Which training process a signal killed, before all others ended."""
    has_stopped: bool = False
    """Whether they stopped early because they were asked to."""
    was_interrupted: bool = False
    """They were ended because others had failed: what they report is no cause."""

    def to_json(self) -> Message:
        return asdict(self) | {"problems": [problem.to_json() for problem in self.problems]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Outcome:
        problems = tuple(Problem.from_json(each) for each in values["problems"])
        return cls(**{**values, "problems": problems})


@dataclass
class Team:
    """This command among those of the run. `index` 0 is the first, which decides."""

    store: Store
    world: World
    index: int
    interruption: Interruption
    beats: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    """Commands that give no sign of life any more."""
    trouble: str | None = None
    was_interrupted: bool = False
    _still_s: float = math.inf
    _still_elsewhere_s: float = math.inf
    _num_orders: int = 0
    _is_training: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def others(self) -> range:
        return range(1, self.world.size)

    # ---- the first ---------------------------------------------------------------------------------------

    def order(self, what: str, **rest: object) -> None:
        """Say to all others what to do next."""
        self._num_orders += 1
        self._set(f"order/{self._num_orders}", {"what": what, **rest})

    def answers(self) -> list[Message]:
        """What each other command answered to the last order. Raises TeamLost when one cannot any more."""
        return [self._wait(f"answer/{self._num_orders}/{index}") for index in self.others]

    def fail(self) -> None:
        """Make all others end their training processes, which wait for those that failed."""
        self._set(f"failed/{self._num_orders}", {})

    def end(self, code: int) -> None:
        """Let every command of the run end with this exit code, and wait until they know."""
        if self._ended.is_set():
            return
        with contextlib.suppress(Exception):
            self.order("end", code=code)
            until = time.monotonic() + _TO_LEAVE_S
            # Nobody waits for those that are gone.
            while self.store.add("left", 0) < len(self.others) - len(self.lost) and time.monotonic() < until:
                time.sleep(_POLL_S)
        self._ended.set()

    # ---- the others --------------------------------------------------------------------------------------

    def next_order(self) -> Message:
        """What the first command says to do next. Raises TeamLost when it does not answer any more."""
        self._num_orders += 1
        return self._wait(f"order/{self._num_orders}")

    def answer(self, values: Message) -> None:
        self._set(f"answer/{self._num_orders}/{self.index}", values)

    def leave(self) -> None:
        """The last word of a command that is not the first."""
        self._ended.set()
        with contextlib.suppress(Exception):
            # A second signal may have come just now.
            self._share_request()
            self.store.add("left", 1)

    # ---- both --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Interrupt this command's training processes when those of another one fail."""
        self.was_interrupted, self._is_training = False, True
        self.interruption.is_pointless = False
        try:
            yield
        finally:
            # Nobody waits for processes that have ended.
            self._is_training, self._still_s = False, math.inf

    def note_still(self, still_s: float) -> float:
        """Note for how long all processes of this command have been still; gives the same of the others."""
        self._still_s = still_s
        return self._still_elsewhere_s

    def watch(self) -> None:
        """Say regularly that this command lives, and see whether the others do."""
        threading.Thread(target=self._watch, name="team-watch", daemon=True).start()

    def _watch(self) -> None:
        num_beats = 0
        while not self._ended.wait(_POLL_S if self._is_training else _BEAT_S / 2):
            try:
                num_beats += 1
                self._beat(num_beats)
                self._share_request()
                self._look()
                failed = self._is_training and self._has_failed()
            except Exception as error:
                if not self._ended.is_set():
                    self.trouble = (
                        self.trouble or f"the first process of the run is gone ({_first_line(error)})"
                    )
                failed = self._is_training
            if failed and not self.was_interrupted:
                self._interrupt()

    def _beat(self, number: int) -> None:
        # The others hear of each other from the first one.
        still_s = min(self._still_s, self._still_elsewhere_s) if self.is_first else self._still_s
        self.store.set(f"beat/{self.index}", f"{number} {still_s:.0f}")

    def _look(self) -> None:
        still_s = math.inf
        for index in self.others if self.is_first else (0,):
            key, now_s = f"beat/{index}", time.monotonic()
            beat = self.store.get(key) if self.store.check([key]) else b""
            before, since_s = self.beats.get(index, (None, now_s))
            still_s = min(still_s, float(beat.split()[-1])) if beat else still_s
            if beat != before:
                self.beats[index] = beat, now_s
            elif now_s - since_s > _LOST_S and not self.store.check([f"answer/{self._num_orders}/{index}"]):
                self.lost.add(index)
                self.trouble = f"{self.name_of(index)} has not answered for {_LOST_S:.0f} s"
        self._still_elsewhere_s = still_s

    def _has_failed(self) -> bool:
        if self.trouble is not None:
            return True
        if not self.is_first:
            return bool(self.store.check([f"failed/{self._num_orders}"]))
        for index in self.others:
            key = f"answer/{self._num_orders}/{index}"
            if self.store.check([key]) and json.loads(self.store.get(key)).get("code"):
                self.fail()
                return True
        return False

    def _interrupt(self) -> None:
        """End this command's training processes, which wait for those that failed."""
        until = time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < until:
            if not self._is_training or self._ended.wait(_POLL_S):
                return
        self.was_interrupted = self.interruption.is_pointless = True

    def _share_request(self) -> None:
        """Pass a request to stop on to the other commands, and hear of theirs."""
        if self.interruption.reason not in (None, OF_OTHERS):
            self.store.set(_STOP, self.interruption.reason)
        elif self.store.check([_STOP]):
            self.interruption.ask(self.store.get(_STOP).decode())
        if self.interruption.is_repeated:
            self.store.set(_STOP_NOW, "")
        elif self.store.check([_STOP_NOW]):
            self.interruption.is_repeated = True

    def name_of(self, index: int) -> str:
        """A command of the run as messages name it."""
        key = f"here/{index}"
        host = json.loads(self.store.get(key))["host"] if self.store.check([key]) else "unknown host"
        kind = "node" if self.world.is_per_node else "rank"
        return f"{kind} {index} ({host})"

    def _set(self, key: str, values: Message) -> None:
        with self._reached():
            self.store.set(key, json.dumps(values))

    def _wait(self, key: str, *, until_s: float | None = None) -> Message:
        with self._reached():
            while not self.store.check([key]):
                if self.interruption.is_repeated:
                    raise KeyboardInterrupt
                if self.trouble is not None:
                    raise TeamLost(self.trouble)
                if until_s is not None and time.monotonic() > until_s:
                    raise TimeoutError
                time.sleep(_POLL_S)
            values: Message = json.loads(self.store.get(key))
        return values

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn errors of the store into TeamLost: it ends with the first command, or with its launcher."""
        from torch.distributed import DistError

        try:
            yield
        except DistError as error:
            raise TeamLost(f"the first process of the run is gone ({_first_line(error)})") from None


def join(
    world: World, facts: Message, interruption: Interruption, *, timeout_s: float
) -> tuple[Team, list[Message]]:
    """Meet the other commands; on the first one also what each of them says of itself, in order.

    Raises RecipeError when one does not come in time.
    """
    until_s = time.monotonic() + timeout_s
    store, index = _open(world, until_s=until_s, timeout_s=timeout_s)
    team = Team(store, world, index, interruption)
    token = f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"
    if store.compare_set(f"seat/{index}", "", token).decode() != token:
        raise _taken(world, f"{team.name_of(index)} is here already")
    team._set(f"here/{index}", facts | {"host": socket.gethostname()})
    if not team.is_first:
        team.watch()
        return team, []
    here: list[Message] = []
    try:
        here = [team._wait(f"here/{each}", until_s=until_s) for each in range(world.size)]
    except TimeoutError:
        came = [each for each in range(world.size) if store.check([f"here/{each}"])]
        missing = sorted(set(range(world.size)) - set(came))
        kind = "nodes" if world.is_per_node else "processes"
        raise RecipeError.of(
            f"{len(came)} of {world.size} {kind} came within {timeout_s:g} s",
            code="nodes-missing",
            found=f"here: {', '.join(map(team.name_of, came))}; missing: {', '.join(map(str, missing))}",
            hint=f"start the command on every node, and see that {world.address}:{world.port} can be reached "
            f"from there; --rdzv-timeout sets how long to wait{_ALONE.get(world.launcher, '')}",
        ) from None
    team.watch()
    return team, here


def _open(world: World, *, until_s: float, timeout_s: float) -> tuple[Store, int]:
    """The store where the commands meet, and this one's number."""
    quiet_torch()
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    rank, server = world.rank, None
    if not world.is_hosted and (rank == 0 or (rank is None and _is_here(world.address))):
        try:
            server = TCPStore(
                "localhost", world.port, is_master=True, wait_for_workers=False, timeout=_STORE_S
            )
        except RuntimeError as error:
            if rank == 0:
                raise _taken(world, _first_line(error)) from None
    if server is None:
        _wait_for_port(world, until_s=until_s, timeout_s=timeout_s)
        server = TCPStore(
            world.address, world.port, is_master=False, wait_for_workers=False, timeout=_STORE_S
        )
    elif rank is None:
        rank = 0
    store = PrefixStore(f"llava-recipes/{world.name}", server)
    return store, int(store.add("numbers", 1)) if rank is None else rank


def quiet_torch() -> None:
    """Import torch so that its C++ part prints errors only: that a store is gone is said in our words."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch  # noqa: F401  # reads the variable now


def _wait_for_port(world: World, *, until_s: float, timeout_s: float) -> None:
    """Wait until somebody listens at the place to meet; signals still reach this process meanwhile."""
    while True:
        try:
            socket.create_connection((world.address, world.port), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > until_s:
                raise RecipeError.of(
                    f"the first process of the run did not answer within {timeout_s:g} s",
                    code="nodes-missing",
                    found=f"{world.address}:{world.port}: {error.strerror or error}",
                    hint="start the command on the first node too, and see that this address can be reached "
                    "from here; --rdzv-timeout sets how long to wait",
                ) from None
        time.sleep(0.3)


def _is_here(address: str) -> bool:
    """Whether an address is this machine's: whether something can be bound to it."""
    try:
        found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, place in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
            return True
    return False


def _taken(world: World, found: str) -> RecipeError:
    return RecipeError.of(
        "another run, or another program, uses the place where this run meets",
        code="rendezvous-taken",
        found=f"{world.address}:{world.port}: {found}",
        hint="choose another port, by --rdzv-endpoint or MASTER_PORT, or wait until the other run has ended",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_gate() -> tuple[Store, int]:
    """A fresh store for one set of training processes, and its port: a used one has addresses of the dead."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=_STORE_S)
    return store, store.port
