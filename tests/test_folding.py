"""Batch norms multiplied into convolutions: the same outputs, without the norms."""

from __future__ import annotations

import pytest
import timm
import torch
from spheregen_perceptual.folding import without_batch_norms
from torch import nn


def randomised(net: nn.Module) -> nn.Module:
    """Running statistics and affine weights that do something, as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
    return net.eval()


@pytest.mark.parametrize(("name", "features"), [("resnet10t", False), ("tf_efficientnet_lite0", True)])
def test_outputs_stay_and_norms_go(name: str, features: bool) -> None:
    net = randomised(timm.create_model(name, features_only=features))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    folded = without_batch_norms(net, images[:1])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())  # the one given stays as it was
    with torch.no_grad():
        expected, found = net(images), folded(images)
    for a, b in zip(*((o if features else [o]) for o in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_a_norm_that_stands_before_its_convolution_stays() -> None:
    net = randomised(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)))
    folded = without_batch_norms(net, torch.rand(1, 3, 8, 8))
    assert any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


def test_a_convolution_whose_output_is_used_twice_is_left_alone() -> None:
    """Folded, the second use would see the norm too: the outputs differ, and the network is kept."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return x + self.norm(x)

    net = randomised(Twice())
    assert without_batch_norms(net, torch.rand(1, 3, 8, 8)) is net


def test_a_network_without_norms_is_itself() -> None:
    net = nn.Conv2d(3, 3, 1)
    assert without_batch_norms(net, torch.rand(1, 3, 8, 8)) is net
