"""What every command shares: options from a frozen dataclass, one-line errors, exit codes."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

import tyro

from models.errors import UserError, escaped, one_line

Options = TypeVar("Options")

# The clients of object stores raise exceptions of their own for what is the user's or the network's.
REMOTE = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google")


def run(
    options_type: type[Options],
    main: Callable[[Options], None],
    arguments: list[str] | None = None,
    *,
    continues: bool = False,
) -> int:
    """Parse `arguments` (default: the command line) into `options_type`, call `main`, return the exit code.

    What the user can get wrong ends as one line on stderr and code 1; a bug of ours keeps its traceback. A signal ends
    the process at once, if its own command line was parsed; of a `main` that `continues` what it began, this is said.
    `SPLATCATS_TRACEBACK=1` shows the traceback of user errors too.
    """
    stopped = threading.Event()
    try:
        with terminable(stopped):
            main(parse(options_type, arguments))
    except (UserError, OSError) as error:
        if os.environ.get("SPLATCATS_TRACEBACK"):
            raise
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in REMOTE or os.environ.get("SPLATCATS_TRACEBACK"):
            raise
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        name, code = ("SIGTERM", 143) if stopped.is_set() else ("Ctrl-C", 130)
        told = "; the same command continues from here" if continues else ""
        print(f"stopped by {name}{told}", file=sys.stderr)
        if arguments is None:  # of this process: all is put away, and Python's own end takes seconds on a busy machine
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code
    return 0


@contextlib.contextmanager
def terminable(stopped: threading.Event) -> Iterator[None]:
    """Within the block SIGTERM sets `stopped` and raises a KeyboardInterrupt, which Ray's waiting lets through."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(options_type: type[Options], arguments: list[str] | None) -> Options:
    """Make the options from a command line. UserError for one that cannot be read; `--help` prints and exits."""
    module = sys.modules[options_type.__module__]
    name = module.__spec__.name if module.__spec__ else module.__name__  # `python -m` renames the module
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options_type, prog=f"python -m {name}", args=arguments, description=module.__doc__)
    except SystemExit as ended:
        if not ended.code:
            raise
        # The parser answers in a frame of several lines; its words in one line are what the caller prints.
        words = re.sub(r"[\u2500-\u257f]+|\x1b\[[0-9;]*m", " ", said.getvalue()).split()
        raise UserError(" ".join(words)) from None


def check_numbers(
    options: object, *names: str, least: float | None = None, most: float | None = None, above: float = 0
) -> None:
    """UserError unless each option of these names, if given, is from `least` to `most`, or finite and above `above`."""
    for name in names:
        value = getattr(options, name)
        if value is None:
            continue
        if least is None:
            fits, wanted = above < value < math.inf, f"a finite number above {above}"
        elif most is None:
            fits, wanted = value >= least, f"a number of at least {least}"
        else:
            fits, wanted = least <= value <= most, f"a number from {least:,} to {most:,}"
        if not fits:
            raise UserError(f"--{name.replace('_', '-')} {value}: give {wanted}")


def counted(number: int, what: str) -> str:
    """`1 cat`, `2,000 cats`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def describe(error: Exception) -> str:
    """One line that names what failed, for a UserError or an operating system's error."""
    if isinstance(error, OSError) and error.strerror:
        return escaped(f"{error.strerror}: {error.filename!s}" if error.filename else error.strerror)
    return escaped(one_line(error))
