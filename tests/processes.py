"""Processes of commands and of their Ray: which there are, how they end."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def ray_workers(title: str) -> set[int]:
    """Processes of the Ray nodes that this process started: children of its raylets, whose title has these words."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_text()
    raylets = {pid for pid, parent in parents.items() if parent == os.getpid()}
    return {pid for pid, words in titles.items() if parents[pid] in raylets and title in words}


def wait_for_session_end(session: int) -> None:
    """Ray ends its processes when the driver that started them is gone; none may stay behind."""
    deadline = time.monotonic() + 60
    while left := [
        entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit() and session_of(entry) == session
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def session_of(process: Path) -> int:
    """The session of a process, by its folder in /proc; 0 if it has ended."""
    try:
        state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return 0
    return 0 if state == "Z" else int(session)


def signal_all(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def has_stopped(pid: int) -> bool:
    """Wait until all threads of a process have taken a SIGSTOP; false if it has ended instead."""
    states = {"R"}
    while not states <= {"T"} and not states & {"X", "Z"}:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # threads come and go
            stats = [stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
            states = {stat.rpartition(")")[2].split()[0] for stat in stats}
    return states == {"T"}


def stop(process: subprocess.Popen[str], number: int) -> tuple[str, str]:
    """Send a signal; what the process, which must end in three seconds, has said."""
    sent = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=30)
    assert time.monotonic() - sent < 3 * max(1, os.getloadavg()[0] / (os.cpu_count() or 1)), said
    return said


def session(number: int) -> list[str]:
    """The command lines of the processes of a session."""
    names = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and session_of(entry) == number:
            with contextlib.suppress(OSError):
                names.append((entry / "cmdline").read_text())
    return names


def members(session: int) -> set[int]:
    """The processes of a session; Ray puts each of its own into a group of its own."""
    return {
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and session_of(entry) == session
    }


def is_caught(session: int, state: Callable[[], bool]) -> bool:
    """Stop every process of a session; let them go on if `state` does not hold then."""
    pids = members(session)
    signal_all(pids, signal.SIGSTOP)
    for pid in pids:
        has_stopped(pid)
    if state():
        return True
    signal_all(pids, signal.SIGCONT)
    return False


def kill_session(session: int) -> None:
    """SIGKILL every process of a session at once."""
    signal_all(members(session), signal.SIGKILL)
