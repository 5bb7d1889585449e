"""Dataset cards: the README.md beside the data, with the front matter by which Hugging Face's tools find the data."""

from __future__ import annotations

from itertools import pairwise

from models.splats import LIMITS, MEANINGS, PARAMETERS
from pipeline.datasets.codec import CODECS, Shape
from pipeline.datasets.plan import GenerationPlan, Plan, RenderPlan
from pipeline.datasets.splat_dataset import FORMULAS, layout, schema
from pipeline.datasets.summary import Summary

_TERMS = "Pictures made by a model inherit the terms of its weights: see the model card of the weights.\n"
# Hugging Face's categories, by what has fewer pictures.
_STEPS = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
_SIZES = {10**3: "n<1K"} | {10 ** (i + 4): f"{low}<n<{high}" for i, (low, high) in enumerate(pairwise(_STEPS))}


def splats_card(plan: GenerationPlan, summary: Summary) -> str:
    """The card of a generated dataset; its code reads what is beside it."""
    shape = Shape.of(plan)
    columns = "\n".join(f"| `{f.name}` | `{f.type}` |" for f in schema(plan))
    parameters = "\n".join(
        f"| `{name}` | {MEANINGS[name]} | {'{} to {}'.format(*LIMITS[name]) if name in LIMITS else 'any'} |"
        for name in PARAMETERS
    )
    formulas = "\n".join(f"- **{name}**: {text}" for name, text in FORMULAS.items())
    return f"""{_front_matter(f"{plan.count:,} cats as splats", summary, "data/*.parquet")}
# {plan.count:,} cats as splats

{summary.pictures:,} generated pictures in {summary.shards:,} Parquet files, {summary.bytes / 1e6:,.1f} MB. Each is
{plan.rows} x {plan.columns} patches of {plan.splats_per_patch} splats, to be drawn at any resolution, without the model
that made them: `python -m jobs.render --splats . --out pictures --size 1024`, or in Python, with splatcats installed,

```python
from pipeline import open_dataset

picture = open_dataset(".")[0].draw(512)
```

## Reading without splatcats

```python
import datasets
import numpy as np

rows = datasets.load_dataset("parquet", data_files="data/*.parquet", split="train")
row = rows[0]
{CODECS[plan.precision].example(shape)}```

`splats` is then an array of {plan.rows} rows, {plan.columns} columns, {plan.splats_per_patch} splats and \
{len(PARAMETERS)} numbers. In SQL, with DuckDB:

```sql
SELECT * FROM 'data/*.parquet' WHERE index = 0
```

| column | type |
| --- | --- |
{columns}

{layout(plan)}

| parameter p | meaning | range |
| --- | --- | --- |
{parameters}

## Drawing

{formulas}

Made with the kernel `{plan.kernel}`, neighbourhood {plan.neighbourhood}. The same text stands in each file's metadata.

{_plan_section(plan)}
{_TERMS}"""


def pictures_card(plan: RenderPlan, summary: Summary, *, contents: str, data_files: str) -> str:
    """The card of a rendered dataset; `contents`: what its shards are; `data_files`: as in `_front_matter`."""
    return f"""{_front_matter(f"{summary.pictures:,} cats", summary, data_files)}
# {summary.pictures:,} pictures drawn from splats

{plan.width} x {plan.height} pixels, {plan.encoding}, kernel `{plan.kernel}`, view `{plan.view}`;
{summary.shards:,} {contents}, {summary.bytes / 1e6:,.1f} MB.

{_plan_section(plan)}
{_TERMS}"""


def _front_matter(name: str, summary: Summary, data_files: str) -> str:
    """What Hugging Face's Hub and `datasets` take from a card; `data_files`: where they find data, if anywhere."""
    size = next((text for limit, text in _SIZES.items() if summary.pictures < limit), "n>1T")
    files = f"configs:\n- config_name: default\n  data_files: {data_files}\n" if data_files else ""
    return f"""---
pretty_name: {name}
{files}size_categories:
- {size}
task_categories:
- unconditional-image-generation
tags:
- splats
- synthetic
- cats
---"""


def _plan_section(plan: Plan) -> str:
    return f"""## Plan

`plan.json` decides every byte of the data; `_stats/` holds the checksum, host and library versions of each shard.

```json
{plan.to_json()}```
"""
