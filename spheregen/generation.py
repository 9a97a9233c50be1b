"""Generation (Algorithm 1): one loop behind sampling, reconstruction and editing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from spheregen import rng
from spheregen.component import Component
from spheregen.errors import SpheregenError
from spheregen.interfaces import Conditioner, Sampler
from spheregen.model import SphereModel
from spheregen.recipe import Section
from spheregen.registry import registry
from spheregen.sphere import perturb, spherify


class Step:
    """One step of generation: a point of the sphere, decoded when its image is first asked for.

    number: t = 1…T, or 0 for an image that generation starts from. latents: v [B, N, D], None at step 0.
    """

    def __init__(self, number: int, latents: Tensor | None, decode: Callable[[], Tensor]) -> None:
        self.number = number
        self.latents = latents
        self._decode = decode

    @cached_property
    def decoded(self) -> Tensor:
        """The networks' image: [B, C, H, W] in [-1, 1]."""
        with torch.no_grad():
            return self._decode()

    @property
    def images(self) -> Tensor:
        """The image to show: [B, C, H, W] in [0, 1]."""
        return ((self.decoded + 1) / 2).clamp(0, 1)


def generate(
    model: SphereModel,
    labels: Tensor | None,
    *,
    steps: int,
    sampler: Sampler,
    conditioner: Conditioner,
    generators: Sequence[torch.Generator],
    start: Tensor | None = None,
    latents: Tensor | None = None,
) -> Iterator[Step]:
    """Algorithm 1, step by step.

    labels: int64 [B] or None. generators: one an image, which fix all its noise. Generation starts from a random
    point of the sphere; from the points `latents` [B, N, D] where given; or from images `start` [B, C, H, W] in
    [-1, 1], which are encoded before the first step. Yields steps 1…T. The model should be in eval mode.

    A start image takes the place of Algorithm 1's first decoding: T steps from it are the re-encodings t = 2…T + 1 of
    the sampler's schedule, the first of them noisy too.
    """
    null = model.shape.null_label
    shape = (model.shape.tokens, model.shape.latent_channels)

    def at(number: int, v: Tensor) -> Step:
        return Step(number, v, lambda: conditioner.decode(model.decode, v, labels, null))

    prior: Tensor | None = None
    if start is not None:
        image = start
        given = 1
        step = Step(0, None, lambda: image)
    else:
        given = 0
        if latents is None:
            prior = sampler.prior(shape, generators)
            latents = spherify(prior)  # Eq. 3
        step = at(1, latents)
        yield step

    noise: Tensor | None = None
    for t in range(step.number + 1, steps + 1):
        with torch.no_grad():
            v = spherify(model.refine(step, labels, conditioner))
        if strength := sampler.strength(t + given, steps + given):
            noise = sampler.noise(shape, generators, noise, prior)
            v = perturb(v, strength * model.noise.sigma_max, noise)  # Eq. 4
        step = at(t, v)
        yield step


def watched(walk: Iterator[Step], on_step: Callable[[Step], object] | None) -> Iterator[Step]:
    """The same steps, each shown to `on_step` as soon as it is there. What that raises ends the generation."""
    for step in walk:
        if on_step is not None:
            on_step(step)
        yield step


def network_passes(steps: int, conditioner: Conditioner, from_image: bool = False) -> int:
    """NFE of `steps` steps: T decodings and T − 1 encodings (T from an image), twice where guided."""
    encodings = steps if from_image else steps - 1
    return steps * conditioner.decoder_passes + encodings * conditioner.encoder_passes


def sample(
    model: SphereModel,
    labels: Sequence[int] | Tensor | None = None,
    *,
    count: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    position: str | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 256,
    precision: Literal["fp32", "bf16"] = "fp32",
    on_step: Callable[[Step], object] | None = None,
) -> Tensor:
    """New images: float32 [B, C, H, W] in [0, 1], on the CPU.

    labels: a class an image; the null class (`model.shape.null_label`) asks for none. An unconditional model takes
    `count` instead. steps, guidance (scale), position (a conditioner's name: latent, pixel, combo, none) and sampler
    are the recipe's where not given. Image i depends only on the seed, its number `first + i` and its label, not on
    the batch. precision: bf16 multiplies matrices in it, which is faster where the device has it natively; images then
    differ a little, by 0.5/255 in the mean where it was measured (docs/performance.md), and depend as little on the
    batch. on_step is called with each step of each batch as soon as it is there; what it raises ends the sampling.
    """
    if precision not in ("fp32", "bf16"):
        raise SpheregenError(f"precision: expected fp32 or bf16, got {precision!r}")
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        batches = [
            steps_[-1].images.float().cpu()
            for steps_ in sample_steps(
                model, labels, count=count, steps=steps, guidance=guidance, position=position, sampler=sampler,
                seed=seed, first=first, batch_size=batch_size, on_step=on_step,
            )
        ]  # fmt: skip
    return torch.cat(batches)


