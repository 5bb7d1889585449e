"""ROOT/plan.json: a plan written down before anything else and never changed, found again, or refused.

Running the same command again finds the same plan and continues; another plan in the same place is refused by name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import TypeVar

from models.errors import UserError
from pipeline.datasets.indices import LARGEST
from pipeline.datasets.plan import CODE_VERSION, FORMAT_VERSION, GenerationPlan, Plan, RenderPlan
from pipeline.storage.store import Store, occupied, using

PLAN_FILE = "plan.json"

AnyPlan = TypeVar("AnyPlan", bound=Plan)


def load(store: Store, plan_type: type[AnyPlan]) -> AnyPlan:
    """Read the plan at `store`, of any kind if `plan_type` is Plan.

    UserError if there is none, or one of another kind, form or future version.
    """
    try:
        text = store.read(PLAN_FILE)
    except (FileNotFoundError, NotADirectoryError):
        found = f"has no {PLAN_FILE}" if store.exists("") else "does not exist"
        wanted = "a dataset" if plan_type is Plan else f"a dataset of {plan_type.kind}"
        raise UserError(f"{store.url} {found}: not {wanted}") from None
    return parse(_parse_json(text, store.url), plan_type, store.url)


def check(store: Store, plan: Plan) -> bool:
    """Whether `plan` stands at `store` already; writes nothing.

    UserError that names each differing field if another plan is there, and one if there is none but other files are:
    they may be the user's, or shards of a plan that is lost.
    """
    with using(store):
        if not store.exists(PLAN_FILE):
            foreign = store.entries()
            # Looked for again: of another driver that begins just now the plan is the first thing there.
            if not store.exists(PLAN_FILE):
                if foreign:
                    raise occupied(store, foreign, f" but no {PLAN_FILE}")
                return False
        found = _parse_json(store.read(PLAN_FILE), store.url)
    if found.get("kind") != plan.kind:
        raise UserError(f"{store.url} holds a dataset of {found.get('kind')!r}: give {plan.kind} another --out")
    expected, found = ({**plan.later_fields(), **fields} for fields in (plan.to_dict(), found))
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if names:
        differences = "; ".join(f"{n} is {found.get(n)!r} there, {expected.get(n)!r} here" for n in names)
        raise UserError(f"{store.url} holds another plan ({differences}): use its options, or another --out")
    return True


def claim(store: Store, plan: Plan) -> None:
    """Write `plan` to `store`, or find it there; UserError as `check`, and where the place cannot be used.

    Of two drivers with different plans one is refused, also when both begin at once.
    """
    if not check(store, plan):
        # Where a second driver was faster, what it wrote is checked.
        with using(store), contextlib.suppress(FileExistsError):
            store.write(PLAN_FILE, plan.to_json().encode(), exclusive=True)
        if not check(store, plan):
            raise UserError(f"{store.url} is no folder that files can be written to: give another --out")


def parse(found: dict[str, object], plan_type: type[AnyPlan], where: str) -> AnyPlan:
    """Make a plan of `plan_type`, any if that is Plan, from the fields of a plan.json.

    UserError that names `where` and what is wrong.
    """
    version, kind = found.get("format_version"), found.get("kind")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{where}: {PLAN_FILE} has format version {version!r}, this is splatcats {CODE_VERSION}, which reads"
            f" version {FORMAT_VERSION}: use the version that wrote it"
        )
    kinds = {made.kind: made for made in (GenerationPlan, RenderPlan) if issubclass(made, plan_type)}
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{where} is a dataset of {kind!r}, not of {' or '.join(map(repr, kinds))}")
    made = kinds[kind]
    types = {f.name: {"int": int, "str": str}[str(f.type)] for f in dataclasses.fields(made)}
    values = made.later_fields() | {n: value for n, value in found.items() if n not in ("format_version", "kind")}
    wrong = [n for n, t in types.items() if type(values.get(n)) is not t] + [n for n in values if n not in types]
    for name in types.keys() - set(wrong):
        value, (low, high) = values[name], made.bounds.get(name, (0, LARGEST))
        # File names are made of these, and messages.
        if not (low <= value <= high if isinstance(value, int) else str(value).isprintable() and "/" not in str(value)):
            wrong.append(name)
    if wrong:
        raise UserError(f"{where}: {PLAN_FILE} is damaged: {', '.join(wrong)}")
    plan = made(**values)  # type: ignore[arg-type]
    try:
        plan.shard(0)  # reads the indices
    except UserError as error:
        raise UserError(f"{where}: {PLAN_FILE} is damaged: {error}") from None
    return plan  # type: ignore[return-value]


def _parse_json(text: bytes, where: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{where}: {PLAN_FILE} is not a JSON object")
    return found
