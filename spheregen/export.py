"""Models that travel: as ONNX for programs without PyTorch, or as the folder that `spheregen.load` reads anywhere."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spheregen import card, generation, hub, pictures, rng
from spheregen.checkpoint import RunFolder, load, new_folder
from spheregen.errors import SpheregenError
from spheregen.interfaces import Conditioner
from spheregen.model import SphereModel
from spheregen.sphere import spherify

TOLERANCE = 1e-4  # largest difference between onnxruntime and PyTorch, of a pixel in [0, 1] or a latent's coordinate
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
ABOUT = "export.json"


class Generator(nn.Module):
    """One step of generation: noise [B, N, D] and labels [B] -> images [B, C, H, W] in [0, 1]."""

    def __init__(self, model: SphereModel, conditioner: Conditioner | None) -> None:
        super().__init__()
        self.model = model
        self.conditioner = conditioner

    def forward(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        v = spherify(noise)  # Eq. 3
        if self.conditioner is None:
            decoded = self.model.decode(v, label)
        else:
            decoded = self.conditioner.decode(self.model.decode, v, label, self.model.shape.null_label)
        return generation.Step(1, v, lambda: decoded).images


class LatentEncoder(nn.Module):
    """Images [B, C, H, W] in [0, 1] and labels [B] -> points of the sphere [B, N, D] (Eq. 1)."""

    def __init__(self, model: SphereModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        return self.model.to_sphere(image * 2 - 1, label)


class Network(nn.Module):
    """A network as Algorithm 1 calls it, without the sphere or guidance: the decoder, latents [B, N, D] -> images
    [B, C, H, W] in [-1, 1] (Eq. 2), or the encoder with its regularizer, the other way (z of Eq. 1)."""

    def __init__(self, model: SphereModel, part: str) -> None:
        super().__init__()
        self.model = model
        self.part = part

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return self.model.decode(x, label) if self.part == "decoder" else self.model.encode(x, label)


@dataclass(frozen=True)
class Exported:
    """The files that an export to ONNX wrote, and by how much onnxruntime's results differ from PyTorch's at most."""

    folder: Path
    differences: dict[str, float]

    @property
    def difference(self) -> float:
        return max(self.differences.values())


def export_onnx(
    model: SphereModel, out: str | Path, *, guidance: float | None = None, position: str | None = None
) -> Exported:
    """Write a folder of generator.onnx, encoder.onnx and export.json, which tells what the files take and give.

    generator: noise float [B, N, D], any Gaussian, and label int64 [B], the null class too -> image [B, C, H, W] in
    [0, 1], in one step. encoder: image in [0, 1] and label -> latent [B, N, D] on the sphere. An unconditional model's
    files take no label. B is free. guidance: a scale to build into the generator, at the recipe's position or another
    that guides images (combo, pixel); none where not given.

    Both are run in onnxruntime and compared with PyTorch. Raises SpheregenError where they differ by more than 1e-4,
    where the networks cannot be exported or packages are missing; nothing is written then.
    """
    _need_packages()
    conditioner = _conditioner(model, guidance, position)
    with _on_cpu(model) as model, new_folder(out) as aside:
        noise, label = _example(model)
        generator, encoder = Generator(model, conditioner), LatentEncoder(model)
        with torch.no_grad():
            images = generator(*noise.values(), *label.values())
        parts = {
            "generator": Part(generator, noise | label, "image"),
            "encoder": Part(encoder, {"image": images} | label, "latent"),
        }
        differences = _write_parts(parts, _about(model, conditioner), aside)
    return Exported(Path(out), differences)


def export_networks(model: SphereModel, out: str | Path) -> Exported:
    """Write a folder of decoder.onnx, encoder.onnx and export.json, for a program that runs Algorithm 1 by itself.

    decoder: latent float [B, N, D] on the sphere, and label int64 [B], the null class too -> image [B, C, H, W] in
    [-1, 1]. encoder: such an image and label -> latent [B, N, D], regularized, not yet on the sphere. An unconditional
    model's files take no label. B is free. Neither holds guidance. Checked and refused as by `export_onnx`.
    """
    _need_packages()
    with _on_cpu(model) as model, new_folder(out) as aside:
        noise, label = _example(model)
        latent = spherify(noise["noise"])
        decoder, encoder = Network(model, "decoder"), Network(model, "encoder")
        with torch.no_grad():
            images = decoder(latent, *label.values())
        parts = {
            "decoder": Part(decoder, {"latent": latent} | label, "image"),
            "encoder": Part(encoder, {"image": images} | label, "latent"),
        }
        differences = _write_parts(parts, _about(model, None), aside)
    return Exported(Path(out), differences)


def export_folder(
    run: str | Path,
    out: str | Path,
    *,
    license: str | None = None,
    address: str | None = None,
    trust_plugins: bool = False,
) -> Path:
    """Write a folder of recipe.toml, model.safetensors, the single-file plugins of the recipe and a model card with
    a picture: all that `spheregen.load` needs, and nothing else of the run.

    license: an identifier for the card, as apache-2.0. address: where the card says the model is (hf://owner/name).
    run may be on the hub. Raises RunError where it cannot be loaded or `out` is not empty; nothing is written then.
    """
    source = RunFolder(hub.local(run))
    model = load(source.path, trust_plugins=trust_plugins)
    assert model.recipe is not None
    _, about, weights = source.weights()
    with new_folder(out) as aside:
        folder = RunFolder(aside)
        folder.begin(model.recipe)
        folder.save_model(model, {**about, "class_names": json.dumps(model.class_names)})
        grids = sorted(source.samples.glob("images-*.png"))
        if grids:
            (aside / card.PICTURE).write_bytes(grids[-1].read_bytes())
        else:
            pictures.class_grid(model, generation.sample).save(aside / card.PICTURE)
        text = card.write(model, about, card.evaluations(source, weights), license, address)
        (aside / card.FILE).write_text(text, encoding="utf-8")
    return Path(out)


# -- parts of the export to ONNX ---------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A file to write: a module, what it takes by name, each with a free first dimension, and its output's name."""

    module: nn.Module
    arguments: dict[str, Tensor]
    output: str


def _need_packages() -> None:
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise SpheregenError(f"export to ONNX needs {', '.join(missing)}: pip install 'spheregen[export]'")


@contextmanager
def _on_cpu(model: SphereModel) -> Iterator[SphereModel]:
    """The model, or a copy of it, on the CPU and in eval mode for as long as the block lasts."""
    if next(model.parameters()).device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    with generation.evaluating(model):
        yield model


def _write_parts(parts: dict[str, Part], about: dict[str, Any], folder: Path) -> dict[str, float]:
    """Write and check a file a part, and export.json. Returns by how much each file's results differ from PyTorch's."""
    sizes = {"latent": about["latent_shape"], "image": [about["image_channels"], *[about["image_size"]] * 2]}
    differences: dict[str, float] = {}
    told: dict[str, Any] = {}
    for name, part in parts.items():
        file = f"{name}.onnx"
        _write(part.module, part.arguments, part.output, folder / file, about)
        differences[file] = _difference(part.module, part.arguments, folder / file)
        if not differences[file] <= TOLERANCE:
            raise SpheregenError(
                f"{file}: onnxruntime and PyTorch differ by {differences[file]:.1e}, more than {TOLERANCE:g}; "
                "nothing is written"
            )
        told[name] = {
            "file": file,
            "inputs": {
                key: {"type": str(tensor.dtype).removeprefix("torch."), "shape": ["batch", *tensor.shape[1:]]}
                for key, tensor in part.arguments.items()
            },
            "outputs": {part.output: {"type": "float32", "shape": ["batch", *sizes[part.output]]}},
        }
    about = about | told | {"largest_difference": differences}
    (folder / ABOUT).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return differences


def _conditioner(model: SphereModel, guidance: float | None, position: str | None) -> Conditioner | None:
    """What guides the generator's images; None where nothing does."""
    if guidance is None and position is None:
        return None
    conditioner = generation.conditioner_for(model, guidance, position)
    if guidance not in (None, 1) and conditioner.decoder_passes == 1:
        raise SpheregenError(
            f"guidance: '{conditioner.name}' does not guide images, and one step makes nothing else; "
            "choose the position combo or pixel"
        )
    return conditioner


def _about(model: SphereModel, conditioner: Conditioner | None) -> dict[str, Any]:
    """What a user of the files has to know."""
    from spheregen import __version__

    shape = model.shape
    guided = conditioner is not None and conditioner.decoder_passes > 1
    return {
        "spheregen": __version__,
        "recipe": model.recipe.name if model.recipe else "",
        "class_names": model.class_names,
        "null_label": shape.null_label if shape.num_classes else None,
        "image_size": shape.image.size,
        "image_channels": shape.image.channels,
        "L": shape.latent_dim,
        "latent_shape": [shape.tokens, shape.latent_channels],
        "guidance": conditioner.options.scale if guided and conditioner else 1,
        "guidance_position": conditioner.name if guided and conditioner else "none",
    }


def _example(model: SphereModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Noise for three images, and their labels: the first class, the last one and none. Nothing where unconditional."""
    shape = model.shape
    noise = rng.normal((shape.tokens, shape.latent_channels), rng.generators(0, "export", range(3)))
    labels = torch.tensor([0, shape.num_classes - 1, shape.null_label])
    return {"noise": noise}, {"label": labels} if shape.num_classes else {}


def _write(module: nn.Module, arguments: dict[str, Tensor], output: str, path: Path, about: dict[str, Any]) -> None:
    """Export a module whose arguments share a free first dimension."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    batch = torch.export.Dim("batch", min=1)
    two = tuple(tensor[:2] for tensor in arguments.values())
    try:
        with _quiet(), torch.no_grad():
            # In two calls, so that a network that fixes the batch is refused here: torch.onnx.export would fall back
            # to a fixed size by itself.
            program = torch.export.export(module.eval(), two, dynamic_shapes=tuple({0: batch} for _ in two))
            exported = torch.onnx.export(program, verbose=False, input_names=list(arguments), output_names=[output])
    except Exception as error:  # whatever the networks of a plugin provoke in the tracer
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SpheregenError(f"{path.name}: these networks cannot be exported to ONNX: {reason.strip()}") from error
    assert exported is not None
    ClearMetadataAndDocStringPass()(exported.model)  # stack traces, with this machine's paths
    for value in (*exported.model.graph.inputs, *exported.model.graph.outputs):
        assert value.shape is not None
        value.shape[0] = "batch"
    for key, entry in about.items():
        text = entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)
        exported.model.metadata_props["version" if key == "spheregen" else key] = text
    exported.save(path)


def _difference(module: nn.Module, arguments: dict[str, Tensor], path: Path) -> float:
    """The largest difference between onnxruntime's results and PyTorch's, over a batch of three and a batch of one;
    relative to their root mean square where that is above 1, as of latents that are not on the sphere yet."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for rows in (slice(3), slice(1, 2)):
        chosen = {name: tensor[rows] for name, tensor in arguments.items()}
        with torch.no_grad():
            expected = module(*chosen.values())
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in chosen.items()})
        difference = (torch.from_numpy(found) - expected).abs().max() / expected.square().mean().sqrt().clamp(min=1)
        worst = max(worst, float(difference.nan_to_num(torch.inf)))
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about its own passes from the user."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


__all__ = ["Exported", "export_folder", "export_networks", "export_onnx"]
