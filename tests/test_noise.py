"""Noise on the CPU, and the same made by the GPU's kernel: on a device if there is one, else interpreted."""
# ruff: noqa: E402 - the interpreter is chosen before anything imports Triton

import os
from pathlib import Path

import numpy.random
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Read when kernels are declared, so before Triton is imported.
    os.environ["TRITON_INTERPRET"] = "1"

from models.noise import slerp, white_noise

EDGE = 3.6541528853610088  # of the ziggurat's tail


def test_noise_keeps_its_values():
    # Recorded. If this fails, a library draws other numbers: every dataset would continue with other pictures.
    drawn = white_noise(3, [0, 5], 64, 64)
    assert drawn.shape == (2, 3, 64, 64)
    assert drawn.dtype == torch.float32
    first = [[1.840052604675293, -1.0379294157028198, 0.3216513693332672, -0.08676934242248535]]
    first += [[1.2475074529647827, 0.1883307844400406, 0.6163597702980042, -0.394992858171463]]
    assert drawn[:, 0, 0, :4].tolist() == first
    assert drawn[1, 2, 63, 61:].tolist() == [-0.49198105931282043, 0.5118773579597473, -0.6888875365257263]
    assert drawn.double().sum(dim=(1, 2, 3)).tolist() == pytest.approx([7.722429520865262, 183.1508105310786])


def test_noise_of_a_picture_depends_on_seed_and_index_alone():
    together = white_noise(1, [4, 2**40, 7], 8, 8)
    for row, index in enumerate([4, 2**40, 7]):
        assert torch.equal(white_noise(1, [index], 8, 8)[0], together[row])
    others = torch.cat(
        [together, white_noise(2, [4, 7], 8, 8), white_noise(4, [1], 8, 8), white_noise(2**33 + 1, [4], 8, 8)]
    ).flatten(1)
    assert torch.pdist(others).min() > 5
    many = white_noise(0, range(200), 16, 16)
    assert many.mean().item() == pytest.approx(0, abs=0.01)
    assert many.std().item() == pytest.approx(1, abs=0.01)


def test_the_kernels_tables_are_those_of_numpys_library():
    noise_triton = pytest.importorskip("models.noise_triton", reason="the kernel needs Triton (Linux)")
    library = Path(numpy.random._generator.__file__).read_bytes()
    for table in noise_triton._tables(torch.device("cpu")):
        assert table.numpy().tobytes() in library


MANY = [0, 5, 2**40 + 3, *range(100, 167)]  # neither few nor whole programs
# The noise of picture 3626 has a number that lies exactly where a strip begins to be in doubt.
AT_A_BOUND = (1, [3626], 24, 24)


@pytest.mark.parametrize(
    ("seed", "indices", "height", "width"),
    [(0, MANY, 12, 16), (2**63 + 5, MANY[:40], 12, 16), AT_A_BOUND, (2**40 + 1, [7, 2**62], 3, 7), (3, [], 8, 8)],
)
def test_a_gpu_makes_the_same_noise(seed, indices, height, width):
    noise_triton = pytest.importorskip("models.noise_triton", reason="the kernel needs Triton (Linux)")
    expected = white_noise(seed, indices, height, width)
    found = noise_triton.white_noise(seed, torch.tensor(indices, dtype=torch.int64, device=DEVICE), height, width)
    assert found.shape == expected.shape
    # What is not equal to the last bit is in the tail, where a library's logarithm may be rounded otherwise.
    differ = found.cpu() != expected
    assert (expected[differ].abs() > EDGE).all()
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=0)
    assert indices is not MANY or (expected.abs() > EDGE).any()


def test_the_noises_of_a_morph_keep_their_length():
    a, b = white_noise(7, [2, 13], 64, 64)
    way = slerp(a, b, torch.tensor([0.0, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(way[[0, 3]], torch.stack([a, b]))
    torch.testing.assert_close(way.flatten(1).norm(dim=1), a.norm().expand(4), rtol=0.02, atol=0)
    assert (0.5 * (a + b)).norm() < 0.75 * a.norm()  # what a straight line would do
