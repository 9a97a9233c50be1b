"""spheregen: image generation with a Sphere Encoder (arXiv 2602.15030), as a toolkit of plugins.

    model = spheregen.load("runs/digits")
    images = spheregen.sample(model, labels=[3, 1, 4], steps=4, guidance=1.4, seed=7)

Everything exported here is the public interface; torch is imported only when a name that needs it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spheregen.component import Component, ImageSpec, ModelShape, Options
from spheregen.errors import DataError, PluginError, RecipeError, RunError, SpheregenError, WeightsError, suggest
from spheregen.hookspecs import hookimpl
from spheregen.registry import Registry, register, registry

if TYPE_CHECKING:
    from spheregen import pretrained, rng, sphere
    from spheregen.calibration import recalibrated
    from spheregen.checkpoint import load
    from spheregen.copies import find_copies
    from spheregen.editing import crossover, interpolate, restyle, vary
    from spheregen.evaluation import evaluate
    from spheregen.export import export_folder, export_onnx
    from spheregen.generation import Step, generate, reconstruct, sample
    from spheregen.hub import push
    from spheregen.images import read_image
    from spheregen.importing import import_checkpoint
    from spheregen.inspection import inspect_latents
    from spheregen.interfaces import (
        Conditioner,
        Decoder,
        Encoder,
        FeatureExtractor,
        ImageSource,
        PerceptualDistance,
        Regularizer,
        Sampler,
        repeat_for,
    )
    from spheregen.model import SphereModel
    from spheregen.objective import Objective
    from spheregen.packing import pack
    from spheregen.recipe import Recipe
    from spheregen.shard_index import Shard, ShardIndex
    from spheregen.training import Trainer, train

__version__ = "0.1.0"

# Where each name lives that needs torch (PEP 562), so that `import spheregen` stays fast.
_LAZY = {
    "pretrained": "",
    "rng": "",
    "sphere": "",
    "Step": "generation",
    "crossover": "editing",
    "interpolate": "editing",
    "restyle": "editing",
    "vary": "editing",
    "find_copies": "copies",
    "inspect_latents": "inspection",
    "evaluate": "evaluation",
    "generate": "generation",
    "recalibrated": "calibration",
    "reconstruct": "generation",
    "sample": "generation",
    "export_folder": "export",
    "export_onnx": "export",
    "import_checkpoint": "importing",
    "push": "hub",
    "read_image": "images",
    "Conditioner": "interfaces",
    "Decoder": "interfaces",
    "Encoder": "interfaces",
    "FeatureExtractor": "interfaces",
    "ImageSource": "interfaces",
    "PerceptualDistance": "interfaces",
    "Regularizer": "interfaces",
    "Sampler": "interfaces",
    "repeat_for": "interfaces",
    "SphereModel": "model",
    "Objective": "objective",
    "Recipe": "recipe",
    "pack": "packing",
    "Shard": "shard_index",
    "ShardIndex": "shard_index",
    "load": "checkpoint",
    "Trainer": "training",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'spheregen' has no attribute {name!r}")
    module = _LAZY[name]
    if not module:
        return importlib.import_module(f"spheregen.{name}")
    value = getattr(importlib.import_module(f"spheregen.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


__all__ = [
    "Component",
    "Conditioner",
    "DataError",
    "Decoder",
    "Encoder",
    "FeatureExtractor",
    "ImageSource",
    "ImageSpec",
    "ModelShape",
    "Objective",
    "Options",
    "PerceptualDistance",
    "PluginError",
    "Recipe",
    "RecipeError",
    "Registry",
    "Regularizer",
    "RunError",
    "Sampler",
    "Shard",
    "ShardIndex",
    "SphereModel",
    "SpheregenError",
    "Step",
    "Trainer",
    "WeightsError",
    "crossover",
    "evaluate",
    "export_folder",
    "export_onnx",
    "find_copies",
    "generate",
    "hookimpl",
    "import_checkpoint",
    "inspect_latents",
    "interpolate",
    "load",
    "pack",
    "pretrained",
    "push",
    "read_image",
    "recalibrated",
    "reconstruct",
    "register",
    "registry",
    "repeat_for",
    "restyle",
    "rng",
    "sample",
    "sphere",
    "suggest",
    "train",
    "vary",
]
