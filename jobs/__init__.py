"""Command lines: `python -m jobs.NAME`, locally or as the entry point of a Ray job."""

import os

# PyTorch's threads on a CPU wait for each other spinning unless told otherwise when it is imported: beside other work a
# picture then takes a hundred times as long to draw.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A private Ray, started where there is no cluster to join, listens to this machine alone. Ray reads this variable, by
# which it otherwise tells the systems that clusters are made of, when it is imported.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
