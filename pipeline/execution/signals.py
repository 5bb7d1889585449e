"""Signals while Ray starts: it answers them in its own way, and nobody ends one that has started in part."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

# How long a SIGTERM may wait for a Ray that is starting, which takes 4 s and, on a busy machine, much longer.
PATIENCE_SECONDS = 1.5


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Within the block Ray starts and answers SIGTERM in its own way; keep this process's way, if it has one.

    A SIGTERM that comes meanwhile is answered at the end of the block: what Ray's handler raises may be lost in a fork.
    If that does not come soon, this process is ended, and with it those of the Ray that it has started.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    terminated, started = threading.Event(), threading.Event()

    def watch() -> None:
        while numbers := reader.recv(1024):
            if signal.SIGTERM in numbers:
                terminated.set()
                if not started.wait(PATIENCE_SECONDS):
                    _end_descendants()
                    print("stopped by SIGTERM while Ray was starting", file=sys.stderr, flush=True)
                    os._exit(128 + signal.SIGTERM)

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # a signal: of a Ray that has started in part nobody else ends the parts
        _end_descendants()
        raise
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGTERM, handler)
        started.set()
        writer.close()
        watcher.join()
        reader.close()
        if terminated.is_set():
            handler(signal.SIGTERM, None)


def _end_descendants() -> None:
    """Kill the processes that this one has started, and those that these have; on Linux."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    for pid in family - {os.getpid()}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
