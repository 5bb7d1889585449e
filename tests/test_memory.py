"""Memory of large tensors is kept for the next ones."""

import ctypes
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, numpy as np
from pipeline.execution.memory import keep_freed
if sys.argv[1] == "kept":
    keep_freed()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(100_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_a_large_array_takes_the_place_of_one_that_is_gone_without_asking_the_system():
    def faults(how: str) -> int:
        out = subprocess.run(
            [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True, timeout=60
        )
        return int(out.stdout)

    # Of pages that the system clears, of 4 KB or of 2 MB.
    assert faults("usual") > 20
    assert faults("kept") < 10
