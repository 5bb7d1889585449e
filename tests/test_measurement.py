"""The evaluation of real splats on real Ray, its report and its page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import ray
import test_fidelity
import torch
from PIL import Image
from test_fidelity import BlockMeans

from jobs import cli, evaluate, generate
from models.measures import border_ratio
from models.rasterize import rasterize, to_uint8
from pipeline.datasets.indices import Indices
from pipeline.datasets.splat_dataset import SplatDataset, to_table, write_table
from pipeline.evaluation import report
from pipeline.evaluation.closeups import LARGE, consistency
from pipeline.evaluation.measurement import Extent, Weighed, measure
from pipeline.evaluation.page import render_page
from pipeline.evaluation.pictures import Photographs, Source, load_photographs

COUNT = 70

# Workers cannot import tests.
ray.cloudpickle.register_pickle_by_value(test_fidelity)


@pytest.fixture(scope="module")
def splats(ray_cluster, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 pictures in two shards, the first of them white all over."""
    out = tmp_path_factory.mktemp("source") / "splats"
    options = ["--out", str(out), "--weights", str(tiny_weights), "--count", str(COUNT), "--steps", "1"]
    assert cli.run(generate.Options, generate.main, [*options, "--shard-size", "40"]) == 0
    dataset = SplatDataset.open(str(out))
    shard = dataset.plan.shard(0)
    fields = torch.cat([fields for _, fields in dataset.read(shard.indices)])
    fields[0, ..., 2:8] = torch.tensor([0.25, 0.25, 0, 60, 60, 60])
    with dataset.store.create(dataset.plan.data(shard)) as output:
        write_table(to_table(dataset.plan, shard.indices, fields.numpy()), output.file)
    record = out / "_stats" / f"{shard.name}.json"
    size = (out / dataset.plan.data(shard)).stat().st_size
    record.write_text(json.dumps(json.loads(record.read_text()) | {"bytes": size}))
    return out


@pytest.fixture(scope="module")
def photographs(many_photographs: Path) -> Photographs:
    return load_photographs([str(many_photographs)], large={128: 16}, seed=0)


def weigh(splats: Path, photographs: Photographs, workers: int) -> list[Weighed]:
    dataset = SplatDataset.open(str(splats))
    # The second set holds photographs that were trained on.
    copies = photographs.training[:60].copy()
    sources = [Source("deis <4>", str(splats), COUNT, dataset), Source("copies", "a & b", 60, copies)]
    large = photographs.large[128].repeat(2, axis=1).repeat(2, axis=2)
    enlarged = Photographs(photographs.training, photographs.heldout, {256: large, 512: large[:0]})
    extent = Extent(closeups=3, patches=7, batch=16)
    return measure(sources, enlarged, {"blocks": BlockMeans()}, extent=extent, workers=workers)


@pytest.fixture(scope="module")
def weighed(splats: Path, photographs: Photographs) -> list[Weighed]:
    return weigh(splats, photographs, workers=1)


def as_page(weighed: list[Weighed], photographs: Photographs) -> tuple[dict, str]:
    figures = report.to_json(weighed, photographs, ["<photos>"], ["a note"])
    return figures, render_page(figures, weighed, photographs, ["a note"])


def test_figures_and_page_are_the_same_with_any_number_of_workers(
    weighed: list[Weighed], splats: Path, photographs: Photographs
) -> None:
    assert as_page(weigh(splats, photographs, workers=2), photographs) == as_page(weighed, photographs)


def test_what_is_weighed_is_what_the_splats_say(weighed: list[Weighed], splats: Path) -> None:
    drawn = weighed[0]
    fields = torch.cat([fields for _, fields in SplatDataset.open(str(splats)).read(Indices.first(COUNT))])
    expected = to_uint8(rasterize(fields, 64, 64)).numpy().astype(int)
    assert np.abs(drawn.pictures - expected).max() <= 1
    assert drawn.closeups is not None
    large = rasterize(fields[:3], LARGE, LARGE).clamp(-1, 1)
    np.testing.assert_allclose(drawn.closeups.borders[LARGE], border_ratio(large), rtol=1e-4)
    # One is white: nothing is to be measured on it.
    assert drawn.figures["borders"]["512"]["generated"]["pictures"] == drawn.figures["consistency"]["pictures"] == 2
    assert np.isinf(drawn.closeups.agreement).tolist() == [True, False, False]
    assert consistency(drawn.closeups.agreement[:1]) is None
    assert drawn.figures["patches"]["patches"] == 56
    assert drawn.figures["patches"]["networks"]["blocks"]["floor"] > 0
    # Nothing can be drawn larger of what are pictures already.
    copied = weighed[1]
    assert copied.figures["patches"] is copied.figures["consistency"] is copied.closeups is None
    assert copied.figures["networks"]["blocks"]["memorised"]["share"] == 1
    assert drawn.figures["networks"]["blocks"]["memorised"]["share"] < 0.1


