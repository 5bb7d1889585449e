"""Which photographs judge pictures, and how."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from models.errors import UserError
from models.perceptual import load_lpips
from pipeline.training.judging import likeness
from pipeline.training.training_set import load


def test_large_photographs_judge_in_windows(prepared_cats: str, vgg_file: Path) -> None:
    seen = load(prepared_cats, heldout=False, detail=128)
    lpips = load_lpips(str(vgg_file))
    judge = likeness(seen, lpips, "cpu", remembered=5)
    assert judge.windows is not None
    assert (judge.pixels, judge.windows.quarters, judge.windows.remembered) == (128, False, 5)
    # A component for each 8 views: every second photograph, or four windows of it, and mirrored.
    assert len(seen.small) == len(seen.large) == 9
    assert (judge.whole.axes.shape[1], judge.windows.axes.shape[1]) == (2 * 5 // 8, 4 * 2 * 5 // 8)
    few = dataclasses.replace(seen, large=seen.large[:3], large_rows=seen.large_rows[:3])
    with pytest.raises(UserError, match=r"3 photographs of 128 px .* --objective.detail-photographs 0 leaves them out"):
        likeness(few, lpips, "cpu")
    none = dataclasses.replace(seen, large=seen.large[:0], large_rows=seen.large_rows[:0])
    assert likeness(none, lpips, "cpu").windows is None
