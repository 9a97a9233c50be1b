"""The model card: what a folder's README.md tells of the model in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from spheregen.checkpoint import RunFolder
from spheregen.model import SphereModel

FILE, PICTURE = "README.md", "samples.png"
PAPER = "https://arxiv.org/abs/2602.15030"


def evaluations(run: RunFolder, weights: Path) -> list[dict[str, Any]]:
    """What `spheregen evaluate` wrote of these weights: {settings, metrics, titles} each. Rows of other weights, and
    files that are damaged, are passed over."""
    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    rows = []
    for path in sorted((run.path / "evaluation").glob("*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            known = str(row["settings"]["weights"]["hash"])
            if row["metrics"] and known and digest.startswith(known):
                rows.append(row)
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return sorted(rows, key=lambda row: (row["settings"].get("steps", 0), row["settings"].get("guidance", 1)))


def write(
    model: SphereModel,
    about: Mapping[str, str],
    rows: Sequence[dict[str, Any]],
    license: str | None = None,
    address: str | None = None,
) -> str:
    """The card of a model: front matter, how to use it, its recipe, its metrics.

    about: the header of its weights file. rows: from `evaluations`. address: what `spheregen.load` is told.
    """
    recipe = model.recipe
    assert recipe is not None
    data = ModelCardData(
        library_name="spheregen",
        license=license,
        pipeline_tag="unconditional-image-generation",
        tags=["sphere-encoder", "image-generation", "spheregen"],
    )
    classes, image = model.shape.num_classes, model.shape.image
    first = "labels=[0], " if classes else "count=1, "
    load = f'model = spheregen.load("{address or "path/to/this/folder"}"'
    load += ")" if not recipe.plugins else ", trust_plugins=True)  # its plugins are code: look at them first"
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {recipe.name}",
        recipe.description,
        f"A [Sphere Encoder]({PAPER}): an autoencoder whose latent space is a sphere, so that a random point of it "
        "decodes to an image in one step, and a few more steps refine it.",
        f"![samples]({PICTURE})",
        "```python\nimport spheregen\n\n"
        f"{load}\nimages = spheregen.sample(model, {first}steps={recipe.sampling.steps}, seed=0)"
        f"  # float [1, {image.channels}, {image.size}, {image.size}] in [0, 1]\n```",
        "## Model",
        _table(["", ""], facts(model, about)),
    ]
    if rows:
        parts += ["## Evaluation", _metrics(rows), _measured(rows[0]["settings"])]
    if classes and model.class_names != [str(label) for label in range(classes)]:
        names = ", ".join(f"{label} {name}" for label, name in enumerate(model.class_names))
        parts += ["## Classes", f"{names}, {model.shape.null_label} (no class)"]
    if recipe.plugins:
        names = ", ".join(f"`{Path(name).name}`" for name in recipe.plugins)
        parts += ["## Plugins", f"This model needs {names}. They are code: nothing of them runs until you say so."]
    return "\n\n".join(part for part in parts if part) + "\n"


def facts(model: SphereModel, about: Mapping[str, str]) -> list[list[str]]:
    """The recipe in short: what and its value, a row each. about: the header of the weights file."""
    recipe, shape = model.recipe, model.shape
    assert recipe is not None
    channels = {1: "grey", 3: "RGB"}.get(shape.image.channels, f"{shape.image.channels} channels")
    noise, sampler = recipe.noise, recipe.sampler
    told = [
        ["images", f"{shape.image.size}×{shape.image.size}, {channels}"],
        ["classes", str(shape.num_classes) if shape.num_classes else "unconditional"],
        ["latent", f"{shape.grid}×{shape.grid} tokens of {shape.latent_channels} channels, L = {shape.latent_dim}"],
        ["parameters", f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M"],
        *([part, _section(getattr(recipe, part))] for part in ("encoder", "decoder", "regularizer")),
        ["noise", f"up to {noise.angle:g}°" + (f", sometimes {noise.wide_angle:g}°" if noise.wide_angle else "")],
        ["guidance", _section(recipe.conditioner)],
        ["sampler", f"{_section(sampler)}, {recipe.sampling.steps} steps"],
        ["data", str(recipe.data.component.name)],
    ]
    if (images := about.get("images", "")).isdigit():
        told.append(["training", f"{int(images):,} images seen, batches of {recipe.training.batch_size}"])
    if weights := about.get("weights"):
        average = f"moving average, decay {recipe.training.ema:g}"
        told.append(["weights", average if weights == "ema" else weights])
    if imported := about.get("imported"):
        epochs = f", {about['epochs']} epochs" if "epochs" in about else ""
        told.append(["imported from", f"{imported}, made with the paper's authors' code{epochs}"])
    return told


def _section(section: Any) -> str:
    """A component and those of its options that are not the default."""
    options = section.options.model_dump(mode="json", exclude_defaults=True)
    told = ", ".join(f"{key} = {value}" for key, value in options.items())
    return f"{section.component.name}" + (f" ({told})" if told else "")


def _metrics(rows: Sequence[dict[str, Any]]) -> str:
    """A row a way to sample; with every figure stands what it depends on."""
    titles: dict[str, str] = {}
    for row in rows:
        titles |= {name: row.get("titles", {}).get(name, name) for name in row["metrics"]}
    lines = []
    for row in rows:
        settings = row["settings"]
        steps = settings.get("steps") or 0
        lines.append([
            str(steps) if steps else "reconstructions",
            str(settings.get("network_passes", "")),
            f"{settings.get('guidance', 1):g} {settings.get('position', '')}".strip() if steps else "",
            str((settings.get("sampler") or {}).get("use", "")),
            f"{settings.get('samples', 0):,}",
            str(settings.get("seed", "")),
            *(_number(row["metrics"].get(name)) for name in titles),
        ])  # fmt: skip
    return _table(["steps", "network passes", "guidance", "sampler", "samples", "seed", *titles.values()], lines)


def _measured(settings: Mapping[str, Any]) -> str:
    """What all rows share."""
    return (
        f"Against {settings.get('reference_images', 0):,} images of {settings.get('reference', 'the data')} "
        f"(statistics {settings.get('reference_key', '')}), features {settings.get('extractor', '')}, weights "
        f"{settings['weights']['hash']}."
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "" if value is None else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
