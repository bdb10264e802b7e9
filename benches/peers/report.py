"""Tables, JSON and a picture of what was measured."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from rows import Figures, Row

Measured = dict[str, Any]

COLOURS = {"standpipe": "#1f6fb4", "the engine": "#888888"}


def figures_of(rounds: list[Measured], unit_seconds: float) -> Figures:
    def mid(value: Any) -> float:
        return float(median(value(one) for one in rounds))

    return Figures(
        rate=mid(lambda one: one["rate"]),
        cpu_per_gb=mid(lambda one: one["cpu_seconds"] / one["bytes"] * 1e9),
        seconds=mid(lambda one: one["seconds"]),
        first_seconds=mid(lambda one: one["first_seconds"]) / unit_seconds,
        waited_share=mid(lambda one: one["waited_share"]),
        cpu_per_sample=mid(lambda one: one["cpu_seconds"] / one["samples"]),
        peak_bytes=mid(lambda one: one["peak_bytes"]),
    )


class Report:
    """Of all rows that were run."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self.missed = 0

    def add(self, row: Row, measured: dict[str, list[Measured]], unit_seconds: float) -> None:
        """Prints the row's table and remembers it."""
        figures = {label: figures_of(rounds, unit_seconds) for label, rounds in measured.items()}
        print(f"\n{row.name}: {row.title}")
        baseline = next(iter(figures.values()))
        first = "first" if row.data == "first" else "1st ms"
        print(
            f"  {'reader':<38}{row.unit:>10}{'min..max':>18}{'ratio':>7}{'CPU s/GB':>9}{'MiB':>6}{first:>8}{'waits':>7}"
        )
        for label, one in figures.items():
            rates = [found["rate"] for found in measured[label]]
            span = f"{_short(min(rates))}..{_short(max(rates))}"
            print(
                f"  {label:<38}{_short(one.rate):>10}{span:>18}{one.rate / baseline.rate:>7.2f}{one.cpu_per_gb:>9.2f}"
                f"{one.peak_bytes / 2**20:>6.0f}{_short(one.first_seconds):>8}{one.waited_share:>7.3f}"
            )
        aims = []
        for aim in row.aims:
            value = aim.measure(figures)
            wanted = f"at least {aim.least}" if aim.least is not None else f"at most {aim.most}"
            met = aim.is_met(value)
            self.missed += not met
            print(f"  aim: {aim.what}: {value:.3g} ({wanted}){'' if met else '  MISSED'}")
            aims.append({"what": aim.what, "value": value, "wanted": wanted, "met": met})
        ours = {name: one for name, one in figures.items() if name.startswith("standpipe")}
        peers = {name: one for name, one in figures.items() if not name.startswith(("standpipe", "the engine"))}
        if row.data != "first" and row.name != "stall" and ours and peers:
            ahead = max(ours.values(), key=lambda one: one.rate).rate
            for name, one in peers.items():
                if one.rate > ahead:
                    print(f"  faster than ours: {name}")
        self._rows.append(
            {
                "row": row.name,
                "title": row.title,
                "unit": row.unit,
                "aims": aims,
                "readers": {label: {**vars(one), "rounds": measured[label]} for label, one in figures.items()},
            }
        )

    def write(self, folder: Path, about: dict[str, Any]) -> None:
        """peers.json and peers.svg."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "peers.json").write_text(json.dumps({"about": about, "rows": self._rows}, indent=1) + "\n")
        (folder / "peers.svg").write_text(_picture(self._rows))


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.2f}"


def _picture(rows: list[dict[str, Any]]) -> str:
    """A bar for each reader, row by row, as long as its rate; ours are blue."""
    line, width, left = 18, 900, 290
    parts: list[str] = []
    y = 10
    for row in rows:
        if row["row"] in ("first", "stall", "cpu"):
            continue
        y += 26
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{escape(row["title"])} ({row["unit"]})</text>')
        top = max(one["rate"] for one in row["readers"].values())
        for label, one in row["readers"].items():
            y += line
            long = max(1.0, (width - left - 90) * one["rate"] / top)
            colour = (
                "#1f6fb4" if label.startswith("standpipe") else "#888" if label.startswith("the engine") else "#d98b2b"
            )
            parts.append(f'<text x="{left - 8}" y="{y}" text-anchor="end">{escape(label)}</text>')
            parts.append(f'<rect x="{left}" y="{y - 11}" width="{long:.0f}" height="13" fill="{colour}"/>')
            parts.append(f'<text x="{left + long + 6:.0f}" y="{y}">{_short(one["rate"])}</text>')
    style = 'font-family="sans-serif" font-size="12"'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + 20}" {style}>\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )
