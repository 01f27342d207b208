"""``python -m benchmarks.throughput.page``: ``docs/results.md`` and its plot, from the figures of ``benchmarks.throughput``.

``benchmarks/out/throughput.json`` has all contenders on one size, ``benchmarks/out/sizes.json`` this product on growing ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

_ROOT = Path(__file__).parents[2]
_FIGURES, _SIZES = (_ROOT / "benchmarks" / "out" / name for name in ("throughput.json", "sizes.json"))
_PAGE, _PLOT = _ROOT / "docs" / "results.md", _ROOT / "docs" / "results.svg"
_NAMES = {
    "product": "this product, from file to published file",
    "in_memory": "scikit-learn `predict_proba` alone, data in memory",
    "script": "script: `read_parquet`, predict, `to_parquet`",
    "pyfunc": "the same with `mlflow.pyfunc`",
    "ray": "Ray Data `map_batches`",
    "spark": "Spark `mapInPandas`",
}
_TITLES = {
    "gradient_boosting": "Gradient boosting, 100 trees (the built-in trainer)",
    "logistic_regression": "Logistic regression, one-hot categories",
    "random_forest": "Random forest, 100 trees of depth 12",
}
_INTRODUCTION = """\
# What was measured, beside what, and on which machine?

A partition of 20 columns (14 numbers, 6 categories of 3 to 400 texts) with a key and a time, compressed with zstd in row
groups of 500,000 rows. Every contender ran in a process of its own, one after the other, on the same processors. *Best* is the
shortest of the repetitions after the first, *cold* is the first; start-up (imports, the cluster, loading the model) is apart.
Memory is the peak of the whole process tree, shared pages counted once. This page and its plot are written by `make bench`.
"""


def main() -> None:
    """Write the page and the plot."""
    found = json.loads(_FIGURES.read_text())
    machine = found["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("scikit-learn", "pandas", "pyarrow", "numba", "mlflow"))
    parts = [
        _INTRODUCTION,
        f"Machine: {machine['processor']}, {machine['cores']} cores used, {machine['memory_gb']} GB; {machine['system']}, "
        f"Python {machine['python']}, {versions}. Load when it began: {machine['load_before']}.\n",
        "![Rows per second](results.svg)\n",
    ]
    for model, sizes in found["models"].items():
        parts.append(f"## {_TITLES.get(model, model)}\n")
        parts += [_table(size) for size in sizes]
    if _SIZES.exists():
        parts.append(_growth(json.loads(_SIZES.read_text())["models"]["gradient_boosting"]))
    _PAGE.write_text("\n".join(parts))
    _plot(found["models"])


def _table(size: dict[str, Any]) -> str:
    lines = [
        f"{size['rows']:,} rows:\n",
        "| | best | cold | start-up | rows/s | times this product's | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in size["contenders"].items():
        if "error" in one:
            lines.append(f"| {_NAMES[name]} | {one['error']} | | | | | |")
            continue
        times = "" if one["times_of_product"] is None else f"{one['times_of_product']:.2f}"
        lines.append(
            f"| {_NAMES[name]} | {one['best']:.2f} s | {one['cold']:.2f} s | {one['startup']:.1f} s | "
            f"{one['rows_per_second']:,.0f} | {times} | {one['peak_mb']:,.0f} MB |"
        )
    if "largest_difference" in size:
        lines.append(
            f"\nPublished scores differ from scikit-learn's by at most {size['largest_difference']:.1e}, "
            f"decisions in {size['decisions_that_differ']} rows."
        )
    return "\n".join(lines) + "\n"


def _growth(sizes: list[dict[str, Any]]) -> str:
    lines = ["## This product on larger partitions\n", "| rows | best | rows/s | peak memory |", "|---|---|---|---|"]
    for size in sizes:
        one = size["contenders"]["product"]
        cells = (
            f"{size['rows']:,}",
            f"{one['best']:.1f} s",
            f"{one['rows_per_second']:,.0f}",
            f"{one['peak_mb']:,.0f} MB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _plot(models: dict[str, list[dict[str, Any]]]) -> None:
    mpl.rcParams.update({"svg.hashsalt": "results", "font.size": 8})
    figure = Figure(figsize=(9, 1.2 + 1.3 * len(models)), layout="constrained")
    for axes, (model, sizes) in zip(figure.subplots(len(models), 1, squeeze=False)[:, 0], models.items(), strict=True):
        measured = {n: one for n, one in sizes[0]["contenders"].items() if "error" not in one}
        names = list(measured)[::-1]
        bars = axes.barh(
            [_NAMES[name].replace("`", "") for name in names],
            [measured[name]["rows_per_second"] / 1e6 for name in names],
            color=["#1565c0" if name == "product" else "#b0bec5" for name in names],
        )
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.set_title(f"{_TITLES.get(model, model)}: million rows per second, {sizes[0]['rows']:,} rows", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(_PLOT, metadata={"Date": None})


if __name__ == "__main__":
    main()
