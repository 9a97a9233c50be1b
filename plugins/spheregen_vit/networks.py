"""The ViT-Mixer encoder and decoder.

Their layers are imported where a network is made: they need timm, which takes seconds to import, and commands such as
`spheregen plugins list` want no more than the options.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn

import spheregen
from spheregen_vit.authors import authors_names


class Size(NamedTuple):
    width: int
    depth: int
    heads: int


# The paper's sizes, encoder and decoder each; tiny is ours, for processors.
SIZES = {
    "tiny": Size(128, 4, 4),
    "small": Size(512, 8, 8),
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
    "xlarge": Size(1152, 28, 16),
    "huge": Size(1280, 32, 16),
    "giant": Size(1664, 40, 16),
}


class ViTOptions(spheregen.Options):
    size: Literal["tiny", "small", "base", "large", "xlarge", "huge", "giant"] = "base"
    """Width, layers and heads by name."""
    width: int | None = None
    """Channels of a token inside the network; unset, the size's."""
    depth: int | None = None
    """Transformer layers; unset, the size's."""
    heads: int | None = None
    """Attention heads; unset, the size's."""
    mixer_depth: int = 4
    """MLP-Mixer layers beside the sphere."""

    @property
    def dimensions(self) -> Size:
        named = SIZES[self.size]
        return Size(self.width or named.width, self.depth or named.depth, self.heads or named.heads)


def check(options: ViTOptions, shape: spheregen.ModelShape) -> None:
    width, _, heads = options.dimensions
    if width % heads:
        raise ValueError(f"heads: {heads} do not divide the width {width}")
    if width // heads % 4:
        raise ValueError(f"heads: {heads} leave {width // heads} channels a head; 2-D RoPE needs a multiple of 4")
    if shape.image.size % shape.grid:
        raise ValueError(f"size: a ViT needs a latent grid that divides the image; {shape.grid} does not "
                         f"divide {shape.image.size}")  # fmt: skip


class ViTMixerEncoder(spheregen.Encoder, name="vit-mixer"):
    """Patches → ViT → d channels a token → MLP-Mixer, the sphere's last stop."""

    class Options(ViTOptions):
        pass

    check = staticmethod(check)
    many_labels = True

    def __init__(self, options: Options, shape: spheregen.ModelShape) -> None:
        from spheregen_vit.layers import Head, Mixer
        from spheregen_vit.vit import ViT, initialise

        super().__init__(options, shape)
        width = options.dimensions.width
        self.stem = nn.Sequential(
            nn.Conv2d(shape.image.channels, width, shape.patch, stride=shape.patch, bias=False),
            nn.Conv2d(width, width, 1),
        )
        self.vit = ViT(options, shape)
        self.head = Head(width, shape.latent_channels, shape.num_classes > 0)
        self.mixer = Mixer(shape.tokens, shape.latent_channels, options.mixer_depth)
        initialise(self)
        nn.init.zeros_(self.head.linear.weight)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        condition = self.vit.condition(labels)
        x = spheregen.repeat_for(self.stem(images).flatten(2).transpose(1, 2), condition)
        return self.mixer(self.head(self.vit(x, condition), condition))

    def repeated_blocks(self) -> list[nn.Module]:
        return list(self.vit.blocks)

    def embed(self, labels: Tensor) -> Tensor:
        return self.vit.embed(labels)

    def authors_names(self) -> dict[str, str]:
        return authors_names("encoder", self.state_dict(), self.options.mixer_depth)

    def authors_tables(self) -> dict[str, Tensor]:
        return {"pos_embed": self.vit.positions.unsqueeze(0)}


class ViTMixerDecoder(spheregen.Decoder, name="vit-mixer"):
    """Latent → width → MLP-Mixer → ViT → pixels."""

    class Options(ViTOptions):
        head: Literal["linear", "conv"] = "linear"
        """Pixel head: linear (un-patchify and a 3×3 convolution; 256²) or conv (a transposed convolution; CIFAR-10)."""

    check = staticmethod(check)
    many_labels = True

    def __init__(self, options: Options, shape: spheregen.ModelShape) -> None:
        from spheregen_vit.layers import ConvPixels, Head, LinearPixels, Mixer
        from spheregen_vit.vit import ViT, initialise

        super().__init__(options, shape)
        width = options.dimensions.width
        self.stem = nn.Linear(shape.latent_channels, width)
        self.mixer = Mixer(shape.tokens, width, options.mixer_depth)
        self.vit = ViT(options, shape)
        pixels = LinearPixels if options.head == "linear" else ConvPixels
        self.pixels = pixels(shape.grid, shape.patch, shape.image.channels)
        self.head = Head(width, self.pixels.in_channels, shape.num_classes > 0)
        initialise(self)
        nn.init.zeros_(self.head.linear.weight)

    def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        condition = self.vit.condition(labels)
        x = spheregen.repeat_for(self.mixer(self.stem(latents)), condition)
        return self.pixels(self.head(self.vit(x, condition), condition))

    def repeated_blocks(self) -> list[nn.Module]:
        return list(self.vit.blocks)

    def embed(self, labels: Tensor) -> Tensor:
        return self.vit.embed(labels)

    def authors_names(self) -> dict[str, str]:
        return authors_names("decoder", self.state_dict(), self.options.mixer_depth)

    def authors_tables(self) -> dict[str, Tensor]:
        return {"pos_embed": self.vit.positions.unsqueeze(0)}
