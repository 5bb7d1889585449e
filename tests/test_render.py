"""What jobs.render refuses, and what it plans."""

import dataclasses
import json
import shutil

import pytest
from test_rendering import command

from jobs import render
from pipeline.datasets.plan import FORMAT_VERSION, power_of_two_size
from pipeline.datasets.splat_dataset import SplatDataset


def test_incomplete_splats_are_refused_except_for_what_is_there(splats, tmp_path, capsys):
    broken = tmp_path / "splats"
    shutil.copytree(splats, broken)
    (broken / "_stats/shard-00002.json").unlink()
    assert command(broken, tmp_path / "out") == 1
    assert "1 of 5 shards needed are missing, the first is shard-00002" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert command(broken, tmp_path / "out", "--indices", "0-7,12-19") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "0"], "--size 0"),
        (["--size", "-5"], "--size"),
        (["--size", "10x"], "--size 10x"),
        (
            ["--size", "1x20000", "--encoding", "webp"],
            "webp takes sides of 1 to 16,383 pixels; with --format dzi up to",
        ),
        (["--size", "65536", "--format", "files"], "more than the 268 megapixels that are held in memory at once"),
        (["--frames", "50"], "--frames 50 goes with --zoom"),
        (["--fps", "12"], "--fps 12 goes with an animation"),
        (
            ["--zoom", "0.5,0.5,4", "--fps", "60", "--encoding", "gif"],
            "gif shows at most 50 frames a second; give fewer or --encoding webp",
        ),
        (["--zoom", "0.5,0.5,4", "--fps", "91"], "--fps 91.0: give a number from 0.1 to 90"),
        (["--encoding", "avif", "--size", "40000x8"], "avif takes sides of 1 to 32,768 pixels"),
        (["--size", "131073"], "tiled pictures (--format tiff) have sides of 1 to 131,072 pixels"),
        (["--region", "0,0,1.2,1"], "--region 0,0,1.2,1 is not inside the picture"),
        (["--region", "0.5,0,0.5,1"], "is not inside the picture"),
        (["--region", "0,0,nan,1"], "give x0,y0,x1,y1 in fractions"),
        (["--region", "0,0,1e-7,1e-7"], "finer than single precision resolves"),
        (["--fit", "fill"], "unknown fit 'fill'; known: crop, letterbox, stretch"),
        (["--zoom", "0.5,1.5,4"], "0.5,1.5 is not inside the picture"),
        (["--zoom", "0.5,0.5,0.5"], "factor 0.5"),
        (["--zoom", "0.3,0.5,4;0.6,0.6,4", "--region", "0,0,0.5,1"], "0.6,0.6 is not inside the part of the picture"),
        (["--zoom", "0.5,0.1,4", "--size", "96x48"], "film begins with, 0,0.25,1,0.75: give a place there"),
        (["--zoom", "0.5,0.5,1e6"], "finer than single precision resolves"),
        (["--zoom", "0.5,0.5,1e300"], "single precision resolves: show more, or fewer pixels"),
        (["--zoom", "0.5,0.5,4", "--encoding", "png"], "animations in the format files are webp, gif"),
        (["--zoom", "0.5,0.5,4", "--format", "tiff"], "--format tiff holds no animations"),
        (["--animate", "rollout", "--indices", "4"], "has the pictures 3,9, not 4"),
        (["--animate", "pictures", "--shard-size", "2"], "--animate pictures makes one film"),
        (["--animate", "pictures", "--encoding", "gif", "--quality", "9"], "--quality 9: gif has none to choose"),
        (["--view", "blobs", "--kernel", "sharp"], "the view blobs looks the same with any"),
        (["--animate", "magic"], "unknown animation 'magic'; known: pictures, rollout"),
        (["--encoding", "gif"], "pictures in the format files are png, jpeg, webp, avif, raw"),
        (["--format", "tiff", "--encoding", "png"], "pictures in the format tiff are deflate"),
        (["--format", "dzi", "--shard-size", "2"], "--shard-size 2: dzi takes at most 1"),
        (["--kernel", "round"], "unknown kernel 'round'; known: gaussian, sharp, wavelet"),
        (["--view", "top"], "unknown view 'top'; known: blobs, colour, depth, patches"),
        (["--format", "zip"], "unknown format 'zip'; known: dzi, files, parquet, tiff, webdataset"),
        (["--encoding", "bmp"], "unknown encoding 'bmp'; known: avif, deflate, gif, jpeg, png, raw, webp"),
        (["--quality", "0"], "--quality 0"),
        (["--quality", "50"], "--quality 50: png has none to choose"),
        (["--indices", "0-20"], "there is no picture 20"),
        (["--indices", "3-1"], "run backwards"),
        (["--splats", "/dev/null"], "not a dataset of splats"),
        (["--splats", "no/where"], "does not exist: not a dataset of splats"),
        (["--out", "/dev/null/x"], "cannot use /dev/null/x"),
        (["--out", "/dev/null"], "/dev/null is no folder"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(splats, tmp_path, capsys, options, message):
    assert command(splats, tmp_path / "out", *options) == 1
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_plans_of_the_same_options_are_equal_whatever_the_workers(splats):
    options = render.Options(splats=str(splats), out="", indices="0,1,2-3")
    source = SplatDataset.open(str(splats))
    assert render.make_plan(options, source) == render.make_plan(
        dataclasses.replace(options, workers=5, indices="3,2,0-1"), source
    )


def test_large_pictures_and_films_are_a_shard_each_and_small_ones_share(splats):
    source = SplatDataset.open(str(splats))

    def size(**options) -> int:
        return render.make_plan(render.Options(splats=str(splats), out="", **options), source).shard_size

    assert (size(size="512"), size(size="1024"), size(size="4096"), size(zoom="0.5,0.5,4")) == (8, 4, 1, 1)
    assert [power_of_two_size(count, 8, 104) for count in (1, 512, 513, 10_000)] == [8, 8, 16, 64]


def test_splats_of_a_future_format_are_refused(splats, tmp_path, capsys):
    future = tmp_path / "splats"
    shutil.copytree(splats, future)
    plan = json.loads((future / "plan.json").read_text())
    (future / "plan.json").write_text(json.dumps({**plan, "format_version": FORMAT_VERSION + 1}))
    assert command(future, tmp_path / "out") == 1
    assert f"has format version {FORMAT_VERSION + 1}" in capsys.readouterr().err


def test_very_large_pictures_are_tiled_in_the_format_that_has_the_encoding(splats):
    source = SplatDataset.open(str(splats))

    def chosen(**options) -> tuple[str, str]:
        plan = render.make_plan(render.Options(splats=str(splats), out="", size="65536", **options), source)
        return plan.output, plan.encoding

    assert chosen() == ("tiff", "deflate")
    assert chosen(encoding="jpeg") == ("dzi", "jpeg")
