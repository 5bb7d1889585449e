"""From photographs wherever they lie to the prepared set that training reads (see `prepared` for its format)."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import PIL

from models.errors import UserError, escaped
from pipeline.execution.progress import Ticker
from pipeline.execution.threads import ordered
from pipeline.photographs import photo, prepared, sources
from pipeline.storage.store import Store, occupied, using

SHOWN = 10


@dataclass(frozen=True)
class Outcome:
    """One photograph on its way into the set: its row, or the reason why there is none."""

    source: str
    row: dict[str, Any] | None = None
    reason: str = ""


def prepare(urls: list[str], out: str, *, box: photo.Box | None = None, cap: int = 256) -> dict[str, Any]:
    """Make the prepared set `out` from the photographs at `urls`; print and return what its prepared.json records.

    The first of several equal photographs is kept. The bytes written are a function of the photographs, the
    arguments and the version of Pillow. Idempotent: a finished set of the same photographs and options is left
    alone, an unfinished one is made anew. Raises UserError where a place holds no photographs or fails to answer,
    where none can be used, and where `out` holds a set made otherwise.
    """
    fs, root = sources.locate(out)
    for url in urls:
        source_fs, path = sources.locate(url)
        if fs == source_fs and f"{root}/".startswith(f"{path}/"):
            raise UserError(f"--out {out} lies within --photos {url}; choose a place outside")
    places = [sources.survey(url) for url in urls]
    options = {
        "photos": list(urls),
        "box": list(box) if box else None,
        "cap": cap,
        "listing": [place.digest() for place in places],
    }
    record = prepared.finished(fs, root, out, options)
    store = Store(out)
    if record:
        print(f"{out} was complete already")
    else:
        with using(store):
            if foreign := [name for name in store.entries() if not prepared.is_ours(name)]:
                raise occupied(store, foreign, ", which is no prepared set")
        record = _make(store, places, options)
    _report(record, out, store.read(prepared.UNREADABLE).decode().splitlines())
    return record


def prepare_one(record: sources.Record, box: photo.Box | None, cap: int) -> Outcome:
    """Read and decode one photograph; whatever is wrong with it becomes the reason.

    Raises UserError where its store fails to answer: left out for that, it would be missing from the set unnoticed.
    """
    try:
        crop = photo.decode(record.read(), box)
        kept = photo.reduce_to_cap(crop, cap)
        small = photo.reduce_area(kept, photo.SIDE_MIN)
        key = photo.identity(crop)
        image64 = photo.encode_png(small)
        image = image64 if kept.width == photo.SIDE_MIN else photo.encode_png(kept)
    except UserError:
        raise
    except Exception as error:  # decoders meet damaged bytes with every kind of exception
        return Outcome(record.name, reason=photo.reason(error))
    row = {
        "id": key,
        "source": escaped(record.name),
        "heldout": photo.is_heldout(key),
        "side": kept.width,
        "image64": {"bytes": image64, "path": None},
        "image": {"bytes": image, "path": None},
    }
    return Outcome(record.name, row)


def _make(store: Store, places: list[sources.Place], options: dict[str, Any]) -> dict[str, Any]:
    # Empty now and full at the end: a place that cannot be written shows before the work, not after it. The record
    # of an earlier set goes first, since its files are about to be replaced one by one.
    store.write(prepared.UNREADABLE, b"")
    store.remove(prepared.RECORD)
    store.remove_orphans()

    writer = prepared.Writer(store)
    ticker = Ticker("photographs", sum(place.num_records for place in places))
    seen: set[bytes] = set()
    unreadable: list[str] = []
    sides: Counter[int] = Counter()
    num_read = num_heldout = num_duplicates = 0
    one = partial(prepare_one, box=options["box"] and tuple(options["box"]), cap=options["cap"])
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, which is harmless, and of huge pictures, which `decode` refuses.
        warnings.simplefilter("ignore")
        for outcome in ordered(one, chain.from_iterable(map(sources.records, places))):
            num_read += 1
            if outcome.row is None:
                unreadable.append(f"{escaped(outcome.source)}: {escaped(outcome.reason)}")
            elif (key := bytes.fromhex(outcome.row["id"])) in seen:
                num_duplicates += 1
            else:
                seen.add(key)
                sides[outcome.row["side"]] += 1
                num_heldout += outcome.row["heldout"]
                writer.add(outcome.row)
            ticker.step(num_read, f", {len(unreadable):,} unreadable")
    writer.close()
    store.write(prepared.UNREADABLE, "".join(f"{line}\n" for line in unreadable).encode())
    if not seen:
        _report_unreadable(store.url, unreadable)
        raise UserError(f"none of the {num_read:,} photographs can be used; the first: {unreadable[0]}")
    ignored = sum((place.ignored for place in places), Counter[str]())
    record = {
        "format": prepared.FORMAT,
        "fingerprint": prepared.fingerprint(seen),
        "read": num_read,
        "kept": len(seen),
        "heldout": num_heldout,
        "duplicates": num_duplicates,
        "unreadable": len(unreadable),
        "ignored": {suffix: ignored[suffix] for suffix in sorted(ignored)},
        "sides": {str(side): sides[side] for side in sorted(sides)},
        "options": options,
        "pillow": PIL.__version__,
        "files": writer.files,
    }
    store.write(prepared.RECORD, f"{json.dumps(record, indent=1)}\n".encode())
    return record


def _report(record: dict[str, Any], out: str, unreadable: list[str]) -> None:
    size = sum(file["bytes"] for file in record["files"]) / 1e6
    print(
        f"kept {record['kept']:,} of {record['read']:,} photographs ({record['heldout']:,} held out) in {out}: "
        f"{size:,.0f} MB in {len(record['files'])} files; {record['duplicates']:,} exact duplicates dropped"
    )
    if record["ignored"]:
        common = Counter(record["ignored"]).most_common(SHOWN)
        kinds = ", ".join(f"{count:,} {escaped(suffix) or 'without suffix'}" for suffix, count in common)
        print(f"ignored {sum(record['ignored'].values()):,} other files: {kinds}")
    if unreadable:
        _report_unreadable(out, unreadable)
    print(f"next: python -m jobs.train --photos {out} --out RUN")


def _report_unreadable(out: str, unreadable: list[str]) -> None:
    print(f"{len(unreadable):,} could not be used (all in {out}/{prepared.UNREADABLE}):")
    for line in unreadable[:SHOWN]:
        print(f"  {line}")
