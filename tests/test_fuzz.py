"""Whatever a command is given, it works or says in one line what is wrong: no traceback, no hang, no partial output."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hostile import altered, altered_json, altered_safetensors, altered_table, command_lines
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from jobs import benchmark, cli, demo, evaluate, gallery, generate, prepare, render, status, train, verify
from models import checkpoint
from models.perceptual import load_lpips
from models.splats import random_field
from pipeline.datasets import plan_file, rollout_file
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan, Plan
from pipeline.datasets.reader import open_dataset
from pipeline.datasets.rollout_file import Rollout
from pipeline.datasets.splat_dataset import SplatDataset, to_table, write_table
from pipeline.evaluation.pictures import load_pictures
from pipeline.execution.production import commit
from pipeline.inspection.contents import check_pictures, check_splats
from pipeline.inspection.status import survey
from pipeline.inspection.verification import verify_shard
from pipeline.photographs import preparation, sources
from pipeline.rendering.renderer import render_shard
from pipeline.storage.store import Store
from pipeline.training import training_set

EACH = 323  # of 31 kinds: 10,000 and some
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
COMMANDS = ("generate", "render", "gallery", "evaluate", "prepare", "train", "status", "verify", "demo", "benchmark")
PHOTOS = Path(__file__).parent / "photos"
SECONDS = 10.0
COUNT = 6


@dataclass(frozen=True)
class Nothing:
    """No options."""


class File(bytes):
    """Contents that a failing test does not spell out."""

    def __repr__(self) -> str:
        return f"<{len(self):,} bytes>"


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
    source = SplatDataset(str(splats))
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
        source = SplatDataset(str(root))
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
    source = SplatDataset(str(root))
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


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Iterator[Path]:
    """The folder in which all files of these tests lie, temporary ones too."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "tmp").mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder / "tmp")
    yield folder
    tempfile.tempdir = before


@pytest.fixture(scope="module")
def targets(ground: Path, tiny_weights: Path, prepared_cats: str, vgg_weights) -> dict[str, Target]:
    """Every kind of file that is read, by name."""
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


def commands(ground: Path, weights: Path, photos: str) -> dict[str, tuple[type, Callable, dict[str, list[str]]]]:
    """Every command as far as it goes without Ray and without writing, and what makes sense as its options."""
    splats, out = str(ground / "float16"), [str(ground / "out"), str(ground / "out/x")]

    def plan_drawing(options: render.Options) -> None:
        source = SplatDataset(options.splats)
        plan = render.make_plan(options, source)
        plan_file.check(Store(options.out), plan)
        source.require(plan.pictures)
        if plan.motion == "rollout":
            rollout_file.require(source, plan.pictures)

    def plan_page(options: gallery.Options) -> None:
        source = SplatDataset(options.splats)
        Store(options.out)
        source.require(Indices.parse(options.indices) if options.indices is not None else source.plan.pictures)

    def look(options: prepare.Options) -> None:
        Store(options.out)
        for url in options.photos:
            sources.survey(url)

    def find_sources(options: evaluate.Options) -> None:
        Store(options.out)
        evaluate.open_sources(options)

    def plan_generation(options: generate.Options) -> None:
        generate.main(dataclasses.replace(options, dry_run=True))

    return {
        "generate": (
            generate.Options,
            plan_generation,
            {"out": out, "count": ["1", "10", "1000000", "9223372036854775807"], "weights": [str(weights)]},
        ),
        "render": (render.Options, plan_drawing, {"splats": [splats], "out": out, "size": ["16", "512", "9x5"]}),
        "gallery": (gallery.Options, plan_page, {"splats": [splats], "out": out, "indices": ["0-3", "5", "6"]}),
        "evaluate": (evaluate.Options, find_sources, {"splats": [splats], "out": out, "photos": [photos]}),
        "prepare": (prepare.Options, look, {"photos": [str(PHOTOS), str(ground / "photo.png")], "out": out}),
        "train": (
            train.Options,
            lambda o: training_set.check(o.photos),
            {"photos": [photos], "out": out, "steps": ["9"]},
        ),
        "status": (status.Options, status.main, {"": [splats, *out]}),
        "verify": (verify.Options, lambda o: plan_file.load(Store(o.url), Plan), {"": [splats, *out]}),
        "demo": (demo.Options, lambda o: None, {"out": out}),
        "benchmark": (benchmark.Options, lambda o: None, {"device": ["cpu"]}),
    }


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


def try_files(target: Target, number: int, ground: Path) -> None:
    try_inputs(target.inputs.map(File), number, lambda data: target.refusal(data, ground))


def try_commands(command: tuple[type, Callable, dict[str, list[str]]], number: int, ground: Path) -> None:
    options, main, values = command
    try_inputs(command_lines(options, values), number, lambda line: outcome(options, main, line, ground))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")  # Pillow of odd metadata
def test_files_are_read_or_refused_in_one_line(name: str, targets: dict[str, Target], ground: Path) -> None:
    try_files(targets[name], 12, ground)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_lines_are_taken_or_refused_in_one_line(
    name: str, targets: dict[str, Target], ground: Path, tiny_weights: Path, prepared_cats: str
) -> None:
    try_commands(commands(ground, tiny_weights, prepared_cats)[name], 12, ground)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")  # Pillow of odd metadata
