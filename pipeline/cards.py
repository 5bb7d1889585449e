"""Dataset cards: the README.md beside the data, with the front matter by which Hugging Face's tools find the data."""

from __future__ import annotations

from models.splats import MEANINGS, PARAMETERS
from pipeline.dataset import FORMULAS, LAYOUT, values_per_picture
from pipeline.plan import GenerationPlan, Plan, RenderPlan
from pipeline.production import Summary
from pipeline.sinks import FORMATS

_FRONT_MATTER = """---
configs:
- config_name: default
  data_files: {data_files}
tags:
- splats
- synthetic
---
"""
_TERMS = "Pictures made by a model inherit the terms of its weights: see the model card of the weights.\n"


def splats_card(plan: GenerationPlan, summary: Summary) -> str:
    """The card of a generated dataset."""
    parameters = "\n".join(f"| {i} | `{name}` | {MEANINGS[name]} |" for i, name in enumerate(PARAMETERS))
    formulas = "\n".join(f"- **{name}**: {text}" for name, text in FORMULAS.items())
    return f"""{_FRONT_MATTER.format(data_files="data/*.parquet")}
# {plan.count:,} cats as splats

{summary.pictures:,} generated pictures in {summary.shards:,} Parquet files, {summary.bytes / 1e6:,.1f} MB. Each is
{plan.rows} x {plan.columns} patches of {plan.splats_per_patch} splats, to be drawn at any resolution, without the model
that made them: `python -m jobs.render --splats . --out pictures --size 1024`.

    datasets.load_dataset("parquet", data_files="data/*.parquet")

| column | type | |
| --- | --- | --- |
| `index` | int64 | number of the picture, 0 to {plan.count - 1} |
| `splats` | list of {values_per_picture(plan)} float16 | {plan.rows} rows, {plan.columns} columns, \
{plan.splats_per_patch} splats, {len(PARAMETERS)} numbers |

{LAYOUT}

| | name | meaning |
| --- | --- | --- |
{parameters}

{formulas}

Made with the kernel `{plan.kernel}`, neighbourhood {plan.neighbourhood}. The same text stands in each file's metadata.

{_plan_section(plan)}
{_TERMS}"""


def pictures_card(plan: RenderPlan, summary: Summary) -> str:
    """The card of a rendered dataset."""
    format = FORMATS[plan.output]
    front = _FRONT_MATTER.format(data_files=format.data_files) if format.data_files else ""
    return f"""{front}
# {summary.pictures:,} pictures drawn from splats

{plan.width} x {plan.height} pixels, {plan.encoding}, kernel `{plan.kernel}`, view `{plan.view}`;
{summary.shards:,} {format.contents}, {summary.bytes / 1e6:,.1f} MB.

{_plan_section(plan)}
{_TERMS}"""


def _plan_section(plan: Plan) -> str:
    return f"""## Plan

`plan.json` decides every byte of the data; `_stats/` holds the checksum, host and library versions of each shard.

```json
{plan.to_json()}```
"""
