"""The plain implementation of the paper in benchmarks/ computes what spheregen computes: two writings of one method."""

from __future__ import annotations

from collections.abc import Callable

import baseline
import pytest
import torch
from conftest import scramble

import spheregen
from spheregen import Recipe, SphereModel
from spheregen.loader import StepDraws
from spheregen.objective import LossWeights, Objective

WEIGHTS = LossWeights(reconstruction_l1=3, reconstruction_perceptual=0.7, consistency_l1=2,
                      consistency_perceptual=0.3, latent_consistency=0.5)  # fmt: skip


class Pooled(spheregen.PerceptualDistance):
    """Squared differences of averages over 2×2 pixels."""

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.nn.functional.avg_pool2d(images, 2)]

    def distance(self, a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        return (a[0] - b[0]).square().flatten(1).mean(1)


def pair(recipe: Recipe) -> tuple[SphereModel, baseline.Model]:
    """A model with random weights, and the plain one with the same."""
    torch.manual_seed(0)
    model = scramble(SphereModel.from_recipe(recipe)).eval()
    plain = baseline.Model(baseline.sizes_of(recipe)).eval()
    plain.load_state_dict(model.state_dict())
    return model, plain


@pytest.mark.parametrize("overrides", [(), ("decoder.head=linear",), ("conditioner.use=unconditional",)])
@pytest.mark.parametrize("share", [False, True])
def test_losses_and_gradients_agree(tiny: Callable[..., Recipe], overrides: tuple[str, ...], share: bool) -> None:
    recipe = tiny("latent.grid=4", *overrides)
    model, plain = pair(recipe)
    distance = Pooled(None, recipe.image)
    objective = Objective(model, recipe.conditioner.build(), WEIGHTS, distance)
    draws = StepDraws.of(0, 0, 8, model.noise).take(slice(0, 8), model.shape, torch.device("cpu"))
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    y = torch.arange(8)
    loss, _ = objective(x, y, draws)
    null = torch.full_like(y, 10)
    if recipe.shape.num_classes:
        labels = (torch.where(draws.drop_encoder < 0.1, null, y), torch.where(draws.drop_decoder < 0.1, null, y))
    sigma = model.noise.sigma_max
    noise = (draws.r * sigma, draws.r_sub * sigma, draws.e)
    theirs = baseline.loss_of(
        plain, x, labels if recipe.shape.num_classes else (None, None), noise, WEIGHTS, distance, share
    )
    torch.testing.assert_close(theirs, loss, rtol=1e-4, atol=1e-5)
    loss.backward()
    theirs.backward()
    for (name, ours), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(other.grad, ours.grad, rtol=2e-3, atol=2e-4, msg=name)


def test_guided_samples_agree(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("latent.grid=4", "sampler.use=fixed")
    model, plain = pair(recipe)
    seed = 5
    ours = spheregen.sample(model, [0, 1, 2, 3], steps=3, guidance=1.7, seed=seed)
    generators = spheregen.rng.generators(seed, "sample", range(4))
    shape = (model.shape.tokens, model.shape.latent_channels)
    first, noise = (spheregen.rng.normal(shape, generators) for _ in range(2))
    theirs = baseline.sample(plain, torch.arange(4), first, noise, model.noise.sigma_max, steps=3, scale=1.7)
    torch.testing.assert_close((theirs + 1) / 2, ours, rtol=1e-3, atol=1e-4)
