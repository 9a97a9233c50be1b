"""What both networks share: positions, class table and transformer blocks."""

from __future__ import annotations

from torch import Tensor, nn

import spheregen
from spheregen_vit.layers import AdaLN, Block, rotary_table, sincos_table
from spheregen_vit.networks import ViTOptions


class ViT(nn.Module):
    """What both networks share: positions, class table and transformer blocks."""

    def __init__(self, options: ViTOptions, shape: spheregen.ModelShape) -> None:
        super().__init__()
        width, depth, heads = options.dimensions
        conditional = shape.num_classes > 0
        # One further row for the null class, the last.
        self.classes = nn.Embedding(shape.num_classes + 1, width) if conditional else None
        self.blocks = nn.ModuleList([Block(width, heads, conditional) for _ in range(depth)])
        self.positions: Tensor
        self.rope: Tensor
        self.register_buffer("positions", sincos_table(shape.grid, width), persistent=False)
        self.register_buffer("rope", rotary_table(shape.grid, width // heads), persistent=False)

    def embed(self, labels: Tensor) -> Tensor:
        """Rows of the class table: int64 [B] -> [B, width]."""
        if self.classes is None:
            raise spheregen.SpheregenError("an unconditional network has no classes to embed")
        return self.classes(labels)

    def condition(self, labels: Tensor | None) -> Tensor | None:
        """labels, int64 [B] or embedding vectors [B, width] -> [B, width]; None for an unconditional network."""
        if self.classes is None:
            return None
        if labels is None:
            raise ValueError("a conditional network needs labels; the null label stands for no class")
        return labels if labels.is_floating_point() else self.classes(labels)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        x = x + self.positions
        for block in self.blocks:
            x = block(x, self.rope, condition)
        return x


def initialise(network: nn.Module) -> None:
    """Linear layers Xavier uniform, biases 0; class table normal(0.02); modulations 0, so that AdaLN starts as the
    identity. The output heads are zeroed by their owners."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for module in network.modules():
        if isinstance(module, AdaLN):
            nn.init.zeros_(module.linear.weight)
