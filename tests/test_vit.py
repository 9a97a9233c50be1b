"""The ViT-Mixer networks: sizes against the paper, positions and modulation against their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from spheregen_vit.layers import (
    AdaLN,
    Block,
    ConvPixels,
    LinearPixels,
    PatchesToPixels,
    rotary_table,
    rotate,
    sincos_table,
)
from spheregen_vit.networks import ViTMixerDecoder, ViTMixerEncoder

from spheregen import ImageSpec, ModelShape, Recipe, SphereModel


@pytest.mark.parametrize(
    ("recipe", "millions"),
    [("animal_faces_l", 642.15), ("oxford_flowers_l", 948.84), ("imagenet_l", 950.35), ("imagenet_xl", 1388.92)],
)
def test_parameters_are_the_papers(recipe: str, millions: float) -> None:
    """Counted as the paper does, with the two fixed position tables."""
    with torch.device("meta"):
        model = SphereModel.from_recipe(Recipe.read(recipe))
    assert all(parameter.is_meta for parameter in model.parameters())
    count = sum(p.numel() for p in model.parameters())
    count += model.encoder.vit.positions.numel() + model.decoder.vit.positions.numel()
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("head", ["linear", "conv"])
@pytest.mark.parametrize(("size", "channels", "grid"), [(8, 1, 4), (16, 3, 4), (12, 3, 2)])
def test_shapes_and_ranges(classes: int, head: str, size: int, channels: int, grid: int) -> None:
    shape = ModelShape(ImageSpec(size, channels, classes), grid, 5, classes)
    small = {"width": 32, "depth": 1, "heads": 2, "mixer_depth": 1}
    encoder = ViTMixerEncoder(ViTMixerEncoder.Options(**small), shape)
    decoder = ViTMixerDecoder(ViTMixerDecoder.Options(head=head, **small), shape)
    labels = torch.tensor([0, classes]) if classes else None
    latents = encoder(torch.randn(2, channels, size, size), labels)
    assert latents.shape == (2, grid * grid, 5)
    torch.nn.init.normal_(decoder.head.linear.weight)
    images = decoder(torch.randn(2, grid * grid, 5), labels)
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    assert images.std() > 0.1


def test_fresh_heads_are_zero(tiny: Callable[..., Recipe]) -> None:
    model = SphereModel.from_recipe(tiny())
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    assert torch.equal(model.encode(x, y), torch.zeros(4, 4, 4))
    images = model.decode(torch.randn(4, 4, 4), y)
    assert torch.equal(images, images[:1].expand(4, -1, -1, -1))  # the pixel head's biases alone


def test_the_sincos_table_tells_column_then_row_sines_before_cosines() -> None:
    table = sincos_table(grid=3, dim=8)
    assert table.shape == (9, 8)
    row, column = 2, 1
    frequencies = [1.0, 10000**-0.5]
    expected = [math.sin(column * f) for f in frequencies] + [math.cos(column * f) for f in frequencies]
    expected += [math.sin(row * f) for f in frequencies] + [math.cos(row * f) for f in frequencies]
    torch.testing.assert_close(table[row * 3 + column], torch.tensor(expected))


def test_rope_turns_pairs_by_row_in_the_first_half_and_by_column_in_the_second() -> None:
    head, row, column = 8, 2, 1
    table = rotary_table(grid=3, head_dim=head)
    x = torch.tensor([1.0, 0.0] * (head // 2)).expand(1, 1, 9, head)
    turned = rotate(x, table)[0, 0, row * 3 + column]
    angles = [row * 1.0, row * 10000**-0.5, column * 1.0, column * 10000**-0.5]
    expected = torch.tensor([[math.cos(a), math.sin(a)] for a in angles]).flatten()
    torch.testing.assert_close(turned, expected)


def test_rope_makes_attention_depend_on_relative_positions() -> None:
    """Moving both tokens by one row leaves q·k as it was."""
    table = rotary_table(grid=4, head_dim=16)
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))

    def product(i: int, j: int) -> float:
        rotated = [rotate(t.expand(1, 1, 16, 16), table)[0, 0, n] for t, n in ((q, i), (k, j))]
        return float(rotated[0] @ rotated[1])

    assert product(0, 5) == pytest.approx(product(4, 9), abs=1e-4)
    assert product(0, 5) != pytest.approx(product(0, 10), abs=1e-2)


def test_adaln_zero_starts_as_the_identity_of_the_block() -> None:
    block = Block(32, 2, conditional=True)
    assert block.adaln is not None
    torch.nn.init.zeros_(block.adaln.linear.weight)
    torch.nn.init.zeros_(block.adaln.linear.bias)
    x, rope = torch.randn(2, 9, 32), rotary_table(3, 16)
    torch.testing.assert_close(block(x, rope, torch.randn(2, 32)), x)
    torch.nn.init.normal_(block.adaln.linear.weight)
    assert not torch.allclose(block(x, rope, torch.randn(2, 32)), x)


def test_modulation_is_cut_into_shift_scale_gate() -> None:
    """With only the attention's gate at one, the block adds the attention of the norm; shift and scale at zero."""
    block = Block(32, 2, conditional=True)
    assert isinstance(block.adaln, AdaLN)
    torch.nn.init.zeros_(block.adaln.linear.weight)
    torch.nn.init.zeros_(block.adaln.linear.bias)
    with torch.no_grad():
        block.adaln.linear.bias[64:96] = 1.0
    x, rope = torch.randn(2, 9, 32), rotary_table(3, 16)
    torch.testing.assert_close(block(x, rope, torch.randn(2, 32)), x + block.attn(block.norm1(x), rope))


