"""Every kind of file that is read: a good one, what reads it, and what may be in its place."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuzzing import Nothing, outcome
from hostile import altered, altered_json, altered_safetensors, altered_table
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from jobs import cli, render
from models import checkpoint
from models.perceptual import load_lpips
from models.splats import random_field
from pipeline.datasets import plan_file, rollout_file
from pipeline.datasets.plan import GenerationPlan, Plan
from pipeline.datasets.rollout_file import Rollout
from pipeline.datasets.splat_dataset import SplatDataset, to_table, write_table
from pipeline.evaluation.pictures import load_pictures
from pipeline.execution.production import commit
from pipeline.inspection.contents import check_pictures, check_splats
from pipeline.inspection.status import survey
from pipeline.inspection.verification import verify_shard
from pipeline.photographs import preparation, sources
from pipeline.reader import open_dataset
from pipeline.rendering.renderer import render_shard
from pipeline.storage.store import Store

FILES = (
    *("plan of splats", "record of splats", "plan of pictures", "record of pictures", "float16 shard", "compact shard"),
    *(
        "rollouts",
        "pictures in parquet",
        "pictures in webdataset",
        "pictures in files",
        "weights",
        "perceptual weights",
    ),
    *("photograph in jpeg", "photograph in png", "photograph in webp", "photograph in gif", "photograph in tiff"),
    *("photograph in avif", "photograph in bmp", "zip", "photographs in parquet"),
)
PHOTOS = Path(__file__).parent / "photos"
COUNT = 6


class Target:
    """What reads a kind of file, where a good one lies, and what may be in its place."""

    def __init__(
        self,
        path: Path,
        read: Callable[[], object],
        kind: Callable[[Sequence[bytes]], st.SearchStrategy[bytes]] | None = None,
        others: Sequence[bytes] = (),
    ) -> None:
        """`kind`: changes that keep the form of the file; `others`: further good examples."""
        self.path, self.read, self.good = path, read, path.read_bytes()
        examples = [self.good, *others]
        self.inputs = altered(examples) | kind(examples) if kind else altered(examples)

    def refusal(self, data: bytes, watched: Path) -> str:
        """What is said of other contents in the place of the good ones; see `outcome`."""
        self.path.write_bytes(data)
        said = outcome(Nothing, lambda _: self.read(), [], watched)
        self.path.write_bytes(self.good)
        return said


def make_dataset(root: Path, precision: str) -> Path:
    config = {"rows": 2, "columns": 2, "splats_per_patch": 4, "kernel": "wavelet", "neighbourhood": 3}
    numbers = {"count": COUNT, "shard_size": COUNT, "seed": 1, "steps": 2, "batch_size": 4, "threads": 1}
    plan = GenerationPlan(**config, **numbers, model="ab" * 32, solver="deis", schedule="early", precision=precision)
    store, (shard,) = Store(str(root)), plan.shards()
    plan_file.claim(store, plan)
    fields = random_field(torch.Generator().manual_seed(0), COUNT, 2, 2, 4)
    with store.create(plan.data(shard)) as output:
        write_table(to_table(plan, shard.indices, fields.numpy()), output.file)
    commit(store, shard, plan.data(shard), output.bytes, output.sha256, started=0.0, device="cpu")
    rollout_file.write(store, plan, [Rollout(1, [0.0, 0.5], torch.zeros(2, 3, 16, 16), fields[:2])])
    return root


def make_pictures(splats: Path, root: Path, output: str, encoding: str) -> Path:
    source = SplatDataset.open(str(splats))
    arguments = [
        "--splats",
        str(splats),
        "--out",
        str(root),
        "--size",
        "16",
        "--format",
        output,
        "--encoding",
        encoding,
    ]
    plan = render.make_plan(cli.parse(render.Options, arguments), source)
    store = Store(str(root))
    plan_file.claim(store, plan)
    for shard in plan.shards():
        render_shard(source, plan, shard, store, "cpu", 1)
    return root


def sound(root: Path) -> None:
    """All that looks at a dataset without reading another file."""
    store = Store(str(root))
    survey(store)
    plan = plan_file.load(store, Plan)
    verify_shard(store, plan, plan.shard(0))
    if isinstance(plan, GenerationPlan):
        source = SplatDataset.open(str(root))
        source.require(plan.pictures)
        open_dataset(str(root)).available()


def contents(root: Path) -> None:
    """What reads the files of a dataset, as if a record agreed with them."""
    store = Store(str(root))
    plan = plan_file.load(store, Plan)
    if isinstance(plan, GenerationPlan):
        check_splats(store, plan, plan.shard(0))
        assert torch.isfinite(open_dataset(str(root)).splats(range(COUNT))).all()
    else:
        check_pictures(store, plan, plan.shard(0))


def kept_rollouts(root: Path) -> None:
    source = SplatDataset.open(str(root))
    for rollout in rollout_file.read(source, rollout_file.kept(source)):
        assert len(rollout.times) == len(rollout.noisy) == len(rollout.fields)


def photographs(path: Path) -> None:
    place = sources.survey(str(path))
    for record in sources.records(place):
        found = preparation.prepare_one(record, None, 96)
        assert (found.row is None) == bool(found.reason)
    load_pictures(str(path))


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with contextlib.suppress(pa.ArrowException):
        pq.write_table(table, sink, row_group_size=4, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def altered_parquet(examples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    return altered_table([pq.read_table(io.BytesIO(data)) for data in examples]).map(parquet)


def make_targets(
    ground: Path, tiny_weights: Path, prepared_cats: str, vgg_weights: dict[str, torch.Tensor]
) -> dict[str, Target]:
    """Every kind of file that is read, by name, made in the folder `ground`."""
    splats, compact = (make_dataset(ground / name, name) for name in ("float16", "compact"))
    forms = {"parquet": "webp", "webdataset": "jpeg", "files": "png"}
    pictures = {form: make_pictures(splats, ground / form, form, encoding) for form, encoding in forms.items()}
    found: dict[str, Target] = {}
    for name, root in {"splats": splats, "pictures": pictures["files"]}.items():
        for kind, file in {"plan": "plan.json", "record": "_stats/shard-00000.json"}.items():
            read = partial(lambda root: (sound(root), contents(root)), root)
            found[f"{kind} of {name}"] = Target(root / file, read, altered_json)
    for root in (splats, compact):
        path = root / "data/shard-00000.parquet"
        found[f"{root.name} shard"] = Target(path, partial(contents, root), altered_parquet)
    found["rollouts"] = Target(splats / rollout_file.ROLLOUTS, partial(kept_rollouts, splats), altered_parquet)
    for form, root in pictures.items():
        path = min([*root.glob("data/*"), *root.glob("shard-00000/*")])
        kind = altered_parquet if form == "parquet" else None
        found[f"pictures in {form}"] = Target(path, partial(contents, root), kind)

    path = ground / "weights.safetensors"
    path.write_bytes(tiny_weights.read_bytes())
    tiny = checkpoint.load(path)
    int8 = checkpoint.dump(tiny.state_dict(), tiny.config, precision="int8", about={})
    found["weights"] = Target(path, partial(checkpoint.load, path), altered_safetensors, [int8])
    # Whole VGG16 weights would take a second each; these fail at the shapes, after all else.
    path = ground / "vgg.safetensors"
    save_file({name: tensor.flatten()[:9].clone() for name, tensor in vgg_weights.items()}, path, {"format": "pt"})
    found["perceptual weights"] = Target(path, partial(load_lpips, str(path)), altered_safetensors)

    small = Image.open(PHOTOS / "face.jpg").convert("RGB").resize((72, 64))
    for kind in ("jpeg", "png", "webp", "gif", "tiff", "avif", "bmp"):
        path = ground / f"photo.{kind}"
        small.save(path)
        found[f"photograph in {kind}"] = Target(path, partial(photographs, path))
    path = ground / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.png", "../b.png", "K\u00e4tzchen/c.png"):
            archive.write(ground / "photo.png", name)
    found["zip"] = Target(path, partial(photographs, path))
    path = ground / "photos.parquet"
    pq.write_table(pq.read_table(f"{prepared_cats}/photos-00000.parquet", columns=["source", "image"])[:3], path)
    found["photographs in parquet"] = Target(path, partial(photographs, path), altered_parquet)
    assert set(found) == set(FILES)
    return found
