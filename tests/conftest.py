"""What tests share: small recipes, and a source of images of any size that needs no disk."""

from __future__ import annotations

import os

# Must be set before torch is imported anywhere: tests are many small computations, and some start processes.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from spheregen import Recipe, SphereModel, cli
from spheregen.checkpoint import RunFolder

TINY = [
    "encoder.width=32", "encoder.depth=1", "encoder.heads=2", "encoder.mixer_depth=1",
    "decoder.width=32", "decoder.depth=1", "decoder.heads=2", "decoder.mixer_depth=1",
    "latent.channels=4", "training.batch_size=16", "training.images=160", "training.warmup_images=32",
    "training.log_images=32", "training.checkpoint_images=64", "training.sample_images=96",
    "sampling.per_class=2", "sampling.steps=2",
]  # fmt: skip


@pytest.fixture
def tiny() -> Callable[..., Recipe]:
    """The digits recipe with networks of some thousand parameters, and further overrides."""

    def make(*overrides: str, recipe: str = "digits") -> Recipe:
        return Recipe.read(recipe, [*TINY, *overrides])

    return make


def scramble(model: SphereModel, seed: int = 0) -> SphereModel:
    """Give every parameter random values: fresh networks have zeros at their gates, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            if isinstance(parameter, DTensor):  # a shard of the whole
                noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements)
            parameter.add_(noise)
    return model


@pytest.fixture
def model(tiny: Callable[..., Recipe]) -> SphereModel:
    """A small conditional model with random weights, in eval mode."""
    torch.manual_seed(0)
    return scramble(SphereModel.from_recipe(tiny())).eval()


@pytest.fixture
def run(tiny: Callable[..., Recipe], model: SphereModel, tmp_path: Path) -> Path:
    """A run folder that holds that model."""
    folder = RunFolder(tmp_path / "runs" / "small")
    folder.begin(tiny())
    folder.save_model(model, {})
    return folder.path


Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(done.value.code or 0), captured.out, captured.err

    return call


def state_of(path: Path) -> dict[str, Any]:
    """The weights of a run's finished model."""
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")