def test_swiglu_hidden_width_is_two_thirds_of_four() -> None:
    block = Block(768, 12, conditional=False)
    assert block.mlp.fc1.weight.shape == (4096, 768)
    assert block.mlp.fc2.weight.shape == (768, 2048)


def test_linear_pixels_place_each_patch() -> None:
    """Channels of a token are (colour, row, column) of its patch, tokens row by row."""
    head = LinearPixels(grid=2, patch=2, channels=1)
    tokens = torch.arange(16.0).view(1, 4, 4)
    placed = head.unpatchify(tokens.transpose(1, 2))[0, 0]
    assert placed.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_conv_pixels_have_the_papers_kernels() -> None:
    head = ConvPixels(grid=16, patch=2, channels=3)
    assert head.layers[1].weight.shape == (32, 32, 3, 3)
    assert head.layers[3].weight.shape == (32, 3, 4, 4)


@pytest.mark.parametrize(("patch", "channels"), [(7, 1), (4, 3), (2, 3)])
def test_patches_fall_where_a_transposed_convolution_puts_them(patch: int, channels: int) -> None:
    layer = PatchesToPixels(32, channels, patch)
    x = torch.randn(2, 32, 3, 3, requires_grad=True)
    ours, plain = layer(x), torch.nn.ConvTranspose2d.forward(layer, x)
    assert ours.shape == (2, channels, 3 * patch, 3 * patch)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]) for y in (ours, plain)),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_labels_and_embedding_vectors_condition_alike(model: SphereModel) -> None:
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 5, 10])
    vectors = model.encoder.vit.classes(y)
    torch.testing.assert_close(model.encode(x, y), model.encode(x, vectors))
    assert not torch.allclose(model.encode(x, y), model.encode(x, y.flip(0)))


def test_images_of_a_batch_do_not_see_each_other(model: SphereModel) -> None:
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    torch.testing.assert_close(model.encode(x, y)[1:2], model.encode(x[1:2], y[1:2]), atol=1e-5, rtol=1e-4)


def test_one_pass_serves_many_labels(model: SphereModel) -> None:
    """k·B labels for B inputs give what k passes give, in their order."""
    x, v = torch.rand(3, 1, 8, 8) * 2 - 1, torch.randn(3, model.shape.tokens, model.shape.latent_channels)
    y, null = torch.tensor([0, 1, 2]), torch.full((3,), model.shape.null_label)
    for network, inputs in ((model.encode, x), (model.decode, v)):
        both = network(inputs, torch.cat([y, null]))
        torch.testing.assert_close(both, torch.cat([network(inputs, y), network(inputs, null)]))
        assert not torch.allclose(both[:3], both[3:])
        with pytest.raises(ValueError, match="got 4 labels for 3"):
            network(inputs, torch.zeros(4, dtype=torch.int64))
