"""How evaluations are told in tables: which figures, in which order, to how many places, and how samples were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Figures in the order of a table's columns, and the places they are told to.
FIGURES = {
    "rfid": 2, "fid": 2, "is": 2, "kid": 4, "precision": 3, "recall": 3, "density": 3, "coverage": 3,
    "worst_coverage": 3,
}  # fmt: skip


def counted(number: int, what: str) -> str:
    """1, "step" -> "1 step"; 4 -> "4 steps"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def way(row: Mapping[str, Any]) -> str:
    """How a row's images were sampled, its steps aside."""
    if "sampler" not in row:
        return "reconstructed"
    sampler = row["sampler"]
    words = [sampler["use"]]
    words += [f"γ={sampler['gamma']:g}"] if "gamma" in sampler else []
    words += [sampler["noise"]] if "noise" in sampler else []
    words += [f"truncated {sampler['truncation']:g}"] if sampler.get("truncation") else []
    guidance = "" if row["guidance"] == 1 else f", {row['position']} {row['guidance']:g}"
    statistics = f", {row['recalibration']} statistics" if "recalibration" in row else ""
    return " ".join(words) + guidance + statistics


def plot_steps(rows: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Each figure against steps, a line a guidance and sampler; False where there is one number of steps only."""
    from spheregen.plots import lines  # not at the top: it imports torch, and commands must be listed without it

    sampled = [row for row in rows if "sampler" in row]
    if len({row["steps"] for row in sampled}) < 2:
        return False
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    ways = {way(row): (guidance_of(row), prior_of(row)) for row in sampled if row["steps"] > 1}
    for name in FIGURES:
        for label, (guidance, prior) in ways.items():
            # One step makes use of the prior alone: it is the first point of every sampler that has it.
            like = [row for row in sampled if name in row and guidance_of(row) == guidance
                    and ((row["steps"] == 1 and prior_of(row) == prior) or way(row) == label)]  # fmt: skip
            if like:
                title = like[0]["titles"].get(name, name)
                panels.setdefault(title, {})[label] = [(row["steps"], row[name]) for row in like]
    if panels:
        lines(panels, "steps", path)
    return bool(panels)


def guidance_of(row: Mapping[str, Any]) -> tuple[float, str]:
    return row["guidance"], row["position"]


def prior_of(row: Mapping[str, Any]) -> float | None:
    return row["sampler"].get("truncation")
