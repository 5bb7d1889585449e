"""Whatever a command line says, it is taken or refused in one line: no traceback, no hang, nothing written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuzzing import EACH, only_in, outcome, try_inputs
from hostile import command_lines
from PIL import Image
from targets import PHOTOS, make_dataset

from jobs import benchmark, demo, evaluate, gallery, generate, prepare, render, status, train, verify
from pipeline.datasets import plan_file, rollout_file
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import Plan
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.photographs import sources
from pipeline.storage.store import Store
from pipeline.training import training_set

COMMANDS = ("generate", "render", "gallery", "evaluate", "prepare", "train", "status", "verify", "demo", "benchmark")


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Iterator[Path]:
    """The folder in which all files of these tests lie, temporary ones too: a dataset and a photograph."""
    with only_in(tmp_path_factory.mktemp("fuzz")) as folder:
        make_dataset(folder / "float16", "float16")
        Image.open(PHOTOS / "face.jpg").save(folder / "photo.png")
        yield folder


def commands(ground: Path, weights: Path, photos: str) -> dict[str, tuple[type, Callable, dict[str, list[str]]]]:
    """Every command as far as it goes without Ray and without writing, and what makes sense as its options."""
    splats, out = str(ground / "float16"), [str(ground / "out"), str(ground / "out/x")]

    def plan_drawing(options: render.Options) -> None:
        source = SplatDataset.open(options.splats)
        plan = render.make_plan(options, source)
        plan_file.check(Store(options.out), plan)
        source.require(plan.pictures)
        if plan.motion == "rollout":
            rollout_file.require(source, plan.pictures)

    def plan_page(options: gallery.Options) -> None:
        source = SplatDataset.open(options.splats)
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


def try_commands(command: tuple[type, Callable, dict[str, list[str]]], number: int, ground: Path) -> None:
    options, main, values = command
    try_inputs(command_lines(options, values), number, lambda line: outcome(options, main, line, ground))


@pytest.mark.parametrize("name", COMMANDS)
def test_command_lines_are_taken_or_refused_in_one_line(
    name: str, ground: Path, tiny_weights: Path, prepared_cats: str
) -> None:
    try_commands(commands(ground, tiny_weights, prepared_cats)[name], 12, ground)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_ten_thousand_command_lines(name: str, ground: Path, tiny_weights: Path, prepared_cats: str) -> None:
    try_commands(commands(ground, tiny_weights, prepared_cats)[name], EACH, ground)


def test_a_name_with_a_line_break_stays_in_its_line(ground: Path) -> None:
    line = ["--out", str(ground / "x"), "--count", "1", "--weights", "one\ntwo\x1b[2J"]
    assert "one two\\x1b[2J" in outcome(generate.Options, generate.main, line, ground)


def test_a_shape_of_no_end_is_refused_before_anything_is_written(ground: Path, prepared_cats: str) -> None:
    line = ["--photos", prepared_cats, "--out", str(ground / "run"), "--steps", "1", "--width", str(24 * 10**6)]
    assert "width is 24000000, not a whole number" in outcome(train.Options, train.main, line, ground)