class Balance(HTMLParser):
    """Checks that elements close in order, and collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Elements of SVG without contents."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_escapes_names(weighed: list[Weighed], photographs: Photographs) -> None:
    figures, page = as_page(weighed, photographs)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    parsed = Balance()
    parsed.feed(page)
    assert not parsed.open
    assert all(url.startswith(("data:image/jpeg;base64,", "#set-")) for url in parsed.fetched)
    for shown in ("deis <4>", "a & b", "<photos>", "a note", "memorised share"):
        assert shown in parsed.text
    distance = figures["sets"][0]["networks"]["blocks"]["frechet"]
    table = report.as_table(figures)
    for value in distance.values():
        assert f"{value:.2f}" in parsed.text
        assert f"{value:.2f}" in table


def test_sets_of_different_weights_are_different_curves(weighed: list[Weighed], photographs: Photographs) -> None:
    drawn = weighed[0]
    figures = report.to_json([drawn] * 3, photographs, [], [])
    first, second, third = figures["sets"]
    second["plan"] |= {"steps": 2}
    same = render_page(figures, [drawn] * 3, photographs, [])
    assert same.count("<polyline") == 1
    third["plan"] |= {"model": "beef" * 16}
    different = render_page(figures, [drawn] * 3, photographs, [])
    assert different.count("<polyline") == 2
    for name in (f"deis, early, model {first['plan']['model'][:8]}<", "deis, early, model beefbeef<"):
        assert name in different
    for key in list(third["networks"]):
        third["networks"][key]["frechet"]["generated"] = 0.0  # of a set compared with itself
    assert render_page(figures, [drawn] * 3, photographs, []).count("<polyline") == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["--splats", "SPLATS"],
            "70 pictures of SPLATS are too few for a covariance of 1,280 features: at least 1,281",
        ),
        (["--pictures", "PHOTOS"], "160 pictures of PHOTOS are too few for a covariance"),
        (
            ["--splats", "MANY"],
            "160 photographs of PHOTOS are too few for a covariance of 1,280 features: at least 2,562",
        ),
        (["--splats", "MANY", "--photos", "PREPARED"], "10 photographs of PREPARED are too few"),
        (["--splats", "SPLATS", "--count", "71"], "has 70 pictures, not 71"),
        (["--splats", "SPLATS", "--lpips", "none.safetensors"], "no VGG16 weights at none.safetensors"),
        (["--splats", "SPLATS", "--inception", "none.safetensors"], "no Inception weights at none.safetensors"),
        (["--splats", "PHOTOS"], "has no plan.json"),
        (["--splats", "SPLATS", "--device", "toaster"], "unknown device 'toaster'"),
        (["--splats", "SPLATS", "--photos", "SPLATS"], "has no column 'image'"),
        ([], "nothing to weigh"),
        # Before anything is read.
        (["--splats", "none", "--photos", "none", "--out", "PHOTOS/000.png/report"], "Not a directory: "),
    ],
)
def test_what_cannot_be_weighed_is_told_in_one_line(
    splats: Path,
    many_photographs: Path,
    prepared_cats: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    message: str,
) -> None:
    plan = json.loads((splats / "plan.json").read_text()) | {"count": 2000}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    places = {"PHOTOS": many_photographs, "SPLATS": splats, "PREPARED": prepared_cats, "MANY": tmp_path}
    *given, message = (
        re.sub("|".join(places), lambda name: str(places[name[0]]), text) for text in (*changes, message)
    )
    for name, value in (("--photos", str(many_photographs)), ("--out", str(tmp_path / "report"))):
        if name not in given:
            given += [name, value]
    assert cli.run(evaluate.Options, evaluate.main, given) == 1
    said, told = capsys.readouterr()
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert message in told
    assert not said  # no photograph was looked at
    assert not (tmp_path / "report" / "report.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_command_writes_its_report(
    ray_cluster, tiny_weights: Path, vgg_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splats, photographs, out = tmp_path / "splats", tmp_path / "photos", tmp_path / "report"
    options = ["--out", str(splats), "--weights", str(tiny_weights), "--count", "1290", "--steps", "1"]
    assert cli.run(generate.Options, generate.main, options) == 0
    photographs.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (2600, 8, 8, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).resize((64, 64)).save(photographs / f"{number}.png")
    given = ["--splats", str(splats), "--photos", str(photographs), "--out", str(out), "--lpips", str(vgg_file)]
    assert cli.run(evaluate.Options, evaluate.main, [*given, "--closeups", "2", "--patches", "165"]) == 0
    told = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"report.json", "report.html", "request.json"}
    (figures,) = json.loads((out / "report.json").read_text())["sets"]
    assert figures["count"] == 1290
    assert figures["networks"].keys() == {"efficientnet_lite0", "vgg16_relu5_3"}
    for network in figures["networks"].values():
        assert network["frechet"]["generated"] > 2 * network["frechet"]["floor"]
        assert f"{network['frechet']['floor']:.2f}" in told
    assert "no --inception" in told.lower()
    assert "too few for a covariance of patches" in told
    assert "deis" in (out / "report.html").read_text()
