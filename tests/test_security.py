"""What a file or a name from a stranger cannot do: run code, write elsewhere, fill the memory, speak in our pages."""

from __future__ import annotations

import ast
import io
import os
import pickle
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs import cli, prepare
from models import checkpoint
from models.errors import UserError
from models.inception import load_inception
from models.perceptual import load_lpips
from pipeline.datasets import plan_file
from pipeline.datasets.plan import Plan
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.evaluation.pictures import load_pictures
from pipeline.photographs import preparation
from pipeline.storage.store import Store
from pipeline.training import training_set
from pipeline.training.recipe import Recipe
from pipeline.training.state import DamagedCheckpoint, State

ROOT = Path(__file__).parents[1]
CAT = ROOT / "tests/photos/face.jpg"
READERS = {
    "weights.safetensors": checkpoint.load,
    "vgg.safetensors": lambda path: load_lpips(str(path)),
    "inception.safetensors": lambda path: load_inception(str(path)),
    "plan.json": lambda path: plan_file.load(Store(str(path.parent)), Plan),
    "prepared.json": lambda path: training_set.check(str(path.parent)),
    "photo.png": lambda path: load_pictures(str(path)),
    "photos.parquet": lambda path: load_pictures(str(path)),
    "photos.zip": lambda path: load_pictures(str(path)),
}


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


def pickles(trace: Path) -> list[bytes]:
    """What runs when it is unpickled: bare, and as torch writes it."""
    stream = io.BytesIO()
    torch.save(Bomb(trace), stream)
    return [pickle.dumps(Bomb(trace)), stream.getvalue()]


@pytest.mark.parametrize("name", READERS)
def test_a_pickle_in_the_place_of_a_file_is_refused_and_not_run(name: str, tmp_path: Path) -> None:
    for data in pickles(tmp_path / "trace"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError):
            READERS[name](tmp_path / name)
    assert not (tmp_path / "trace").exists()
    pickle.loads(pickles(tmp_path / "trace")[0])
    assert (tmp_path / "trace").exists()  # it would have


def test_a_checkpoint_that_is_a_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    state = State.__new__(State)
    for data in pickles(tmp_path / "trace"):
        (tmp_path / "state.safetensors").write_bytes(data)
        with pytest.raises(DamagedCheckpoint):
            state.restore(tmp_path, Recipe())
    assert not (tmp_path / "trace").exists()


def test_parquet_does_not_unpickle_a_type_of_its_metadata(tmp_path: Path) -> None:
    kind = pa.field(
        "image",
        pa.binary(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": pickles(tmp_path / "trace")[0],
        },
    )
    table = pa.Table.from_arrays([pa.array([CAT.read_bytes()])], schema=pa.schema([kind]))
    pq.write_table(table, tmp_path / "photos.parquet")
    assert load_pictures(str(tmp_path / "photos.parquet")).shape == (1, 64, 64, 3)
    assert not (tmp_path / "trace").exists()


def test_no_code_reads_pickles() -> None:
    """Of all calls by these names only torch.load is there, and only of tensors."""
    found = []
    for path in [path for folder in ("models", "pipeline", "jobs") for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "np.load", "numpy.load", "yaml.load"), path
                if called == "torch.load":
                    found.append([(word.arg, ast.unparse(word.value)) for word in node.keywords])
    assert all(("weights_only", "True") in words for words in found)


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    archive, out = tmp_path / "photos.zip", tmp_path / "inner/out"
    names = [
        "../escaped.jpg",
        "../../escaped.jpg",
        f"{tmp_path}/escaped.jpg",
        "C:\\escaped.jpg",
        "<b>&.jpg",
        "a\n\x1b.jpg",
    ]
    with zipfile.ZipFile(archive, "w") as file:
        for shade, name in enumerate(names):
            stream = io.BytesIO()
            Image.new("RGB", (64, 64), (shade, 0, 0)).save(stream, "PNG")
            file.writestr(name, stream.getvalue())
    assert preparation.prepare([str(archive)], str(out))["kept"] == len(names)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        "photos.zip",
        *(f"inner/out/{name}" for name in ("photos-00000.parquet", "prepared.json", "unreadable.txt")),
    }


def bomb(kind: str) -> bytes:
    """A picture of 20,000 x 20,000 pixels in a few hundred bytes or kilobytes."""
    side = 20_000
    if kind in ("gif", "bmp"):  # a small picture that says so
        stream = io.BytesIO()
        Image.new("1", (64, 64)).save(stream, kind)
        place, width = (6, 2) if kind == "gif" else (18, 4)
        size = side.to_bytes(width, "little") * 2
        return stream.getvalue()[:place] + size + stream.getvalue()[place + len(size) :]
    chunks = [
        (b"IHDR", side.to_bytes(4, "big") * 2 + b"\x01\x00\x00\x00\x00"),
        (b"IDAT", zlib.compress(bytes(side * 2501))),
    ]
    framed = [
        len(d).to_bytes(4, "big") + n + d + zlib.crc32(n + d).to_bytes(4, "big") for n, d in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_a_decompression_bomb_is_one_bad_file_among_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None
    assert limit < 10**8
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(CAT.read_bytes())
    for kind in ("png", "gif", "bmp"):
        (folder / f"bomb.{kind}").write_bytes(bomb(kind))
    assert cli.run(prepare.Options, prepare.main, ["--photos", str(folder), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "kept 1 of 4 photographs" in told
    for kind in ("png", "gif", "bmp"):
        (line,) = [line for line in (out / "unreadable.txt").read_text().splitlines() if f"bomb.{kind}: " in line]
        assert "pixels" in line
        assert line in told
        with pytest.raises(UserError, match=f"bomb.{kind} cannot be read as a picture: .*pixels"):
            load_pictures(str(folder / f"bomb.{kind}"))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_dataset_cannot_lead_to_files_outside(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "set"))
    for name in ("../x", "/etc/passwd", "data/../../x"):
        for use in (store.read, store.open, store.exists, store.remove, store.sizes, store.remove_folder):
            with pytest.raises(UserError, match="leads out of"):
                use(name)
        with pytest.raises(UserError, match="leads out of"):
            store.write(name, b"")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError):
        SplatDataset.open(str(tmp_path / "set"))
