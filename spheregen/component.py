"""What a component is: a class with a kind, a name and its own options. Knows nothing of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pydantic


class Options(pydantic.BaseModel):
    """The settings of a component, as they stand in its section of a recipe.

    Unknown keys are refused. The docstring under a field becomes its description in
    `spheregen plugins show`.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Component:
    """A class that can be named in a recipe.

    An interface sets `kind`, the section that builds it; an implementation sets its `name` and, where it
    has settings, an inner `Options` class:

        class MyEncoder(spheregen.Encoder, name="mine"):
            class Options(spheregen.Options):
                width: int = 64
    """

    kind: ClassVar[str]
    name: ClassVar[str | None] = None
    Options: ClassVar[type[Options]] = Options

    def __init_subclass__(cls, *, kind: str | None = None, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind is not None:
            cls.kind = kind
        cls.name = name  # never inherited: a subclass without a name is not a component of its own


@dataclass(frozen=True)
class ImageSpec:
    """What images a source holds, known before one is read.

    size: height and width in pixels; channels: 1 (grey) or 3 (RGB); num_classes: 0 where there are no labels.
    """

    size: int
    channels: int
    num_classes: int


@dataclass(frozen=True)
class ModelShape:
    """The sizes on which encoder, decoder and sphere agree.

    grid: the latent's height and width in tokens (h = w); latent_channels: d, the channels of a token;
    num_classes: 0 for an unconditional model, which has no class table.
    """

    image: ImageSpec
    grid: int
    latent_channels: int
    num_classes: int

    @property
    def tokens(self) -> int:
        """N = h·w."""
        return self.grid * self.grid

    @property
    def latent_dim(self) -> int:
        """L = h·w·d, the dimension whose root is the sphere's radius (Section 2.1)."""
        return self.tokens * self.latent_channels

    @property
    def patch(self) -> int:
        """P = H / h. Raises ValueError where the grid does not divide the image."""
        if self.image.size % self.grid:
            raise ValueError(f"grid {self.grid} does not divide the image size {self.image.size}")
        return self.image.size // self.grid

    @property
    def null_label(self) -> int:
        """The row of a class table that stands for 'no class': the last one."""
        return self.num_classes
