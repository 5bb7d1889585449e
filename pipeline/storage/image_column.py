"""Columns of encoded pictures in Parquet, such that Hugging Face's `datasets` shows pictures and not structs."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema of these columns, those of type PICTURE being pictures; its metadata say so."""
    features = {
        name: {"_type": "Image"} if kind == PICTURE else {"dtype": str(kind), "_type": "Value"}
        for name, kind in columns.items()
    }
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(list(columns.items()), metadata=about)
