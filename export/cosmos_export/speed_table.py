"""What follows from measured seconds: ratios, rates, shares of the peak; as a table and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cosmos_export.turns import Measured

HEADINGS = ("", "s/call", "ratio", "tokens/s", "TFLOP/s", "of peak", "MiB", "GPU MiB", "first s", "s/clip")
"""Of the table. The ratio is how often a row is called while the first is called once; `first s` is opening it too."""


def figures(
    rows: Sequence[Measured], tokens: int, operations: int, peak: float | None, whole: Mapping[str, Measured] = {}
) -> list[dict[str, Any]]:
    """What follows from the seconds of every row; the ratio is to the first that ran."""
    first, made = next((row.seconds for row in rows if row.seconds), None), []
    for row in rows:
        seconds, rates = row.seconds, {}
        if seconds and first:
            rates = {
                "ratio": first / seconds,
                "tokens_per_second": tokens / seconds,
                "teraflops": operations / seconds / 1e12,
                "share_of_peak": operations / seconds / peak if peak else None,
            }
        if row.name in whole:
            rates["clip_seconds"] = whole[row.name].seconds
            rates["clip_failure"] = whole[row.name].failure
        made.append({"seconds": seconds, **rates, **asdict(row)})
    return made


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as the headings go."""

    def shown(name: str, form: str) -> str:
        return form.format(row[name]) if row.get(name) is not None else ""

    return [
        row["name"],
        shown("seconds", "{:.4g}"),
        shown("ratio", "{:.2f}"),
        shown("tokens_per_second", "{:,.0f}"),
        shown("teraflops", "{:.3g}"),
        shown("share_of_peak", "{:.0%}"),
        shown("memory_mib", "{:,.0f}"),
        shown("gpu_mib", "{:,.0f}"),
        shown("first_seconds", "{:.1f}"),
        shown("clip_seconds", "{:.3g}"),
    ]


def title(table: Mapping[str, Any]) -> str:
    """Size and peak in one line."""
    size, batch = "x".join(map(str, table["clip"])), table["batch"]
    peak = f"{table['peak'] / 1e12:.3g} TFLOP/s" if table["peak"] else "unknown"
    work = f"{table['tokens']:,} tokens, {table['operations'] / 1e9:,.3g} GFLOP a call"
    return f"{size}, batch {batch}: {work}; peak {peak} ({table['peak_of']})"


def columns(table: Mapping[str, Any]) -> list[list[str]]:
    """Headings and the rows that ran, without columns in which nothing stands."""
    lines = [list(HEADINGS), *(cells(row) for row in table["rows"] if not row["failure"])]
    used = [n for n in range(len(HEADINGS)) if any(line[n] for line in lines[1:])]
    return [[line[n] for n in used] for line in lines]


def failed(table: Mapping[str, Any]) -> list[str]:
    """A line for every row that did not run, and every sampling."""
    lines = [f"{row['name']} failed: {row['failure']}" for row in table["rows"] if row["failure"]]
    whole = [(row["name"], row.get("clip_failure")) for row in table["rows"]]
    return lines + [f"{name} failed to sample: {why}" for name, why in whole if why]


def text(table: Mapping[str, Any]) -> str:
    """One size as aligned lines; what failed stands below."""
    lines = columns(table) if any(row["seconds"] for row in table["rows"]) else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(c.rjust(w) if n else c.ljust(w) for n, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    ]
    return "\n".join([title(table), *aligned, *failed(table)])


def failures(tables: Sequence[Mapping[str, Any]]) -> bool:
    """Whether nothing at all was measured."""
    return not any(row["seconds"] for table in tables for row in table["rows"])


def write_json(
    path: Path,
    tables: Sequence[Mapping[str, Any]],
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
    **more: Any,
) -> None:
    """All that was measured, with machine, versions and date."""
    record = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "versions": versions}
    path.write_text(json.dumps(record | more | {"tables": tables}, indent=1) + "\n", encoding="utf-8")
