"""A plain implementation of the paper, to measure against: float32, one forward pass for every loss and branch.

Written straight from the paper, in plain torch and without any of spheregen's own code. Its modules bear the names of
the shipped ViT-Mixer networks, so that it loads their weights and tests can compare the two number by number.

Each loss asks the networks for what its equation names, and computes it anew (`share=False`), or the decodings are made
once and shared by the losses, as a careful reader of Eq. 7 to 9 would (`share=True`). Guidance runs each network twice,
with and without the class. There is no autocast, no fused kernel, and the moving average is a loop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """Image, latent and network sizes; `classes` 0 is unconditional."""

    image: int
    channels: int
    grid: int
    latent_channels: int
    classes: int
    width: int
    depth: int
    heads: int
    mixer_depth: int
    head: str  # "linear" or "conv"


def sizes_of(recipe: Any) -> Sizes:
    """The sizes that a recipe of the shipped ViT-Mixer networks asks for."""
    shape, encoder, decoder = recipe.shape, recipe.encoder.options, recipe.decoder.options
    if recipe.encoder.component.name != "vit-mixer" or encoder.dimensions != decoder.dimensions:
        raise ValueError("the plain implementation has the shipped ViT-Mixer networks only, both of one size")
    width, depth, heads = encoder.dimensions
    return Sizes(
        shape.image.size, shape.image.channels, shape.grid, shape.latent_channels, shape.num_classes, width, depth,
        heads, encoder.mixer_depth, decoder.head,
    )  # fmt: skip


# -- networks (Section 2.4, Appendix D) --------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Modulation(nn.Module):
    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, parts * dim)
        self.parts = parts

    def forward(self, condition: Tensor) -> list[Tensor]:
        return [part.unsqueeze(1) for part in self.linear(F.silu(condition)).chunk(self.parts, dim=-1)]


def rotate(x: Tensor, grid: int) -> Tensor:
    """2-D axial RoPE on x [B, heads, N, d]: the first half of the channels by row, the second by column."""
    quarter = x.shape[-1] // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, device=x.device) / quarter)
    places = torch.arange(grid, device=x.device)
    rows = places.repeat_interleave(grid).unsqueeze(1) * frequencies
    columns = places.repeat(grid).unsqueeze(1) * frequencies
    angles = torch.cat([rows, columns], dim=1)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack(
        [even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()], dim=-1
    )  # fmt: skip
    return turned.flatten(-2)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, grid: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.heads, self.grid = heads, grid

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        out = F.scaled_dot_product_attention(rotate(q, self.grid), rotate(k, self.grid), v)
        return self.proj(out.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = int(8 / 3 * dim)
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class Block(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.norm1 = RMSNorm(s.width)
        self.attn = Attention(s.width, s.heads, s.grid)
        self.norm2 = RMSNorm(s.width)
        self.mlp = SwiGLU(s.width)
        self.adaln = Modulation(s.width, 6) if s.classes else None

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if self.adaln is None:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(condition)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(dim)
        self.token_mlp = MLP(tokens, tokens)
        self.gate1 = nn.Parameter(torch.zeros(1))
        self.norm2 = RMSNorm(dim)
        self.channel_mlp = MLP(dim, 2 * dim)
        self.gate2 = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gate1 * self.token_mlp(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.gate2 * self.channel_mlp(self.norm2(x))


def mixer(tokens: int, dim: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*[MixerBlock(tokens, dim) for _ in range(depth)], RMSNorm(dim))


class Head(nn.Module):
    def __init__(self, s: Sizes, out: int) -> None:
        super().__init__()
        self.norm = RMSNorm(s.width) if s.classes else None
        self.adaln = Modulation(s.width, 2) if s.classes else None
        self.linear = nn.Linear(s.width, out)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if self.norm is not None and self.adaln is not None:
            shift, scale = self.adaln(condition)
            x = self.norm(x) * (1 + scale) + shift
        return self.linear(x)


class ViT(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.classes = nn.Embedding(s.classes + 1, s.width) if s.classes else None
        self.blocks = nn.ModuleList([Block(s) for _ in range(s.depth)])
        self.grid, self.width = s.grid, s.width

    def positions(self, device: torch.device) -> Tensor:
        quarter = self.width // 4
        frequencies = 10000.0 ** (-torch.arange(quarter, device=device) / quarter)
        places = torch.arange(self.grid, device=device)
        columns = places.repeat(self.grid).unsqueeze(1) * frequencies
        rows = places.repeat_interleave(self.grid).unsqueeze(1) * frequencies
        return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        x = x + self.positions(x.device)
        for block in self.blocks:
            x = block(x, condition)
        return x


class Encoder(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        patch = s.image // s.grid
        self.stem = nn.Sequential(
            nn.Conv2d(s.channels, s.width, patch, stride=patch, bias=False), nn.Conv2d(s.width, s.width, 1)
        )
        self.vit = ViT(s)
        self.head = Head(s, s.latent_channels)
        self.mixer = mixer(s.grid**2, s.latent_channels, s.mixer_depth)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        condition = self.vit.classes(labels) if self.vit.classes is not None else None
        x = self.stem(images).flatten(2).transpose(1, 2)
        return self.mixer(self.head(self.vit(x, condition), condition))


class Pixels(nn.Module):
    """The pixel heads; attribute names follow the shipped networks'."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        patch = s.image // s.grid
        self.grid, self.patch, self.kind = s.grid, patch, s.head
        if s.head == "linear":
            self.in_channels = s.channels * patch * patch
            self.conv = nn.Conv2d(s.channels, s.channels, 3, padding=1, padding_mode="reflect")
        else:
            self.in_channels = 32
            convolutions = {1: nn.Conv2d(32, 32, 3, padding=1),
                            3: nn.ConvTranspose2d(32, s.channels, patch + 2, stride=patch, padding=1)}  # fmt: skip
            self.layers = nn.ModuleDict({str(i): layer for i, layer in convolutions.items()})

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        if self.kind == "linear":
            return torch.tanh(self.conv(F.pixel_shuffle(x, self.patch)))
        return torch.tanh(self.layers["3"](F.silu(self.layers["1"](x))))


