"""The one exception for what a user can get wrong; everything else that fails is a bug of ours."""

from __future__ import annotations

from collections.abc import Collection


class UserError(Exception):
    """A mistake in what the user gave; its text is one line that names the thing and the remedy.

    Not a ValueError, which the option parser would catch and set in a frame.
    """


def one_line(said: object) -> str:
    """What an exception, or a text, says, in one line; the name of its type if it says nothing."""
    return " ".join(str(said).split()) or type(said).__name__


def escaped(text: str) -> str:
    """`text` with line breaks, and what a terminal takes for commands, as Python writes them in strings."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def check_name(kind: str, name: str, known: Collection[str]) -> str:
    """Return `name` if it is one of `known`; else raise a UserError that lists the known names."""
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")
    return name
