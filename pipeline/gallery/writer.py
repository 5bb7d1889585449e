"""The gallery: a static page to look at a dataset with; it draws the splats in the browser, at any depth.

    OUT/gallery.json              says that the folder is a gallery; written first
    OUT/content-0123456789ab/     scripts and styles, and in cats/ of every cat a thumbnail and its splats as a script
    OUT/index.html                names the content folder; written last, so a page that is there is whole

Splats travel as scripts that the page loads on demand: a page opened from a folder may not fetch files.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Iterator
from importlib import resources
from string import Template

import torch
from PIL import Image
from torch import Tensor

from models.errors import UserError, check_name, escaped
from models.kernels import KERNELS
from models.rasterize import rasterize, to_uint8
from models.splats import MEANINGS
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import CODE_VERSION, GenerationPlan
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.execution.threads import ordered
from pipeline.storage.store import Store, using

MARKER = "gallery.json"
INDEX = "index.html"
KIND = {"kind": "gallery", "format_version": 1}
STYLES = ("gallery.css", "viewer.css", "icon.svg")
# In the order in which the page loads them.
SCRIPTS = (
    "shader.js",
    "field.js",
    "loader.js",
    "camera.js",
    "address.js",
    "painter.js",
    "gestures.js",
    "outlines.js",
    "controls.js",
    "sheet.js",
    "keys.js",
    "viewer.js",
    "main.js",
)
_CONTENT = re.compile(r"content-[0-9a-f]{12}")
THUMBNAIL_QUALITY = 85


def write_gallery(
    source: SplatDataset, store: Store, indices: Indices, *, title: str | None = None, thumbnail: int = 256
) -> None:
    """Write the gallery of the chosen pictures of `source` to `store`, in place of a gallery that was there.

    `title`: the name of the dataset if not given. `thumbnail`: pixels of a thumbnail's width. The same splats give the
    same files. Repeatable: until the last file is written, the page that was there before stays whole. Raises UserError
    if splats are missing, or if `store` holds something other than a gallery.
    """
    plan = source.plan
    check_name("kernel", plan.kernel, KERNELS)
    source.require(indices)
    claim(store)
    store.remove_orphans()
    title = title or escaped(source.store.url.rpartition("/")[2])
    catalogue = _catalogue(plan, indices, title)
    page = Template(_asset(INDEX).decode())
    assets = {name: _asset(name) for name in (*STYLES, *SCRIPTS)}
    # Another content is another folder: pages that browsers keep never meet scripts or splats that are not theirs.
    decisive = [catalogue, thumbnail, page.template, *(asset.decode() for asset in assets.values())]
    folder = f"content-{hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:12]}"

    for name, asset in assets.items():
        store.write(f"{folder}/{name}", asset)

    def write_cat(cat: tuple[int, Tensor]) -> None:
        index, field = cat
        stem = f"{folder}/cats/{index:08d}"
        store.write(f"{stem}.webp", _thumbnail(field, plan, thumbnail))
        store.write(f"{stem}.js", splats_script(index, field))

    for _ in ordered(write_cat, _cats(source, indices)):
        pass
    values = {
        "title": html.escape(title),
        "version": html.escape(CODE_VERSION),
        "folder": folder,
        "catalogue": escaped_json({"folder": folder, **catalogue}),
        "scripts": "\n".join(f'<script src="{folder}/{name}"></script>' for name in SCRIPTS),
    }
    store.write(INDEX, page.substitute(values).encode())
    for name in store.entries():
        if _CONTENT.fullmatch(name) and name != folder:
            store.remove_folder(name)


def claim(store: Store) -> None:
    """Mark an empty or missing folder as a gallery, or find that it is one; UserError if it holds something else."""
    with using(store):
        try:
            found = json.loads(store.read(MARKER))
        except (FileNotFoundError, ValueError, RecursionError):
            found = None
    if found is None and (entries := store.entries()):
        raise UserError(f"{store.url} is not empty ({entries[0]!r} is in it) and no gallery: choose another --out")
    if found is not None and found != KIND:
        raise UserError(f"{store.url}/{MARKER} is not of a gallery that this version can replace: choose another --out")
    store.write(MARKER, (json.dumps(KIND) + "\n").encode())


def splats_script(index: int, field: Tensor) -> bytes:
    """A picture's splats [H, W, K, P] as a script that hands them to the page: float16 little-endian in base64."""
    data = base64.b64encode(field.numpy().astype("<f2").tobytes()).decode()
    return f'splatcats.deliver("{index}","{data}");\n'.encode()


def escaped_json(value: object) -> str:
    """JSON that may stand in a script element: nothing in it can end the element."""
    text = json.dumps(value)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _catalogue(plan: GenerationPlan, indices: Indices, title: str) -> dict[str, object]:
    """What the page knows before any splats are loaded. Indices are text: they may be beyond JavaScript's numbers."""
    return {
        "title": title,
        "cats": [str(index) for index in indices],
        "total": plan.count,
        "rows": plan.rows,
        "columns": plan.columns,
        "perPatch": plan.splats_per_patch,
        "kernel": plan.kernel,
        "neighbourhood": plan.neighbourhood,
        "meanings": MEANINGS,
        "plan": {name: str(value) for name, value in plan.to_dict().items()},
    }


def _cats(source: SplatDataset, indices: Indices) -> Iterator[tuple[int, Tensor]]:
    for numbers, fields in source.read(indices):
        yield from zip(numbers, fields, strict=True)


def _thumbnail(field: Tensor, plan: GenerationPlan, width: int) -> bytes:
    height = max(1, round(width * plan.rows / plan.columns))
    with torch.inference_mode():
        picture = rasterize(field[None], height, width, kernel=plan.kernel, neighbourhood=plan.neighbourhood)
    file = io.BytesIO()
    Image.fromarray(to_uint8(picture)[0].numpy()).save(file, "WEBP", quality=THUMBNAIL_QUALITY)
    return file.getvalue()


def _asset(name: str) -> bytes:
    return resources.files("pipeline.gallery").joinpath("page", name).read_bytes()