class Decoder(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.stem = nn.Linear(s.latent_channels, s.width)
        self.mixer = mixer(s.grid**2, s.width, s.mixer_depth)
        self.vit = ViT(s)
        self.pixels = Pixels(s)
        self.head = Head(s, self.pixels.in_channels)

    def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        condition = self.vit.classes(labels) if self.vit.classes is not None else None
        x = self.mixer(self.stem(latents))
        return self.pixels(self.head(self.vit(x, condition), condition))


class Model(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.encoder = Encoder(sizes)
        self.decoder = Decoder(sizes)


# -- training (Section 2.2 and 2.3) ------------------------------------------------------------------------------------


def spherify(z: Tensor) -> Tensor:
    """Eq. 1: on to the sphere of radius √L."""
    flat = z.flatten(1)
    return (flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-6) * math.sqrt(flat.shape[1])).view_as(z)


def perturb(v: Tensor, sigma: Tensor, e: Tensor) -> Tensor:
    """Eq. 4; an image whose σ is 0 keeps its latent."""
    sigma = sigma.view(-1, 1, 1)
    return torch.where(sigma == 0, v, spherify(v + sigma * e))


def loss_of(
    model: Model,
    x: Tensor,
    labels: tuple[Tensor | None, Tensor | None],
    noise: tuple[Tensor, Tensor, Tensor],
    weights: Any,
    perceptual: Perceptual | None,
    share: bool = False,
) -> Tensor:
    """Eq. 10. x [B, C, H, W] in [-1, 1]; labels: the encoder's and the decoder's; noise: σ_NOISY, σ_noisy [B] and
    e [B, N, D]; weights: an object with the names of spheregen's LossWeights."""
    y_encoder, y_decoder = labels
    sigma_NOISY, sigma_noisy, e = noise
    v = spherify(model.encoder(x, y_encoder))
    made: dict[str, Tensor] = {}

    def decoded(which: str) -> Tensor:
        if which not in made or not share:
            sigma = sigma_NOISY if which == "NOISY" else sigma_noisy
            made[which] = model.decoder(perturb(v, sigma, e), y_decoder)
        return made[which]

    def l1(a: Tensor, b: Tensor) -> Tensor:
        return F.smooth_l1_loss((a + 1) / 2, (b + 1) / 2)

    def look(a: Tensor, b: Tensor) -> Tensor:
        assert perceptual is not None
        return perceptual((a + 1) / 2, (b + 1) / 2).mean()

    loss = x.new_zeros(())
    if weights.reconstruction_l1 or weights.reconstruction_perceptual:  # Eq. 7
        x_noisy = decoded("noisy")
        loss = loss + weights.reconstruction_l1 * l1(x_noisy, x)
        if weights.reconstruction_perceptual:
            loss = loss + weights.reconstruction_perceptual * look(x_noisy, x)
    if weights.consistency_l1 or weights.consistency_perceptual:  # Eq. 8
        x_NOISY, target = decoded("NOISY"), decoded("noisy").detach()
        loss = loss + weights.consistency_l1 * l1(x_NOISY, target)
        if weights.consistency_perceptual:
            loss = loss + weights.consistency_perceptual * look(x_NOISY, target)
    if weights.latent_consistency:  # Eq. 9
        again = model.encoder(decoded("NOISY"), y_encoder)
        cosine = F.cosine_similarity(v.detach().flatten(1), again.flatten(1), dim=1)
        loss = loss + weights.latent_consistency * (1 - cosine).mean()
    return loss


class Training:
    """AdamW, clipping and a moving average, a step at a time."""

    def __init__(self, model: Model, weights: Any, perceptual: Perceptual | None, share: bool = False) -> None:
        self.model, self.weights, self.perceptual, self.share = model, weights, perceptual, share
        self.ema = copy.deepcopy(model)
        groups: list[dict[str, Any]] = [
            {"params": model.encoder.parameters(), "lr": 1e-5},
            {"params": model.decoder.parameters()},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), weight_decay=0)

    def step(
        self, x: Tensor, labels: tuple[Tensor | None, Tensor | None], noise: tuple[Tensor, Tensor, Tensor]
    ) -> float:
        loss = loss_of(self.model, x, labels, noise, self.weights, self.perceptual, self.share)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.mul_(0.9997).add_(parameter, alpha=0.0003)
        return loss.item()


# -- generation (Algorithm 1) ------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(
    model: Model, labels: Tensor, first: Tensor, noise: Tensor, sigma: float, steps: int, scale: float
) -> Tensor:
    """Algorithm 1 with combo guidance, fixed strength and shared noise: images [B, C, H, W] in [-1, 1].

    first: e of the first latent; noise: e of the further steps.
    """
    null = torch.full_like(labels, model.encoder.vit.classes.num_embeddings - 1)  # type: ignore[union-attr]
    root = math.sqrt(scale)

    def guided(network: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        if scale == 1:
            return network(x, labels)
        with_class, without = network(x, labels), network(x, null)
        return without + root * (with_class - without)

    x = guided(model.decoder, spherify(first)).clamp(-1, 1)
    for _ in range(steps - 1):
        v = spherify(guided(model.encoder, x))
        x = guided(model.decoder, spherify(v + sigma * noise)).clamp(-1, 1)
    return x
