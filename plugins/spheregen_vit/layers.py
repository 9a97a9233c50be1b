"""The layers of the ViT-Mixer networks, from timm's where timm has them."""

from __future__ import annotations

import torch
from timm.layers import AttentionRope, GluMlp, Mlp, RmsNorm
from timm.layers.pos_embed_sincos import build_rotary_pos_embed, build_sincos2d_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """AdaLN: x·(1 + scale) + shift. x: [B, N, D]; shift, scale: [B, D]."""
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


def sincos_table(grid: int, dim: int) -> Tensor:
    """The fixed 2-D sine-cosine position table [N, dim], tokens row by row.

    The first half of the channels tells the column, the second the row, each its sines before its cosines.
    """
    table = build_sincos2d_pos_embed([grid, grid], dim)  # channels ordered (sin, cos) × (row, column) × band
    return table.view(-1, 2, 2, dim // 4).flip(2).transpose(1, 2).reshape(-1, dim)


def rotary_table(grid: int, head_dim: int) -> Tensor:
    """2-D axial RoPE [N, 2·head_dim] (sines, then cosines; theta 10000): the first half of a head's channels turns
    with the row, the second with the column, neighbouring channels in pairs."""
    sin, cos = build_rotary_pos_embed([grid, grid], dim=head_dim, in_pixels=False, temperature=10000.0)
    return torch.cat([sin, cos], dim=-1)


class AdaLN(nn.Module):
    """SiLU and Linear from the condition to `parts` modulations of the width, all zero at the start (AdaLN-Zero)."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, parts * dim)
        self.parts = parts

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(condition)).chunk(self.parts, dim=-1)


class Block(nn.Module):
    """Pre-norm RMSNorm → attention with RoPE, RMSNorm → SwiGLU; AdaLN-Zero on both branches where conditional."""

    def __init__(self, dim: int, heads: int, conditional: bool) -> None:
        super().__init__()
        self.norm1 = RmsNorm(dim, eps=1e-6)
        self.attn = AttentionRope(dim, heads, num_prefix_tokens=0)
        self.norm2 = RmsNorm(dim, eps=1e-6)
        hidden = int(8 / 3 * dim)
        self.mlp = GluMlp(dim, 2 * hidden, act_layer=nn.SiLU, gate_last=False)
        self.adaln = AdaLN(dim, 6) if conditional else None

    def forward(self, x: Tensor, rope: Tensor, condition: Tensor | None) -> Tensor:
        """x [B, N, D], rope from `rotary_table`, condition [B, D] or None -> [B, N, D]."""
        if self.adaln is None:
            x = x + self.attn(self.norm1(x), rope)
            return x + self.mlp(self.norm2(x))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(condition)
        x = torch.addcmul(x, gate1.unsqueeze(1), self.attn(modulate(self.norm1(x), shift1, scale1), rope))
        return torch.addcmul(x, gate2.unsqueeze(1), self.mlp(modulate(self.norm2(x), shift2, scale2)))


class Head(nn.Module):
    """Linear from the width to `out` channels; where conditional, after a modulated RMSNorm."""

    def __init__(self, dim: int, out: int, conditional: bool) -> None:
        super().__init__()
        self.norm = RmsNorm(dim, eps=1e-6) if conditional else None
        self.adaln = AdaLN(dim, 2) if conditional else None
        self.linear = nn.Linear(dim, out)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if self.norm is not None and self.adaln is not None:
            x = modulate(self.norm(x), *self.adaln(condition))
        return self.linear(x)


class MixerBlock(nn.Module):
    """Token MLP (N→N→N), then channel MLP (expansion 2), each after RMSNorm, behind a scalar gate that starts at 0."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.norm1 = RmsNorm(dim, eps=1e-6)
        self.token_mlp = Mlp(tokens, tokens, act_layer=nn.SiLU)
        self.gate1 = nn.Parameter(torch.zeros(1))
        self.norm2 = RmsNorm(dim, eps=1e-6)
        self.channel_mlp = Mlp(dim, 2 * dim, act_layer=nn.SiLU)
        self.gate2 = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gate1 * self.token_mlp(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.gate2 * self.channel_mlp(self.norm2(x))


class Mixer(nn.Sequential):
    """MLP-Mixer over [B, N, D], ended by a learned RMSNorm that bounds the latent's magnitude (Section 2.4)."""

    def __init__(self, tokens: int, dim: int, depth: int) -> None:
        super().__init__(*[MixerBlock(tokens, dim) for _ in range(depth)], RmsNorm(dim, eps=1e-6))


class LinearPixels(nn.Module):
    """Pixel head used at 256²: un-patchify, a reflect-padded 3×3 convolution, tanh. Takes P·P·C channels a token,
    ordered (colour, row, column)."""

    def __init__(self, grid: int, patch: int, channels: int) -> None:
        super().__init__()
        self.in_channels = channels * patch * patch
        self.unpatchify = nn.Sequential(nn.Unflatten(2, (grid, grid)), nn.PixelShuffle(patch))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(self.unpatchify(x.transpose(1, 2))))


class ConvPixels(nn.Module):
    """Pixel head used on CIFAR-10: 3×3 convolution, SiLU, transposed convolution of stride P, tanh, on 32 channels."""

    in_channels = 32

    def __init__(self, grid: int, patch: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(2, (grid, grid)),
            nn.Conv2d(self.in_channels, self.in_channels, 3, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(self.in_channels, channels, patch + 2, stride=patch, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layers(x.transpose(1, 2)))
