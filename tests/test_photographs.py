"""Photographs in: from every kind of place to one prepared set."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photographs import CATS, FILES, encoded, noise, rows, write_parquet, write_zip
from pictures import pixels
from PIL import Image

from jobs import prepare as job
from jobs.cli import run
from pipeline.photographs import prepared
from pipeline.photographs.preparation import prepare


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the job, which must end in exit code 1 and one line on stderr; return that line."""
    assert run(job.Options, job.main, [str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


def test_every_kind_of_place_gives_the_same_set(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "cats.zip", FILES)
    (tmp_path / "tables").mkdir()
    write_parquet(tmp_path / "tables" / "a.parquet", FILES[:4])
    write_parquet(tmp_path / "tables" / "b.parquet", FILES[4:])
    memory = fsspec.filesystem("memory")
    for name in FILES:
        memory.pipe_file(f"/test_photos/{name.name}", name.read_bytes())
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "cats").symlink_to(CATS)
    places = [CATS, archive, tmp_path / "tables", "memory://test_photos", f"zip://some/folder::{archive}"]
    places.append(tmp_path / "linked")
    sets = []
    for number, place in enumerate(places):
        record = prepare([str(place)], str(tmp_path / f"out{number}"))
        assert (record["read"], record["kept"], record["unreadable"]) == (10, 10, 0)
        sets.append([row | {"source": Path(row["source"]).name} for row in rows(tmp_path / f"out{number}")])
    assert [row["source"] for row in sets[0]] == [name.name for name in FILES]
    assert [row["source"] for row in sets[2]][4] == f"b.parquet#0 ({FILES[4].name})"
    unnamed = [[row | {"source": ""} for row in found] for found in sets]
    assert all(found == unnamed[0] for found in unnamed[1:])
    for name, row in zip(FILES, sets[0], strict=True):
        original = Image.open(name)
        side = min(original.width, 256)
        assert row["side"] == side
        assert pixels(row["image64"]["bytes"]).shape == (64, 64, 3)
        if original.width <= 256:
            np.testing.assert_array_equal(pixels(row["image"]["bytes"]), np.asarray(original))


def test_a_set_at_a_url_and_its_features_for_datasets(tmp_path: Path) -> None:
    prepare([str(CATS)], f"file://{tmp_path}/set")
    assert len(rows(f"file://{tmp_path}/set")) == 10
    features = json.loads(prepared.SCHEMA.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == prepared.SCHEMA.names
    assert features["image"] == features["image64"] == {"_type": "Image"}


def test_exif_rotation_box_and_cap(tmp_path: Path) -> None:
    # Upright, the picture is 80 wide and 200 high with one red square at x 10-79, y 120-189.
    upright = Image.new("RGB", (80, 200), "blue")
    upright.paste("red", (10, 120, 80, 190))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    (tmp_path / "in").mkdir()
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "in" / "turned.png", exif=exif)
    prepare([str(tmp_path / "in")], str(tmp_path / "box"), box=(10, 120, 80, 190))
    (row,) = rows(tmp_path / "box")
    assert row["side"] == 70
    assert (pixels(row["image"]["bytes"]) == [255, 0, 0]).all()
    assert (pixels(row["image64"]["bytes"]) == [255, 0, 0]).all()
    prepare([str(tmp_path / "in")], str(tmp_path / "capped"), cap=72)
    (row,) = rows(tmp_path / "capped")
    assert row["side"] == 72
    # The centred square is y 60-139, so the red begins at its row 60 of 80.
    red = pixels(row["image"]["bytes"])[:, 40, 0] > 128
    assert list(np.flatnonzero(red)) == list(range(54, 72))


def test_bad_files_are_named_and_the_run_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(CATS / "face.jpg", folder / "good.jpg")
    (folder / "cut.jpg").write_bytes((CATS / "eyes.jpg").read_bytes()[:4000])
    (folder / "empty.png").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(folder) + b"/latin\xe9.jpg")).write_bytes((CATS / "nose.jpg").read_bytes())
    (folder / "notes.txt").write_text("not looked at")
    (folder / "text\x1b[2J.jpg").write_text("a text with the wrong name")
    (folder / "script.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n")
    (folder / "tiny.png").write_bytes(encoded(noise(63)))
    (folder / "float.tif").write_bytes(encoded(Image.new("F", (70, 70), 0.5), "TIFF"))
    header = b"IHDR" + (10_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    bomb = b"\x89PNG\r\n\x1a\n\x00\x00\x00\r" + header + zlib.crc32(header).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(bomb + encoded(noise(64))[33:])
    write_parquet(tmp_path / "cut.parquet", FILES)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-100])
    write_zip(tmp_path / "bad.zip", FILES[:2])
    data = bytearray((tmp_path / "bad.zip").read_bytes())
    data[2000] ^= 255
    (tmp_path / "bad.zip").write_bytes(data)

    places = [str(folder), str(tmp_path / "cut.parquet"), str(tmp_path / "bad.zip")]
    record = prepare(places, str(tmp_path / "out"))
    assert [row["source"] for row in rows(tmp_path / "out")] == [
        f"{folder}/good.jpg",
        f"{folder}/latin\\udce9.jpg",
        f"{tmp_path}/bad.zip/some/folder/{FILES[1].name}",
    ]
    assert record["ignored"] == {".jpg": 1, ".txt": 1}
    reasons = {}
    for line in (tmp_path / "out" / prepared.UNREADABLE).read_text().splitlines():
        name, reason = line.split(": ", 1)
        reasons[name.removeprefix(f"{tmp_path}/")] = reason
    expected = {
        "in/bomb.png": "too many",
        "in/cut.jpg": "truncated",
        "in/empty.png": "empty file",
        "in/float.tif": "no known white",
        "in/script.jpg": "not a picture",
        "in/text\\x1b[2J.jpg": "not a picture",
        "in/tiny.png": "63 x 63 pixels give a square below 64",
        "cut.parquet": "Parquet",
        f"bad.zip/some/folder/{FILES[0].name}": "CRC-32",
    }
    assert sorted(reasons) == sorted(expected)
    assert record["unreadable"] == len(expected)
    for name, part in expected.items():
        assert part in reasons[name]
    printed = capsys.readouterr().out
    assert all(name in printed for name in expected)
    assert "\x1b" not in printed


