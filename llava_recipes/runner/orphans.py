"""A training process does not outlive the one that started it: an orphan would hold its GPU unseen."""

from __future__ import annotations

import os
import signal
import threading
import time

_EVERY_S = 2.0


def stop_with_parent() -> None:
    """Watch the parent process; when it is gone, ask this one to save and stop."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_EVERY_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