def test_ten_thousand_files(name: str, targets: dict[str, Target], ground: Path) -> None:
    try_files(targets[name], EACH, ground)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_ten_thousand_command_lines(
    name: str, targets: dict[str, Target], ground: Path, tiny_weights: Path, prepared_cats: str
) -> None:
    try_commands(commands(ground, tiny_weights, prepared_cats)[name], EACH, ground)


def table_with(change: Callable[[pa.Table], pa.Table]) -> Callable[[bytes], bytes]:
    return lambda data: parquet(change(pq.read_table(io.BytesIO(data))))


def fields_with(**fields: object) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **fields}).encode()


def config_with(**fields: object) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        config = json.loads(header["__metadata__"]["config"])
        header["__metadata__"]["config"] = json.dumps({**config, **fields})
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return change


def safetensors_header(text: bytes) -> Callable[[bytes], bytes]:
    return lambda data: len(text).to_bytes(8, "little") + text


def tar_of(kind: bytes, contents: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=stream, mode="w") as new:
            picture = old.next()
            new.addfile(picture, old.extractfile(picture))
            member = tarfile.TarInfo("00000000.json")
            member.type, member.size, member.linkname = kind, len(contents), "00000000.json"
            new.addfile(member, io.BytesIO(contents))
        return stream.getvalue()

    return change


def twice(name: str) -> Callable[[bytes], bytes]:
    return table_with(lambda table: table.append_column(name, table[name]))


def gap(table: pa.Table) -> pa.Table:
    values = table["splats"].to_pylist()
    return table.set_column(1, "splats", pa.array([None, *values[1:]], table["splats"].type))


HUGE = 2**62
FOUND_ONCE = {
    "a column twice": ("float16 shard", twice("splats"), "no column 'splats'"),
    "an empty row": ("float16 shard", table_with(gap), "'splats' has empty places"),
    "steps without t": ("rollouts", table_with(lambda table: table.drop_columns("t")), "no column 't'"),
    "steps without step": ("rollouts", table_with(lambda table: table.drop_columns("step")), "no column 'step'"),
    "steps without shape": ("rollouts", table_with(lambda table: table.replace_schema_metadata(None)), "the shape of"),
    "a step twice": ("rollouts", table_with(lambda table: pa.concat_tables([table, table])), "lacks steps"),
    "two columns of photographs": ("photographs in parquet", twice("image"), "no column 'image'"),
    "a name in no encoding": ("zip", lambda data: data.replace("K\u00e4".encode(), b"K\xff\xff"), "cannot be read"),
    "metadata that are a list": ("weights", safetensors_header(b'{"__metadata__": []}'), "not a safetensors file"),
    "a deep header": ("weights", safetensors_header(b"[" * 100_000), "not a safetensors file"),
    "weights of no end": ("weights", config_with(width=2**40, blocks=2**40), "width is"),
    "large weights": ("weights", config_with(width=2**16), "do not fit the model"),
    "a grid of no end": ("weights", config_with(rows=10**6, columns=10**6), "rows is 1000000"),
    "no heads": ("weights", config_with(heads=0), "heads is 0"),
    "more shards than memory": (
        "plan of splats",
        fields_with(count=HUGE, shard_size=1),
        "rows is 6 there, 1 by the plan",
    ),
    "more pictures than memory": (
        "plan of pictures",
        fields_with(indices=f"0-{HUGE}", shard_size=HUGE),
        "6.png is not",
    ),
    "a picture that is a program": ("plan of pictures", fields_with(encoding="eps"), "unknown encoding 'eps'"),
    "an unknown format": ("plan of pictures", fields_with(output="x"), "unknown format 'x'"),
    "a link to itself": ("pictures in webdataset", tar_of(tarfile.LNKTYPE, b""), "not a plain file"),
    "facts that are a number": ("pictures in webdataset", tar_of(tarfile.REGTYPE, b"3"), "00000000.jpg's .json should"),
    "deep facts": ("pictures in webdataset", tar_of(tarfile.REGTYPE, b"[" * 100_000), "00000000.jpg's .json should"),
}


@pytest.mark.parametrize("example", FOUND_ONCE)
def test_what_was_found_once(example: str, targets: dict[str, Target], ground: Path) -> None:
    name, change, part = FOUND_ONCE[example]
    assert part in targets[name].refusal(change(targets[name].good), ground)


def test_a_name_with_a_line_break_stays_in_its_line(ground: Path) -> None:
    line = ["--out", str(ground / "x"), "--count", "1", "--weights", "one\ntwo\x1b[2J"]
    assert "one two\\x1b[2J" in outcome(generate.Options, generate.main, line, ground)


def test_a_shape_of_no_end_is_refused_before_anything_is_written(ground: Path, prepared_cats: str) -> None:
    line = ["--photos", prepared_cats, "--out", str(ground / "run"), "--steps", "1", "--width", str(24 * 10**6)]
    assert "width is 24000000, not a whole number" in outcome(train.Options, train.main, line, ground)
