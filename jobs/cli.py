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

from models.errors import UserError, check_name, escaped, one_line

Options = TypeVar("Options")

# The clients of object stores raise exceptions of their own for what is the user's or the network's.
REMOTE = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google")


def run(
    options_type: type[Options],
    main: Callable[[Options], None],
    arguments: list[str] | None = None,
    *,
    continues: str = "",
) -> int:
    """Parse `arguments` (default: the command line) into `options_type`, call `main`, return the exit code.

    What the user can get wrong ends as one line on stderr and code 1; a bug of ours keeps its traceback. A signal ends
    the process at once, if its own command line was parsed; from where a `main` `continues` what it began is said.
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
        told = f"; the same command continues from {continues}" if continues else ""
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
    program = f"python -m {module.__spec__.name if module.__spec__ else module.__name__}"  # which renames the module
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options_type, prog=program, args=arguments, description=module.__doc__)
    except SystemExit as ended:
        if not ended.code:
            raise
        raise UserError(f"{plain(said.getvalue())}; {program} --help lists all options") from None


def plain(said: str) -> str:
    """What the parser answers, in a frame of many lines with the help of options in it, as one short line."""
    text = " ".join(re.sub(r"[\u2500-\u257f]+|-{3,}|\x1b\[[0-9;]*m", " ", said).split())
    text = re.split(r" (?:Got errors:|Argument helptext:|For full helptext,)", text)[0]
    text = re.sub(r"^(Value error|Unrecognized options|Missing argument|Required options) ", "", text)
    text = re.sub(r"no type matching \{None\}\|(\S+) could be instantiated from \[(.*?)\]\.", r"\2 is no \1", text)
    text, _, similar = text.partition(" Perhaps you meant: ")
    if similar:
        names = dict.fromkeys(re.findall(r"(?<!\S)--[a-z][\w.-]*", similar))
        text = f"{text}; perhaps you meant {' or '.join(list(names)[:3])}"
    if lacking := re.fullmatch(r"Missing from .*?: (.*?)( Unrecognized options: .*)?", text):
        lacked = [one.split()[0] for one in lacking[1].split("(required)") if one.strip()]
        text = f"give {', '.join(lacked)}" + (lacking[2] or "").replace(" U", "; u")
    return text.rstrip(".")


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


def torch_device(device: str) -> str:
    """The device of this machine, cuda or cpu, that an option `--device` names; UserError where it is not there."""
    import torch  # most commands leave it to their workers

    check_name("device", device, ("auto", "cpu", "gpu", "cuda"))
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(f"--device {device}: PyTorch sees no GPU here; use --device cpu")
    return "cuda"


def counted(number: int, what: str) -> str:
    """`1 cat`, `2,000 cats`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def describe(error: Exception) -> str:
    """One line that names what failed, for a UserError or an operating system's error."""
    if isinstance(error, OSError) and error.strerror:
        return escaped(f"{error.strerror}: {error.filename!s}" if error.filename else error.strerror)
    return escaped(one_line(error))