def sample_steps(
    model: SphereModel,
    labels: Sequence[int] | Tensor | None = None,
    *,
    count: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    position: str | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 256,
    on_step: Callable[[Step], object] | None = None,
) -> Iterator[list[Step]]:
    """As `sample`, but all steps of each batch, a batch at a time."""
    y = class_labels(model, labels, count)
    conditioner = conditioner_for(model, guidance, position)
    sampler = sampler or default(model, "sampler")
    steps = steps if steps is not None else _recipe(model).sampling.steps
    if steps < 1:
        raise SpheregenError(f"steps: expected at least 1, got {steps}")
    device = next(model.parameters()).device
    total = len(y) if y is not None else count or 0
    with evaluating(model):
        for begin in range(0, total, batch_size):
            end = min(begin + batch_size, total)
            walk = generate(
                model,
                y[begin:end].to(device) if y is not None else None,
                steps=steps,
                sampler=sampler,
                conditioner=conditioner,
                generators=rng.generators(seed, "sample", range(first + begin, first + end), device),
            )
            yield list(watched(walk, on_step))


@torch.no_grad()
def reconstruct(model: SphereModel, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """D(f(E(x))): images [B, C, H, W] in [0, 1] encoded and decoded without noise, in the same form.

    labels: the null class where not given, as the paper does (Section 2.4).
    """
    y = class_labels(model, labels, len(images))
    device = next(model.parameters()).device
    x = images.to(device) * 2 - 1
    y = y.to(device) if y is not None else None
    with evaluating(model):
        decoded = model.decode(model.to_sphere(x, y), y)
    return ((decoded + 1) / 2).clamp(0, 1).cpu()


@contextmanager
def evaluating(model: SphereModel) -> Iterator[None]:
    """The model in eval mode for as long as the block lasts."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def class_labels(model: SphereModel, labels: Sequence[int] | Tensor | None, count: int | None) -> Tensor | None:
    """labels as int64 [B], the null class where there are none; None for an unconditional model."""
    classes = model.shape.num_classes
    if labels is None:
        if count is None:
            raise SpheregenError("labels: expected a class an image, or count where there are none")
        return torch.full((count,), model.shape.null_label) if classes else None
    if not classes:
        raise SpheregenError("labels: this model is unconditional; give count instead")
    y = torch.as_tensor(labels, dtype=torch.int64)
    unknown = sorted({int(label) for label in y if not 0 <= label <= model.shape.null_label})
    if unknown:
        raise SpheregenError(f"labels: {', '.join(map(str, unknown))}: this model knows 0 to {classes - 1}")
    return y


def _recipe(model: SphereModel) -> Any:
    if model.recipe is None:
        raise SpheregenError("this model has no recipe: give steps, sampler and conditioner to spheregen.generate")
    return model.recipe


def default(model: SphereModel, kind: str) -> Any:
    """The component of a kind (sampler, conditioner) that the model's recipe names."""
    return getattr(_recipe(model), kind).build()


def conditioner_for(model: SphereModel, guidance: float | None = None, position: str | None = None) -> Conditioner:
    """The recipe's conditioner, at another scale or place where one is asked for."""
    section: Section = _recipe(model).conditioner
    if guidance is None and position is None:
        return section.build()
    if not section.component.conditional:
        raise SpheregenError("guidance: this model is unconditional and cannot be guided")
    component: type[Component] = registry.get("conditioner", position) if position else section.component
    if guidance is not None and component.name == "none" and guidance != 1:
        raise SpheregenError('guidance: the recipe guides nowhere; give a position too ("latent", "pixel", "combo")')
    options = section.options.model_dump()
    if guidance is not None:
        options["scale"] = guidance
    known = component.Options.model_fields
    return Section(component, component.Options(**{k: v for k, v in options.items() if k in known})).build()
