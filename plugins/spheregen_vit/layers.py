"""The layers of the ViT-Mixer networks, from timm's where timm has them."""

from __future__ import annotations

import torch
from timm.layers import AttentionRope, GluMlp, Mlp
from timm.layers.pos_embed_sincos import build_rotary_pos_embed, build_sincos2d_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F


class RmsNorm(nn.Module):
    """x·weight / √(mean x² + ε) over the channels; with AdaLN's modulation, ·(1 + scale) + shift on top of it.

    The statistics and the result are float32. torch's own is a chain of small kernels on processors, and takes no
    modulation: here the weight and the scale, [B, D] both, are multiplied before they meet the tokens.
    """

    eps = 1e-6

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """x [B, N, D]; shift and scale [B, D], both or neither -> [B, N, D]."""
        x = x.float()
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        x = x * torch.rsqrt(norm.square() / x.shape[-1] + self.eps)
        if shift is None or scale is None:
            return x * self.weight
        return torch.addcmul(shift.float().unsqueeze(1), x, (self.weight * (1 + scale.float())).unsqueeze(1))


def sincos_table(grid: int, dim: int) -> Tensor:
    """The fixed 2-D sine-cosine position table [N, dim], tokens row by row.

    The first half of the channels tells the column, the second the row, each its sines before its cosines.
    """
    table = build_sincos2d_pos_embed([grid, grid], dim)  # channels ordered (sin, cos) × (row, column) × band
    return table.view(-1, 2, 2, dim // 4).flip(2).transpose(1, 2).reshape(-1, dim)


def rotary_table(grid: int, head_dim: int) -> Tensor:
    """2-D axial RoPE [N, 2·head_dim] (sines, then cosines; theta 10000): the first half of a head's channels turns
    with the row, the second with the column, neighbouring channels in pairs.

    The sine of a pair's first channel is negative, as `rotate` wants it.
    """
    sin, cos = build_rotary_pos_embed([grid, grid], dim=head_dim, in_pixels=False, temperature=10000.0)
    sin[:, 0::2].neg_()
    return torch.cat([sin, cos], dim=-1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn pairs of channels: x [..., N, d] by a `rotary_table` of x's type, [N, 2·d]."""
    sin, cos = table.chunk(2, dim=-1)
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cos, swapped, sin)


class Attention(AttentionRope):
    """timm's, with fewer and faster kernels: queries and keys are turned at once, and bf16 on processors takes plain
    products, where torch's fused attention is the slower on few tokens (backwards by several times).

    `torch.nn.attention.sdpa_kernel` without MATH forbids plain products here as it does in torch.
    """

    PLAIN_TOKENS = 256  # at most so many on a processor; more would take memory for the attention's weights

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:  # type: ignore[override]
        """x [B, N, D], rope from `rotary_table` -> [B, N, D]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        qk, v = qkv[:2], qkv[2]  # [2, B, heads, N, d] and [B, heads, N, d]
        q, k = rotate(qk, rope.to(qk.dtype)).unbind()
        plain = x.is_cpu and q.dtype == torch.bfloat16
        if plain and x.shape[1] <= self.PLAIN_TOKENS and torch.backends.cuda.math_sdp_enabled():
            out = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


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
        self.norm1 = RmsNorm(dim)
        self.attn = Attention(dim, heads, num_prefix_tokens=0)
        self.norm2 = RmsNorm(dim)
        hidden = int(8 / 3 * dim)
        self.mlp = GluMlp(dim, 2 * hidden, act_layer=nn.SiLU, gate_last=False)
        self.adaln = AdaLN(dim, 6) if conditional else None

    def forward(self, x: Tensor, rope: Tensor, condition: Tensor | None) -> Tensor:
        """x [B, N, D], rope from `rotary_table`, condition [B, D] or None -> [B, N, D]."""
        if self.adaln is None:
            x = x + self.attn(self.norm1(x), rope)
            return x + self.mlp(self.norm2(x))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(condition)
        x = torch.addcmul(x, gate1.unsqueeze(1), self.attn(self.norm1(x, shift1, scale1), rope))
        return torch.addcmul(x, gate2.unsqueeze(1), self.mlp(self.norm2(x, shift2, scale2)))


class Head(nn.Module):
    """Linear from the width to `out` channels; where conditional, after a modulated RMSNorm."""

    def __init__(self, dim: int, out: int, conditional: bool) -> None:
        super().__init__()
        self.norm = RmsNorm(dim) if conditional else None
        self.adaln = AdaLN(dim, 2) if conditional else None
        self.linear = nn.Linear(dim, out)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if self.norm is not None and self.adaln is not None:
            x = self.norm(x, *self.adaln(condition))
        return self.linear(x)


class MixerBlock(nn.Module):
    """Token MLP (N→N→N), then channel MLP (expansion 2), each after RMSNorm, behind a scalar gate that starts at 0."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.norm1 = RmsNorm(dim)
        self.token_mlp = Mlp(tokens, tokens, act_layer=nn.SiLU)
        self.gate1 = nn.Parameter(torch.zeros(1))
        self.norm2 = RmsNorm(dim)
        self.channel_mlp = Mlp(dim, 2 * dim, act_layer=nn.SiLU)
        self.gate2 = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gate1 * self.token_mlp(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.gate2 * self.channel_mlp(self.norm2(x))


class Mixer(nn.Sequential):
    """MLP-Mixer over [B, N, D], ended by a learned RMSNorm that bounds the latent's magnitude (Section 2.4)."""

    def __init__(self, tokens: int, dim: int, depth: int) -> None:
        super().__init__(*[MixerBlock(tokens, dim) for _ in range(depth)], RmsNorm(dim))


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


class PatchesToPixels(nn.ConvTranspose2d):
    """A transposed convolution whose patches of stride P overlap by a pixel on each side.

    On processors large patches are one matrix product and a sum of where they fall, which is several times as fast as
    torch's kernel; for small patches it is the slower.
    """

    LARGE = 4

    def __init__(self, in_channels: int, out_channels: int, patch: int) -> None:
        super().__init__(in_channels, out_channels, patch + 2, stride=patch, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x [B, C_in, G, G] -> [B, C_out, G·P, G·P]."""
        if not x.is_cpu or self.stride[0] < self.LARGE or torch.compiler.is_compiling():
            return super().forward(x)
        patches = F.linear(x.flatten(2).transpose(1, 2), self.weight.flatten(1).T).transpose(1, 2)
        (height, width), step = x.shape[2:], self.stride[0]
        pixels = F.fold(patches, (height * step, width * step), step + 2, stride=step, padding=1)
        assert self.bias is not None
        return pixels + self.bias.view(-1, 1, 1)


class ConvPixels(nn.Module):
    """Pixel head used on CIFAR-10: 3×3 convolution, SiLU, transposed convolution of stride P, tanh, on 32 channels."""

    in_channels = 32

    def __init__(self, grid: int, patch: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(2, (grid, grid)),
            nn.Conv2d(self.in_channels, self.in_channels, 3, padding=1),
            nn.SiLU(),
            PatchesToPixels(self.in_channels, channels, patch),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layers(x.transpose(1, 2)))
