"""Pass a request to stop on to the training processes of other nodes, where no launcher reaches them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

_REASON, _NUM_LEAVING = "llava_recipes/stop", "llava_recipes/leaving"
_EVERY_S = 0.5
_CONNECT_S = 600.0
_TOGETHER_S = 5.0


class OtherNodes:
    """Shares the reason to stop in the store through which torch's processes find each other."""

    def __init__(self, *, reason: Callable[[], str | None], ask: Callable[[str], None]) -> None:
        self._reason, self._ask = reason, ask
        self._store: Any = None
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="other-nodes", daemon=True).start()

    def _watch(self) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            self._store = TCPStore(
                host, port, is_master=False, timeout=timedelta(seconds=_CONNECT_S), wait_for_workers=False
            )
            while self._exchange() is None:
                time.sleep(_EVERY_S)
        # The store's process has ended: nobody is left to hear of it.
        except (RuntimeError, OSError):
            return

    def _exchange(self) -> str | None:
        with self._lock:
            reason = self._reason()
            if reason is not None:
                self._store.set(_REASON, reason)
            elif self._store.check([_REASON]):
                reason = self._store.get(_REASON).decode()
                self._ask(reason)
            return reason

    def asked_within(self, seconds: float) -> bool:
        """Whether a request comes within a time: one that is on its way explains why others are gone."""
        deadline = time.monotonic() + seconds
        while self._reason() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._reason() is not None

    def leave_together(self) -> None:
        """Wait until every process knows of the request and leaves too, or for a moment."""
        if self._store is None:
            return
        world_size = int(os.environ["WORLD_SIZE"])
        deadline = time.monotonic() + _TOGETHER_S
        try:
            self._exchange()
            with self._lock:
                num_leaving = self._store.add(_NUM_LEAVING, 1)
            while num_leaving < world_size and time.monotonic() < deadline:
                time.sleep(0.1)
                with self._lock:
                    num_leaving = self._store.add(_NUM_LEAVING, 0)
        except (RuntimeError, OSError):
            return
