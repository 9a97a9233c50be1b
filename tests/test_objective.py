"""The three losses, their stop-gradients and their weights."""

from __future__ import annotations

import pytest
import torch
from spheregen_guidance import NoGuidance
from torch import Tensor
from torch.nn import functional as F

import spheregen
from spheregen import Objective, SphereModel, sphere
from spheregen.loader import StepDraws
from spheregen.objective import Draws, LossWeights


class Means(spheregen.PerceptualDistance):
    """A distance of which the value is known: the squared difference of the images' means. Counts its passes."""

    passes = 0

    def features(self, images: Tensor) -> list[Tensor]:
        self.passes += 1
        return [images.flatten(1).mean(1)]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        return (a[0] - b[0]).square()


@pytest.fixture
def batch(model: SphereModel) -> tuple[Tensor, Tensor, Draws]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 8, 8, generator=generator) * 2 - 1
    draws = StepDraws.of(0, 0, 6, model.noise).take(slice(0, 6), model.shape, torch.device("cpu"))
    draws.drop_encoder = draws.drop_decoder = torch.ones(6)
    return x, torch.arange(6), draws


def weights(**values: float) -> LossWeights:
    return LossWeights(**{name: values.get(name, 0.0) for name in LossWeights.model_fields})


def test_the_terms_are_equations_7_to_10(model: SphereModel, batch: tuple[Tensor, Tensor, Draws]) -> None:
    x, y, draws = batch
    given = weights(
        reconstruction_l1=2,
        reconstruction_perceptual=3,
        consistency_l1=5,
        consistency_perceptual=7,
        latent_consistency=11,
    )
    perceptual = Means(None, model.shape.image)
    loss, terms = Objective(model, NoGuidance(NoGuidance.Options()), given, perceptual)(x, y, draws)

    z = model.encode(x, y)
    v = sphere.spherify(z)
    sigma = (draws.r * model.noise.sigma_max).view(-1, 1, 1)
    sigma_sub = (draws.r_sub * model.noise.sigma_max).view(-1, 1, 1)
    big = model.decode(sphere.spherify(v + sigma * draws.e), y)
    small = model.decode(sphere.spherify(v + sigma_sub * draws.e), y)
    big01, small01, x01 = (big + 1) / 2, (small + 1) / 2, (x + 1) / 2
    expected = {
        "reconstruction_l1": F.smooth_l1_loss(small01, x01),
        "reconstruction_perceptual": perceptual(small01, x01).mean(),
        "consistency_l1": F.smooth_l1_loss(big01, small01),
        "consistency_perceptual": perceptual(big01, small01).mean(),
        "latent_consistency": 1 - F.cosine_similarity(z.flatten(1), model.encode(big, y).flatten(1)).mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.detach(), atol=1e-5, rtol=1e-4)
    total = sum(getattr(given, name) * value for name, value in expected.items())
    torch.testing.assert_close(loss, total, atol=1e-4, rtol=1e-4)


def test_consistency_teaches_only_the_noisier_image(model: SphereModel, batch: tuple[Tensor, Tensor, Draws]) -> None:
    """Eq. 8: the stop-gradient on D(v_noisy). Without noise both images are one, so a gradient through the target
    would cancel the other; here it must equal the gradient with the target held constant."""
    x, y, draws = batch
    objective = Objective(model, NoGuidance(NoGuidance.Options()), weights(consistency_l1=1))
    objective(x, y, draws)[0].backward()
    got = [p.grad.clone() for p in model.decoder.parameters() if p.grad is not None]
    model.zero_grad()
    v = model.to_sphere(x, y)
    small = model.decode(sphere.perturb(v, draws.r_sub * model.noise.sigma_max, draws.e), y).detach()
    big = model.decode(sphere.perturb(v, draws.r * model.noise.sigma_max, draws.e), y)
    F.smooth_l1_loss((big + 1) / 2, (small + 1) / 2).backward()
    expected = [p.grad for p in model.decoder.parameters() if p.grad is not None]
    assert len(got) == len(expected) > 10
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_latent_consistency_holds_the_clean_latent_constant(
    model: SphereModel, batch: tuple[Tensor, Tensor, Draws]
) -> None:
    """Eq. 9: perturbing the encoder moves only the re-encoded side; with the image cut off, what is left is the
    gradient of cosine(constant, E(image))."""
    x, y, draws = batch
    objective = Objective(model, NoGuidance(NoGuidance.Options()), weights(latent_consistency=1))
    objective(x, y, draws)[0].backward()
    got = {n: p.grad.clone() for n, p in model.encoder.named_parameters() if p.grad is not None}
    model.zero_grad()
    z = model.encode(x, y)
    image = model.decode(sphere.perturb(sphere.spherify(z), draws.r * model.noise.sigma_max, draws.e), y)
    again = model.encode(image, y)
    (1 - F.cosine_similarity(z.detach().flatten(1), again.flatten(1)).mean()).backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(got[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_each_image_is_seen_by_the_perceptual_network_once(
    model: SphereModel, batch: tuple[Tensor, Tensor, Draws]
) -> None:
    perceptual = Means(None, model.shape.image)
    Objective(model, NoGuidance(NoGuidance.Options()), LossWeights(), perceptual)(*batch)
    assert perceptual.passes == 3  # x, D(v_noisy), D(v_NOISY)


def test_a_weight_of_zero_leaves_its_term_out(model: SphereModel, batch: tuple[Tensor, Tensor, Draws]) -> None:
    _, terms = Objective(model, NoGuidance(NoGuidance.Options()), weights(reconstruction_l1=1))(*batch)
    assert set(terms) == {"loss", "reconstruction_l1"}


def test_networks_drop_their_labels_on_their_own(model: SphereModel, batch: tuple[Tensor, Tensor, Draws]) -> None:
    x, y, draws = batch
    seen: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen["encoder"].append(inputs[1]))
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen["decoder"].append(inputs[1]))
    draws.drop_encoder = torch.tensor([0.0, 1, 1, 1, 1, 1])
    draws.drop_decoder = torch.tensor([1.0, 0, 1, 1, 1, 1])
    Objective(model, NoGuidance(NoGuidance.Options()), weights(reconstruction_l1=1, latent_consistency=1))(x, y, draws)
    assert [labels.tolist() for labels in seen["encoder"]] == [[10, 1, 2, 3, 4, 5]] * 2
    assert [labels.tolist() for labels in seen["decoder"]] == [[0, 10, 2, 3, 4, 5] * 2]


def test_a_regularizers_loss_is_added(model: SphereModel, batch: tuple[Tensor, Tensor, Draws]) -> None:
    class Constant(spheregen.Regularizer):
        def loss(self, z: Tensor, generator: torch.Generator) -> Tensor:
            return z.new_tensor(0.25)

    objective = Objective(model, NoGuidance(NoGuidance.Options()), weights(reconstruction_l1=1))
    before = objective(*batch)[0]
    model.regularizer = Constant(None, model.shape)
    after, terms = objective(*batch)
    torch.testing.assert_close(after - before, torch.tensor(0.25))
    assert terms["regularizer"] == 0.25
