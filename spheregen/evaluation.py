"""Evaluation (Section 3): metrics of a run's samples over steps × guidance × place × sampler, as the paper's tables."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spheregen import checkpoint, generation, rng
from spheregen.calibration import check_recalibrations, recalibrated
from spheregen.checkpoint import RunFolder, replacing
from spheregen.errors import SpheregenError
from spheregen.interfaces import FeatureExtractor, ImageSource, Sampler
from spheregen.metrics import METRICS, check_metrics, frechet, measure, title
from spheregen.model import SphereModel
from spheregen.recipe import section_of
from spheregen.reference import (
    Chunks,
    Progress,
    Reference,
    extractor_key,
    processes,
    read_images,
    reference,
    remove,
    spaced,
)
from spheregen.registry import registry

FOLDER = "evaluation"  # in the run folder


@dataclass(frozen=True)
class Cell:
    """One way to sample: a row of a table."""

    steps: int
    guidance: float
    position: str
    sampler: Sampler
    recalibration: str = "trained"

    def settings(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "guidance": self.guidance,
            "position": self.position,
            "sampler": {"use": self.sampler.name, **self.sampler.options.model_dump(mode="json")},
            **({"recalibration": self.recalibration} if self.recalibration != "trained" else {}),
        }


def evaluate(
    run: str | Path,
    *,
    samples: int | None = None,
    steps: Sequence[int] | None = None,
    guidance: Sequence[float] | None = None,
    positions: Sequence[str] | None = None,
    samplers: Sequence[Sampler] | None = None,
    recalibrations: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 250,
    against: ImageSource | None = None,
    features: FeatureExtractor | None = None,
    device: torch.device | str = "cpu",
    trust_plugins: bool = False,
    on_progress: Progress = lambda what, done, total: None,
) -> list[dict[str, Any]]:
    """Metrics of a run's samples, a row for each combination of steps, guidance scale, place of guidance, sampler and
    recalibration of batch statistics (`calibration.recalibrated`).

    What is not given is the recipe's ([evaluation], [features]). metrics: any of fid, is, kid, prc (precision and
    recall), coverage (and density), rfid (of reconstructions). against: images to compare with in place of the
    recipe's data; features: an extractor in place of the recipe's. Sample i is of class i modulo the number of classes,
    and the same whatever the batch and the number of processes.

    Each row is written to RUN/evaluation/ as soon as it is known, with all it depends on; rows that are there already
    are read, and one that was interrupted goes on where it was. Under several processes (accelerate launch, or
    torchrun) all share the work, and all return the rows.

    Raises SpheregenError for metrics that are not known or need more images.
    """
    folder = RunFolder(run)
    model = checkpoint.load(folder.path, device=device, trust_plugins=trust_plugins)
    recipe = model.recipe
    assert recipe is not None
    options = recipe.evaluation
    count = samples or options.samples
    wanted = list(metrics if metrics is not None else options.metrics)
    samplers = samplers or [section_of("sampler", table).build() for table in options.samplers]
    cells = grid(
        model,
        steps or options.steps,
        guidance or options.guidance,
        positions or options.positions,
        samplers,
        recalibrations or options.recalibrations,
    )
    source = against if against is not None else recipe.data.build()
    check_metrics(wanted, count, len(source))
    extractor: FeatureExtractor = (features or recipe.features.build()).to(device).eval()
    if "is" in wanted and extractor(torch.zeros(1, 3, 64, 64, device=device))[1] is None:
        raise SpheregenError(f"metrics: is needs class scores, which features '{extractor.name}' does not give")

    real = reference(source, extractor, count, on_progress)
    about = {
        "samples": count,
        "seed": seed,
        "extractor": extractor.label,
        "extractor_key": extractor_key(extractor),
        "reference": source.name or type(source).__name__,
        "reference_images": len(source),
        "reference_key": real.key,
        "weights": weights_of(folder),
    }
    rows = [
        _row(folder, model, cell, source, count, wanted, seed, batch_size, extractor, real, about, on_progress)
        for cell in cells
    ]
    if "rfid" in wanted:
        rows.append(_reconstructions(folder, model, source, count, batch_size, extractor, real, about, on_progress))
    if processes().is_main_process:
        registry.manager.hook.spheregen_evaluation(run=folder, results={"rows": rows})
    return rows


def grid(
    model: SphereModel,
    steps: Sequence[int],
    guidance: Sequence[float],
    positions: Sequence[str],
    samplers: Sequence[Sampler],
    recalibrations: Sequence[str] = ("trained",),
) -> list[Cell]:
    """All combinations. One step makes use of a sampler's prior alone, and of no batch statistics, and scale 1 of no
    place: those stand once."""
    check_recalibrations(model, recalibrations)
    chosen = list(samplers) or [generation.default(model, "sampler")]
    if not model.shape.num_classes:
        guidance, positions = [1.0], ["none"]
    places = list(positions) or [str(generation.default(model, "conditioner").name)]
    cells: dict[str, Cell] = {}
    for t, scale, place, sampler, how in itertools.product(steps, guidance, places, chosen, recalibrations):
        if t < 1:
            raise SpheregenError(f"steps: expected at least 1, got {t}")
        cell = Cell(t, scale, "none" if scale == 1 else place, sampler, "trained" if t == 1 else how)
        key = {**cell.settings(), **({"sampler": prior_of(sampler, model)} if t == 1 else {})}
        cells.setdefault(json.dumps(key), cell)
    return list(cells.values())


def prior_of(sampler: Sampler, model: SphereModel) -> str:
    """A hash of a draw from a sampler's prior: the same for samplers whose first latents are."""
    shape = (model.shape.tokens, model.shape.latent_channels)
    draw = sampler.prior(shape, rng.generators(0, "prior", [0]))
    return hashlib.sha256(draw.numpy().tobytes()).hexdigest()


