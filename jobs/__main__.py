"""The commands; each has --help."""

import pkgutil
import sys
from importlib import resources

import jobs


def main() -> None:
    """List the commands, each with the first line of what it says of itself."""
    if unknown := [argument for argument in sys.argv[1:] if argument not in ("-h", "--help")]:
        print(
            f"error: python -m jobs takes no {unknown[0]!r}: it lists the commands, python -m jobs.NAME",
            file=sys.stderr,
        )
    for module in pkgutil.iter_modules(jobs.__path__):
        text = resources.files(jobs).joinpath(f"{module.name}.py").read_text()
        if "__main__" in text and not module.name.startswith("_"):
            print(f"python -m jobs.{module.name:<10} {text[3:].splitlines()[0]}")
    sys.exit(1 if unknown else 0)


if __name__ == "__main__":
    main()