def test_duplicates_are_dropped_and_heldout_is_fixed(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "more").mkdir()
    for seed in range(60):
        noise(64, seed).save(tmp_path / "few" / f"{seed}.png")
    for seed in range(40, 120):  # twenty of them again, as another encoding of the same pixels
        noise(64, seed).save(tmp_path / "more" / f"renamed{seed}.webp", lossless=True)
    few = prepare([str(tmp_path / "few")], str(tmp_path / "a"))
    more = prepare([str(tmp_path / "more"), str(tmp_path / "few")], str(tmp_path / "b"))
    assert (few["read"], few["kept"], few["duplicates"]) == (60, 60, 0)
    assert (more["read"], more["kept"], more["duplicates"]) == (140, 120, 20)
    before = {row["id"]: row["heldout"] for row in rows(tmp_path / "a")}
    after = {row["id"]: row["heldout"] for row in rows(tmp_path / "b")}
    assert before.items() <= after.items()
    assert 0 < more["heldout"] == sum(after.values()) < 20


def test_rerun_gives_the_same_bytes_and_other_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "GROUP_ROWS", 2)
    monkeypatch.setattr(prepared, "FILE_BYTES", 100_000)
    cats, out = tmp_path / "cats", tmp_path / "out"
    shutil.copytree(CATS, cats)
    prepare([str(cats)], str(out))
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(first) > 4
    # As a killed run of more photographs leaves it: no record, a file too many, a half-written one.
    (out / prepared.RECORD).unlink()
    (out / "photos-00099.parquet").write_bytes(b"stale")
    (out / "photos-00001.parquet").write_bytes(b"half")
    (out / ".photos-00001.parquet.0123abcd.tmp").write_bytes(b"half")
    prepare([str(cats)], str(out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    written = (out / prepared.RECORD).stat().st_mtime_ns
    prepare([str(cats)], str(out))
    assert (out / prepared.RECORD).stat().st_mtime_ns == written
    assert "complete already" in capsys.readouterr().out

    assert "--cap 256, not 128" in fails(capsys, "--photos", cats, "--out", out, "--cap", 128)
    assert "--box None, not [0, 0, 64, 64]" in fails(capsys, "--photos", cats, "--out", out, "--box", "0,0,64,64")
    assert f"--photos ['{cats}']" in fails(capsys, "--photos", CATS, "--out", out)
    (cats / "nose.jpg").unlink()
    assert "have changed" in fails(capsys, "--photos", cats, "--out", out)


def test_a_set_has_the_fingerprint_of_its_photographs_wherever_it_lies(tmp_path: Path) -> None:
    some, again, fewer = (
        prepare(list(map(str, files)), str(tmp_path / name))["fingerprint"]
        for name, files in (("some", FILES), ("again", FILES[::-1]), ("fewer", FILES[1:]))
    )
    assert some == again != fewer


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "a.heic").write_bytes(b"x")
    pq.write_table(pa.table({"label": [1], "picture": [b"x"]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"image": ["a.jpg"]}), tmp_path / "paths.parquet")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"")
    (tmp_path / "phone" / "round").symlink_to(tmp_path / "phone")
    assert "nothing is there" in fails(capsys, "--photos", tmp_path / "none", "--out", out)
    assert "no photographs" in fails(capsys, "--photos", tmp_path / "empty", "--out", out)
    assert "round is a link to a folder that it is in" in fails(capsys, "--photos", tmp_path / "phone", "--out", out)
    (tmp_path / "phone" / "round").unlink()
    assert "only 1 .heic" in fails(capsys, "--photos", tmp_path / "phone", "--out", out)
    assert "columns: label, picture" in fails(capsys, "--photos", CATS, tmp_path / "other.parquet", "--out", out)
    assert "is string" in fails(capsys, "--photos", tmp_path / "paths.parquet", "--out", out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    assert "holds notes.txt, which is no prepared set" in fails(capsys, "--photos", CATS, "--out", tmp_path / "mine")
    assert "neither a folder" in fails(capsys, "--photos", __file__, "--out", out)
    assert "Protocol not known: nope" in fails(capsys, "--photos", "nope://cats", "--out", out)
    assert "within" in fails(capsys, "--photos", CATS, "--out", CATS / "set")
    assert "Not a directory" in fails(capsys, "--photos", CATS, "--out", tmp_path / "other.parquet" / "set")
    assert not out.exists()


def test_without_a_usable_photograph_all_reasons_are_kept_and_no_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, out = tmp_path / "bad", tmp_path / "out"
    bad.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (bad / name).write_bytes(b"")
    assert run(job.Options, job.main, ["--photos", str(bad), "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert said.err == f"error: none of the 2 photographs can be used; the first: {bad}/a.jpg: empty file\n"
    assert f"all in {out}/unreadable.txt" in said.out
    assert [path.name for path in out.iterdir()] == [prepared.UNREADABLE]
    assert (out / prepared.UNREADABLE).read_text().count(": empty file\n") == 2
    (bad / "b.jpg").write_bytes(FILES[0].read_bytes())
    assert prepare([str(bad)], str(out))["kept"] == 1


def test_command_needs_no_ray(tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; import runpy; "
    code += "runpy.run_module('jobs.prepare', run_name='__main__')"
    arguments = ["--photos", str(CATS), "--out", str(tmp_path / "out"), "--cap", "100"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=CATS.parents[1], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kept 10 of 10 photographs (")
    assert "python -m jobs.train --photos" in done.stdout
    assert {row["side"] for row in rows(tmp_path / "out")} == {100}