def weights_of(folder: RunFolder) -> dict[str, Any]:
    """Which weights are sampled: a hash of the file, what its header says, and how many images they have seen."""
    _, notes, path = folder.weights()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return {"file": path.name, "hash": digest, "average": notes.get("weights", ""), "images": notes.get("images", "")}


def _row(
    folder: RunFolder,
    model: SphereModel,
    cell: Cell,
    source: ImageSource,
    count: int,
    wanted: Sequence[str],
    seed: int,
    batch_size: int,
    extractor: FeatureExtractor,
    real: Reference,
    about: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """One cell's metrics: those already written, and those still to be made."""
    wanted = [name for name in wanted if name != "rfid"]
    place = None if cell.position == "none" else cell.position
    scale = cell.guidance if model.shape.num_classes else None
    passes = generation.network_passes(cell.steps, generation.conditioner_for(model, scale, place))
    settings = {**about, **cell.settings(), "network_passes": passes}
    if cell.recalibration != "trained":
        settings["batch_size"] = batch_size  # batch statistics are those of batches
    name = f"steps{cell.steps}-cfg{cell.guidance:g}-{cell.position}-{cell.sampler.name}"
    way: dict[str, Any] = {"steps": cell.steps, "guidance": scale, "position": place, "sampler": cell.sampler}

    @functools.cache  # made when the first images are
    def calibrated() -> SphereModel:
        return recalibrated(model, cell.recalibration, source=source, batch_size=batch_size, **way)

    def images(begin: int, end: int) -> tuple[Tensor, Tensor]:
        classes = model.shape.num_classes
        labels = torch.arange(begin, end) % max(classes, 1)
        made = generation.sample(
            calibrated(), labels if classes else None, count=end - begin, seed=seed, first=begin,
            batch_size=batch_size, **way,
        )  # fmt: skip
        return made, labels

    def figures(chunks: Chunks, missing: Sequence[str]) -> dict[str, Any]:
        samples = chunks.load()
        return measure(missing, samples, chunks.moments(), real.features, real.moments, model.shape.num_classes > 0)

    return _written(folder, name, settings, wanted, count, images, figures, extractor, progress)


def _reconstructions(
    folder: RunFolder,
    model: SphereModel,
    source: ImageSource,
    count: int,
    batch_size: int,
    extractor: FeatureExtractor,
    real: Reference,
    about: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """rFID: reconstructions of reference images, under the null class, against the reference."""
    picks = spaced(len(source), min(count, len(source)))

    def images(begin: int, end: int) -> tuple[Tensor, Tensor]:
        originals, labels = read_images(source, picks[begin:end])
        made = [generation.reconstruct(model, batch) for batch in originals.split(batch_size)]
        return torch.cat(made), labels

    def figures(chunks: Chunks, missing: Sequence[str]) -> dict[str, Any]:
        return {"rfid": frechet(chunks.moments(), real.moments)}

    settings = {**about, "samples": len(picks), "steps": 0, "network_passes": 2}
    return _written(
        folder, "reconstructions", settings, ["rfid"], len(picks), images, figures, extractor, progress
    )  # fmt: skip


def _written(
    folder: RunFolder,
    name: str,
    settings: dict[str, Any],
    wanted: Sequence[str],
    count: int,
    images: Any,
    figures: Any,
    extractor: FeatureExtractor,
    progress: Progress,
) -> dict[str, Any]:
    """A row as its file holds it, after the metrics that it lacks were made and written into it."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    path = folder.path / FOLDER / f"{name}-{key}.json"
    row = _read(path, settings)
    missing = [metric for metric in wanted if metric not in row["made"]]
    state = processes()
    if missing:
        chunks = Chunks(path.with_suffix(""), count)
        chunks.extract(images, extractor, name, progress)
        if state.is_main_process:
            row["metrics"] |= figures(chunks, missing)
            row["made"] = sorted({*row["made"], *missing})
            row["titles"] = {m: title(m, settings["extractor"], settings["samples"]) for m in row["metrics"]}
            with replacing(path) as aside:
                aside.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
            remove(chunks.folder)
        state.wait_for_everyone()
        row = _read(path, settings)
    return {**row["settings"], **row["metrics"], "titles": row["titles"], "file": str(path)}


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A row's file, or an empty row where there is none, it is damaged, or it is another's."""
    empty: dict[str, Any] = {"settings": settings, "made": [], "metrics": {}, "titles": {}}
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return empty
    return row if isinstance(row, dict) and row.get("settings") == settings else empty


__all__ = ["METRICS", "Cell", "evaluate"]
