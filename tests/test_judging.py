"""Which photographs judge pictures, and how."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.train import Options, make_run
from models.errors import UserError
from models.losses import Objective
from models.perceptual import load_lpips
from models.resemblance import EDITION, Resemblance
from pipeline.training import judging
from pipeline.training.batches import as_image
from pipeline.training.judging import likeness
from pipeline.training.training_set import check, load


def test_large_photographs_judge_in_windows(
    prepared_cats: str, vgg_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = load(prepared_cats, heldout=False, detail=128)
    shown: list[torch.Tensor] = []

    class Watched(Resemblance):
        def __init__(self, trunk, photographs, **options) -> None:
            pictures = list(photographs)
            shown.append(torch.cat(pictures))
            super().__init__(trunk, pictures, **options)

    monkeypatch.setattr(judging, "Resemblance", Watched)
    lpips = load_lpips(str(vgg_file))
    judge = likeness(seen, lpips, "cpu", remembered=5)
    assert judge.windows is not None
    assert (judge.pixels, judge.windows.quarters, judge.windows.remembered) == (128, False, 5)
    assert judge.whole.quarters
    small, windows = shown
    assert torch.equal(small, as_image(torch.from_numpy(seen.small)))
    assert windows.shape == (4 * len(seen.large), 3, 64, 64)
    assert len(windows.flatten(1).unique(dim=0)) == len(windows)
    rows, columns = (torch.from_numpy(seen.large[0]).permute(2, 0, 1).float() / 127.5 - 1).unfold(1, 64, 1), 64
    inside = rows.unfold(2, columns, 1)  # every window there is of the first
    assert (inside == windows[0][:, None, None]).all(dim=(0, 3, 4)).any()

    few = dataclasses.replace(seen, large=seen.large[:7], large_rows=seen.large_rows[:7])
    assert likeness(few, lpips, "cpu").windows is None
    with pytest.raises(UserError, match="there are 7 photographs to train on"):
        likeness(dataclasses.replace(few, small=seen.small[:7]), lpips, "cpu")


@pytest.mark.parametrize(
    ("given", "weight"),
    [
        ({"distil": 4, "detail": 128}, 0.03),
        ({"distil": 4, "detail": 4096}, 0.0),  # no photograph is so large
        ({"distil": 4, "detail": 0}, 0.0),
        ({"distil": 4, "detail": 128, "objective": Objective(photographs=0.0, detail_photographs=0.5)}, 0.0),
        ({"detail": 128}, 0.0),
    ],
)
def test_detail_is_judged_for_students_that_see_large_photographs(
    prepared_cats: str, given: dict[str, Any], weight: float
) -> None:
    """Elsewhere the recipe says none, as it was before there was any: such runs go on."""
    options = Options(out="out", photos=prepared_cats, lpips="vgg", steps=1, **given)
    run = make_run(options, options.model(), None, None, check(prepared_cats)[2], gpus=False)
    assert run.recipe.objective.detail_photographs == weight
    assert run.recipe.photographs == check(prepared_cats)[2]["fingerprint"]
    assert run.recipe.resemblance == (EDITION if given.get("distil") and given.get("objective") is None else 0)
