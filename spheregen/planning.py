"""What training a recipe takes: parameters, FLOPs an image, memory by part, largest batch, days. Nothing is allocated.

The training step runs once on fake tensors, which have shapes and no values: its FLOPs are counted, and the memory of
the tensors that live at its height is added up. Everything else follows from the number of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from spheregen.errors import SpheregenError, suggest
from spheregen.flops import count_flops
from spheregen.live_memory import LiveMemory
from spheregen.model import SphereModel
from spheregen.objective import Draws, Objective
from spheregen.optimization import trainable
from spheregen.recipe import Recipe
from spheregen.training import prepare_blocks

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """memory: GiB. flops: dense bf16 FLOP/s of its matrix units, as its maker states them."""

    memory: float
    flops: float


DEVICES = {
    "a100-40gb": Device(40, 312e12),
    "a100": Device(80, 312e12),
    "h100": Device(80, 989e12),
    "h200": Device(141, 989e12),
    "b200": Device(180, 2250e12),
    "l40s": Device(48, 362e12),
    "mi300x": Device(192, 1307e12),
    "rtx4090": Device(24, 165e12),
}
RESERVED = 0.08  # of a device's memory: its context, the kernels' workspaces, fragments


@dataclass(frozen=True)
class Step:
    """What one training step needs. flops: of forward and backward passes. activations: bytes of all that lives at the
    height of them, weights and their gradients aside: what the backward pass needs, and what it is at work on."""

    flops: int
    activations: int


def measure_step(recipe: Recipe, images: int, bf16: bool, checkpointing: bool, fused: bool = True) -> Step:
    """Run a training step of the recipe on fake tensors. fused: with attention that keeps no weights, as GPUs have it;
    on a processor networks may choose."""
    return measure(*fake_objective(recipe, checkpointing), images, bf16, fused)


def measure(objective: Objective, mode: FakeTensorMode, images: int, bf16: bool, fused: bool = True) -> Step:
    """Run a training step of an objective from `fake_objective`: once for its FLOPs and once for its activations, since
    the counter of FLOPs keeps tensors that are computed again."""
    given = (objective, mode, images, bf16, fused)
    return Step(_flops(*given), _activations(*given))


def _flops(objective: Objective, mode: FakeTensorMode, images: int, bf16: bool, fused: bool = True) -> int:
    with _fake_step(objective, mode, images, bf16, fused) as step:
        return count_flops(step)


def _activations(objective: Objective, mode: FakeTensorMode, images: int, bf16: bool, fused: bool = True) -> int:
    with _fake_step(objective, mode, images, bf16, fused) as step, LiveMemory() as memory:
        step()
    return memory.peak


@contextmanager
def _fake_step(
    objective: Objective, mode: FakeTensorMode, images: int, bf16: bool, fused: bool
) -> Iterator[Callable[[], None]]:
    """A training step to call for as long as the block lasts."""
    shape = objective.model.shape

    def step() -> None:
        x = torch.empty(images, shape.image.channels, shape.image.size, shape.image.size)
        labels = torch.zeros(images, dtype=torch.int64)
        one = torch.empty(images)
        e = torch.empty(images, shape.tokens, shape.latent_channels)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = objective(x, labels, Draws(one, one, one, one, e, torch.Generator()))
        loss.backward()

    attention = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if fused else nullcontext()
    with mode, attention, gradients_dropped(objective):
        yield step


@contextmanager
def gradients_dropped(objective: Objective) -> Iterator[None]:
    """Each weight's gradient goes as soon as it is whole: a plan has a line of its own for them."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(drop) for p in objective.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def fake_objective(recipe: Recipe, checkpointing: bool = False) -> tuple[Objective, FakeTensorMode]:
    """The recipe's objective with networks that have shapes alone, and the mode that it is to be used under."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    section = recipe.perceptual
    with torch.random.fork_rng(devices=[]):
        # Made for real: a change of memory format, which its constructor may ask for, is nothing for fake tensors.
        perceptual = section.component.untrained(section.options, recipe.image) if section else None
        with mode:
            model = SphereModel.from_recipe(recipe)
    for module in perceptual.modules() if perceptual else ():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = mode.from_tensor(tensor)  # type: ignore[assignment]
    for name, scale in (("encoder", recipe.training.encoder_lr_scale), ("decoder", 1.0)):
        trainable(model, name, scale)
    prepare_blocks(model, compiled=False, checkpointed=checkpointing)
    return Objective(model, recipe.conditioner.build(), recipe.objective, perceptual).train(), mode


def parameters(objective: Objective) -> dict[str, int]:
    """Parameters by part; `trained` of them move."""
    model, perceptual = objective.model, objective.perceptual
    return {
        "encoder": sum(p.numel() for p in model.encoder.parameters()),
        "decoder": sum(p.numel() for p in model.decoder.parameters()),
        "perceptual": sum(p.numel() for p in perceptual.parameters()) if perceptual else 0,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def plan(
    recipe: Recipe,
    *,
    device: str = "h100",
    count: int = 1,
    utilisation: float = 0.4,
    bf16: bool = True,
    dataset: int | None = None,
) -> dict[str, Any]:
    """What training the recipe takes on `count` devices of a kind.

    utilisation: the share of the device's peak that training reaches, an assumption: measure yours with
    `spheregen bench`. dataset: images in the data set, where the recipe counts in epochs and its data is not here.
    Bytes are a device's. Raises SpheregenError for a device that is not known.
    """
    if device not in DEVICES:
        raise SpheregenError(f"--device {device}: {suggest(device, DEVICES)}")
    kind = DEVICES[device]
    share = -(-recipe.training.batch_size // (count * recipe.training.accumulate))
    made = {checkpointing: fake_objective(recipe, checkpointing) for checkpointing in (False, True)}
    flops = round(_flops(*made[False], share, bf16) / share)
    counts = parameters(made[False][0])
    whole = counts["encoder"] + counts["decoder"]
    variants = []
    for checkpointing, fake in made.items():
        one, two = (_activations(*fake, images, bf16) for images in (share, 2 * share))
        slope = (two - one) / share
        for sharded in (False, True) if count > 1 else (False,):
            split = count if sharded else 1
            memory = {
                "weights": 4 * whole / split,
                "gradients": 4 * counts["trained"] / split,
                "optimizer": 8 * counts["trained"] / split,
                "moving average": (4 * whole if recipe.training.ema else 0) / split,
                "perceptual networks": 4 * counts["perceptual"],
            }
            fixed = sum(memory.values())
            left = kind.memory * (1 - RESERVED) * GIB - fixed - one
            memory["activations"] = one
            variants.append(
                {
                    "checkpointing": checkpointing,
                    "sharded": sharded,
                    "memory": memory,
                    "total": sum(memory.values()),
                    "fits": sum(memory.values()) <= kind.memory * (1 - RESERVED) * GIB,
                    "largest_batch": max(0, share + int(left // slope)),
                }
            )
    images = recipe.training.images
    if images is None and dataset is None:
        dataset = len_of(recipe)
    if images is None and dataset is not None:
        images = round((recipe.training.epochs or 0) * dataset)
    seconds = images * flops / (count * kind.flops * utilisation) if images else None
    return {
        "recipe": recipe.name,
        "device": device,
        "count": count,
        "precision": "bf16" if bf16 else "fp32",
        "parameters": counts,
        "flops_per_image": flops,
        "images": images,
        "batch_per_device": share,
        "utilisation": utilisation,
        "days": seconds / 86400 if seconds else None,
        "variants": variants,
    }


# Training images of the published sets that shipped recipes name, for plans where the files are not here.
PUBLISHED = {"imagenet": 1_281_167, "cifar10": 50_000, "flowers102": 8_189, "fashion-mnist": 60_000}


def len_of(recipe: Recipe) -> int | None:
    """Images in the recipe's data set: counted where it is here, known where it is a published one, else None."""
    try:
        return len(recipe.data.build())
    except SpheregenError:
        folder = str(getattr(recipe.data.options, "root", "") or "").rstrip("/").rpartition("/")[2]
        return PUBLISHED.get(recipe.data.component.name or "", PUBLISHED.get(folder))


__all__ = ["DEVICES", "measure_step", "parameters", "plan"]
