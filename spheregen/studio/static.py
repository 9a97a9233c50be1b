"""A trained model as a folder that any web server serves: the page generates in the visitor's browser.

OUT/
  index.html  app.js  sphere.js  …   the page: Algorithm 1 in JavaScript
  studio.json                        what the page has to know of the model
  model/                             decoder.onnx, encoder.onnx, export.json
  runtime/                           onnxruntime-web and its licences
  SHA256SUMS                         every other file, as `sha256sum -c` reads it
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from spheregen import card, export, hub
from spheregen.checkpoint import RunFolder, load, new_folder
from spheregen.errors import RunError, SpheregenError
from spheregen.model import SphereModel
from spheregen.studio import runtime as onnxruntime_web

HERE = Path(__file__).parent
PAGE, STYLE = HERE / "static_page", HERE / "page" / "style.css"
INFO, SUMS = "studio.json", "SHA256SUMS"
# What the page's sphere.js knows.
CONDITIONERS = ("none", "latent", "pixel", "combo", "unconditional")
SAMPLERS = ("fixed", "decay")
LARGEST = 1.5e9  # bytes of weights: WebAssembly has 4 GB for them, their copy while they are loaded, and activations


def build(run: str | Path, out: str | Path, *, runtime: Path | None = None, trust_plugins: bool = False) -> Path:
    """Write the page of a run's model, or of one on the hub, into the folder `out`. Returns the folder.

    runtime: a folder with onnxruntime-web's files; taken from the cache, or from npm, where not given. A former build
    in `out` is replaced once the new one is complete. Raises RunError where `out` holds anything else or the run cannot
    be loaded, SpheregenError where the page cannot run the model or a package is missing; nothing is written then.
    """
    out = Path(out).resolve()
    _refuse_others(out)
    source = RunFolder(hub.local(run))
    model = load(source.path, trust_plugins=trust_plugins)
    _check(model)
    files = onnxruntime_web.find(runtime)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        built = Path(scratch) / "built"
        with new_folder(built) as aside:
            export.export_networks(model, aside / "model")
            shutil.copytree(PAGE, aside, dirs_exist_ok=True)
            shutil.copyfile(STYLE, aside / STYLE.name)
            onnxruntime_web.copy(files, aside / "runtime")
            info = json.dumps(_info(model, source.weights()[1], aside), indent=2, ensure_ascii=False)
            (aside / INFO).write_text(info + "\n", encoding="utf-8")
            sums = [f"{_digest(path)}  {path.relative_to(aside).as_posix()}\n" for path in _files(aside)]
            (aside / SUMS).write_text("".join(sums), encoding="utf-8")
        _refuse_others(out)  # again: the export took its time
        _replace(out, built, Path(scratch) / "former")
    return out


def _check(model: SphereModel) -> None:
    """Refuse what the page cannot run."""
    recipe = model.recipe
    assert recipe is not None
    for kind, known in (("conditioner", CONDITIONERS), ("sampler", SAMPLERS)):
        if (name := getattr(recipe, kind).component.name) not in known:
            raise SpheregenError(f"{kind}: '{name}' of this model's recipe is not one that the page has in JavaScript "
                                 f"({', '.join(known)})")  # fmt: skip
    if (channels := model.shape.image.channels) not in (1, 3):
        raise SpheregenError(f"images of {channels} channels: the page shows grey (1) and RGB (3)")
    if (size := sum(p.numel() * p.element_size() for p in model.parameters())) > LARGEST:
        raise SpheregenError(f"{size / 1e9:.1f} GB of weights are too many for a browser: at most {LARGEST / 1e9:g} GB")


def _info(model: SphereModel, about: dict[str, str], folder: Path) -> dict[str, Any]:
    """studio.json. about: the header of the weights file. folder: where model/ and runtime/ are."""
    from spheregen import __version__

    recipe, shape = model.recipe, model.shape
    assert recipe is not None
    conditioner, sampler = recipe.conditioner, recipe.sampler
    conditional = shape.num_classes > 0
    paths = {
        "runtime": f"runtime/{onnxruntime_web.WASM}",
        "decoder": "model/decoder.onnx",
        "encoder": "model/encoder.onnx",
    }
    return {
        "version": __version__,
        "name": recipe.name,
        "description": recipe.description,
        "facts": card.facts(model, about),
        "class_names": model.class_names,
        "null_label": shape.null_label if conditional else None,
        "image_shape": [shape.image.channels, shape.image.size, shape.image.size],
        "latent_shape": [shape.tokens, shape.latent_channels],
        "angle": model.noise.angle,
        "defaults": {
            "steps": recipe.sampling.steps,
            "guidance": conditioner.options.scale if conditional else 1,
            "position": conditioner.component.name if conditional else "none",
            "sampler": {"use": sampler.component.name, "gamma": 1, **sampler.options.model_dump(mode="json")},
        },
        "networks": {name: {"path": path, "size": (folder / path).stat().st_size} for name, path in paths.items()},
    }


# -- the folder --------------------------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_others(out: Path) -> None:
    """Raise RunError where `out` is anything but missing, empty, or a former build to which nothing was done since."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        lines = (out / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError):
        sums = {}
    if INFO not in sums:
        raise RunError(f"{out}: exists already and is not a former build of the studio; name another folder")
    for path in _files(out):
        name = path.relative_to(out).as_posix()
        if name != SUMS and (path.is_symlink() or sums.get(name) != _digest(path)):
            raise RunError(f"{out}: {name} was added or changed since the folder was built, and would be lost; "
                           "name another folder")  # fmt: skip


def _replace(out: Path, built: Path, former: Path) -> None:
    """Put `built` in the place of `out`, which moves to `former` where it exists."""
    if out.exists():
        os.rename(out, former)
    try:
        os.rename(built, out)
    except OSError:
        if former.exists():
            os.rename(former, out)
        raise


__all__ = ["build"]
