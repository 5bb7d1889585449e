"""Command lines: `python -m jobs.NAME`, locally or as the entry point of a Ray job."""
