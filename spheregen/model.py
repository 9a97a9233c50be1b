"""SphereModel: encoder, regularizer, sphere and decoder, as one module."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from spheregen.component import ModelShape
from spheregen.interfaces import Conditioner, Decoder, Encoder, Network, Regularizer, repeat_for
from spheregen.sphere import NoiseRange, spherify

if TYPE_CHECKING:
    from spheregen.generation import Step
    from spheregen.recipe import Recipe


class SphereModel(nn.Module):
    """The networks of a Sphere Encoder and the sizes and noise they were made for (Section 2).

    Images are [B, C, H, W] in [-1, 1], labels int64 [B] or None, latents [B, N, D]. A model built from a recipe
    remembers it: its sampler, conditioner and number of steps are what `spheregen.sample` uses where it is not told.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        regularizer: Regularizer,
        shape: ModelShape,
        noise: NoiseRange,
        recipe: Recipe | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.regularizer = regularizer
        self.shape = shape
        self.noise = noise
        self.recipe = recipe
        self.class_names = list(class_names) or [str(label) for label in range(shape.num_classes)]

    @classmethod
    def from_recipe(cls, recipe: Recipe, class_names: Sequence[str] = ()) -> SphereModel:
        """The model that a recipe describes, with fresh weights from torch's global random state."""
        shape = recipe.shape
        return cls(
            recipe.encoder.build(shape),
            recipe.decoder.build(shape),
            recipe.regularizer.build(shape),
            shape,
            recipe.noise.range(),
            recipe,
            class_names,
        )

    def sharing(self, **parts: nn.Module) -> Self:
        """A model of the same class with other parts (encoder, decoder, regularizer); those not given are shared."""
        made = copy.copy(self)
        made._modules = {**self._modules, **parts}  # nn.Module's own copy would share the table of its parts
        return made

    def encode(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """z = E(x, y), regularized, not yet on the sphere: [B, N, D]. k labels an image, [k·B], give [k·B, N, D]."""
        return self.regularizer(_passed(self.encoder, images, labels))

    def to_sphere(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Eq. 1: v = f(E(x, y)), of norm √L."""
        return spherify(self.encode(images, labels))

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Eq. 2: x̂ = D(v, y). k labels a latent, [k·B], give k·B images."""
        return _passed(self.decoder, latents, labels)

    def refine(self, step: Step, labels: Tensor | None, conditioner: Conditioner) -> Tensor:
        """The refined latent z of a step of generation, not yet on the sphere: the encoder of the step's image.

        A model that refines latents directly overrides this and never touches `step.decoded`, so that only the last
        step is decoded.
        """
        return conditioner.encode(self.encode, step.decoded, labels, self.shape.null_label)


def _passed(network: Network, x: Tensor, labels: Tensor | None) -> Tensor:
    return network(x if network.many_labels else repeat_for(x, labels), labels)
