"""The batches that training is fed."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pipeline.training.batches import Pictures, crop, make_batch
from pipeline.training.recipe import Recipe
from pipeline.training.training_set import TrainingSet, load

CPU = torch.device("cpu")


def test_batches_depend_on_seed_step_and_rank_alone_wherever_the_pictures_lie(photographs: TrainingSet) -> None:
    recipe = Recipe(batch=8)
    resident, streamed = Pictures(photographs, CPU), Pictures(photographs, CPU)
    streamed.resident = False
    seen = set()
    for step in range(3):
        for rank in range(2):
            one, other = (make_batch(recipe, pictures, step, 0, rank, 2) for pictures in (resident, streamed))
            assert one.keys() == other.keys() == {"clean", "noise", "t", "hints", "detailed", "region"}
            assert one.pop("region") == other.pop("region")
            for name, tensor in one.items():
                torch.testing.assert_close(tensor, other[name], rtol=0, atol=0)
            seen.add(float(one["noise"].sum()))
    assert len(seen) == 6


def test_a_batch_shows_photographs_as_they_are_or_mirrored_and_large_beside_small(photographs: TrainingSet) -> None:
    pictures = Pictures(photographs, CPU)
    many = pictures.detailed_in(32)
    assert 0 < many < 32
    small, large = pictures.draw(32, many, torch.Generator().manual_seed(0))
    known = photographs.small.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    mirrored = []
    for picture in small.numpy():
        errors = [np.abs(known - side).max(axis=(1, 2, 3)).min() for side in (picture, picture[:, :, ::-1])]
        assert min(errors) < 1e-6
        mirrored.append(int(np.argmin(errors)))
    assert 0 < sum(mirrored) < 32
    # The large picture reduced is the small one, so it is the same photograph, mirrored alike.
    halved = torch.nn.functional.avg_pool2d(large, large.shape[-1] // 64)
    assert (halved - small[:many]).abs().max() < 0.02


@pytest.mark.parametrize("large", [1, 7, 39, 40])
def test_every_photograph_is_drawn_as_often_as_any_other(large: int) -> None:
    number = np.arange(40, dtype=np.uint8)[:, None, None, None]
    rows = np.random.default_rng(0).permutation(40)[:large]
    pictures = Pictures(TrainingSet(number * np.ones((1, 2, 2, 3), np.uint8), number[rows], rows), CPU)
    generator, drawn = torch.Generator().manual_seed(0), torch.zeros(40)
    for _ in range(1000):
        small, _ = pictures.draw(8, pictures.detailed_in(8), generator)
        drawn += torch.bincount(((small[:, 0, 0, 0] + 1) * 127.5).round().long(), minlength=40)
    # 200 times each, with a deviation of 14.
    assert 140 < drawn.min() < drawn.max() < 260


def test_without_large_photographs_batches_have_none(prepared_cats: str) -> None:
    pictures = Pictures(load(prepared_cats, heldout=False, detail=None), CPU)
    batch = make_batch(Recipe(batch=2), pictures, 0, 0, 0, 1)
    assert batch.keys() == {"clean", "noise", "t", "hints"}
    assert batch["clean"].shape == (2, 3, 64, 64)


def test_a_crop_is_the_region_it_names_at_every_scale() -> None:
    across = torch.linspace(-1, 1, 129).unfold(0, 2, 1).mean(1)  # the value at every pixel's centre
    ramp = torch.stack(torch.meshgrid(across, across, indexing="ij"))[None]
    regions = set()
    for seed in range(200):
        window, region = crop(ramp, 64, random.Random(seed))
        assert window.shape == (1, 2, 64, 64)
        regions.add(region)
        left, top, right, bottom = (2 * edge - 1 for edge in region)
        for axis, (low, high) in enumerate(((top, bottom), (left, right))):
            edges = torch.linspace(low, high, 65).unfold(0, 2, 1).mean(1)
            error = (window[0, axis].mean(1 - axis) - edges).abs()
            assert error[2:-2].max() < 2e-3  # a pixel is 0.016; a reduced ramp bends at its ends
            assert error.max() < 0.01
    widths = {round(128 * (region[2] - region[0])) for region in regions}
    assert {64, 128} < widths  # full resolution, the whole, and between
    assert (0.0, 0.0, 1.0, 1.0) in regions
