"""Tried at random, and the same every time: what a command does with it must be in order."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from jobs import cli

EACH = 323  # of 31 kinds: 10,000 and some
SECONDS = 10.0


@contextlib.contextmanager
def only_in(ground: Path) -> Iterator[Path]:
    """Within the block temporary files too lie in this folder."""
    (ground / "tmp").mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(ground / "tmp")
    yield ground
    tempfile.tempdir = before


@dataclass(frozen=True)
class Nothing:
    """No options."""


class File(bytes):
    """Contents that a failing test does not spell out."""

    def __repr__(self) -> str:
        return f"<{len(self):,} bytes>"


def outcome(options: type, main: Callable, arguments: list[str], watched: Path) -> str:
    """Run a command, which must end in time with 0, or otherwise and one line; nothing new may be in `watched`."""
    before = tree(watched)
    # As a terminal or a log takes it: what UTF-8 cannot say would be a traceback.
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors=errors) for errors in ("strict", "backslashreplace"))
    started = time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(options, main, arguments)
        out.flush()
        err.flush()
    taken = time.monotonic() - started
    said = err.buffer.getvalue().decode()
    assert taken < SECONDS
    assert code in (0, 1)
    assert (code == 0) == (not said), said
    assert not said or (said.startswith("error: ") and said[:-1].isprintable()), said
    assert said[-1:] == ("\n" if code else "")
    assert tree(watched) == before
    return said


def tree(folder: Path) -> set[str]:
    return {os.path.join(root, name) for root, _, names in os.walk(folder) for name in names}


def try_inputs(inputs: st.SearchStrategy, number: int, one: Callable[[Any], object]) -> None:
    """The same `number` inputs every time; FUZZ_SEED chooses others."""

    @seed(int(os.environ.get("FUZZ_SEED", "0")))
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def each(value: Any) -> None:
        one(value)

    each()
