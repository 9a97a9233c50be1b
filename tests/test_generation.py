"""Guidance, samplers and the loop of Algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from spheregen_guidance import ComboGuidance, LatentGuidance, NoGuidance, PixelGuidance, Unconditional
from spheregen_samplers import DecaySampler, FixedSampler
from torch import Tensor

import spheregen
from spheregen import Recipe, SphereModel, rng, sphere
from spheregen.generation import Step, conditioner_for, generate, network_passes

LABELS = torch.tensor([3, 1, 4, 1, 5])


def make(component: type, **options: object) -> spheregen.Conditioner:
    return component(component.Options(**options))  # type: ignore[attr-defined]


def run_steps(
    model: SphereModel,
    conditioner: spheregen.Conditioner,
    sampler: spheregen.Sampler | None = None,
    steps: int = 3,
    **kwargs: Tensor,
) -> list[Step]:
    sampler = sampler or FixedSampler(FixedSampler.Options())
    generators = rng.generators(0, "test", range(len(LABELS)))
    return list(
        generate(model, LABELS, steps=steps, sampler=sampler, conditioner=conditioner, generators=generators, **kwargs)
    )


# -- guidance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", [LatentGuidance, PixelGuidance, ComboGuidance])
def test_scale_one_is_no_guidance(model: SphereModel, component: type) -> None:
    plain = run_steps(model, make(NoGuidance))[-1].images
    assert torch.equal(run_steps(model, make(component, scale=1.0))[-1].images, plain)
    assert not torch.allclose(run_steps(model, make(component, scale=3.0))[-1].images, plain, atol=1e-3)


@pytest.mark.parametrize(
    ("component", "encoder_scale", "decoder_scale"),
    [(LatentGuidance, 2.5, 1.0), (PixelGuidance, 1.0, 2.5), (ComboGuidance, math.sqrt(2.5), math.sqrt(2.5))],
)
def test_guidance_is_its_formula_in_two_passes(
    model: SphereModel, component: type, encoder_scale: float, decoder_scale: float
) -> None:
    """Algorithm 1: x_uncond + cfg·(x − x_uncond), likewise for z; combo takes √s at each place."""
    conditioner, null = make(component, scale=2.5), model.shape.null_label
    nothing = torch.full_like(LABELS, null)
    x = torch.rand(5, 1, 8, 8) * 2 - 1
    z, z_uncond = model.encode(x, LABELS), model.encode(x, nothing)
    expected = z_uncond + encoder_scale * (z - z_uncond)
    torch.testing.assert_close(conditioner.encode(model.encode, x, LABELS, null), expected, atol=1e-4, rtol=1e-4)
    v = sphere.spherify(z)
    image, image_uncond = model.decode(v, LABELS), model.decode(v, nothing)
    expected = (image_uncond + decoder_scale * (image - image_uncond)).clamp(-1, 1)
    torch.testing.assert_close(conditioner.decode(model.decode, v, LABELS, null), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("many_labels", [True, False])
def test_both_branches_go_in_one_batch(model: SphereModel, many_labels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that do not say that they take many labels an image get the images repeated."""
    sizes: list[tuple[int, int]] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append((len(inputs[0]), len(inputs[1]))))
    monkeypatch.setattr(model.encoder, "many_labels", many_labels)
    x, null = torch.rand(5, 1, 8, 8), model.shape.null_label
    z = make(LatentGuidance, scale=2.0).encode(model.encode, x, LABELS, null)
    assert sizes == [(5 if many_labels else 10, 10)]
    cond, uncond = model.encode(x, LABELS), model.encode(x, torch.full_like(LABELS, null))
    torch.testing.assert_close(z, uncond + 2 * (cond - uncond), atol=1e-4, rtol=1e-4)


def test_guided_images_stay_in_range(model: SphereModel) -> None:
    images = make(PixelGuidance, scale=50.0).decode(model.decode, torch.randn(5, 4, 4), LABELS, model.shape.null_label)
    assert images.abs().max() == 1


def test_labels_are_dropped_to_the_null_class_where_told() -> None:
    uniform = torch.tensor([0.05, 0.5, 0.0999, 0.1, 0.9])
    conditioner = make(NoGuidance, dropout=0.1)
    dropped = conditioner.drop(LABELS, uniform, 10)
    assert dropped is not None
    assert dropped.tolist() == [10, 1, 10, 1, 5]
    assert make(Unconditional).drop(LABELS, uniform, 10) is None


# -- samplers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_decay_follows_eq_13(gamma: float) -> None:
    sampler, steps = DecaySampler(DecaySampler.Options(gamma=gamma, r=0.8)), 6
    for t in range(2, steps + 1):
        assert sampler.strength(t, steps) == pytest.approx(0.8 * (1 - (t - 1) / (steps - 1)) ** gamma)
    assert sampler.strength(steps, steps) == (0 if gamma else 0.8)  # γ = 0 is the fixed schedule


def test_noise_is_shared_or_not() -> None:
    shape, generators = (4, 4), rng.generators(0, "test", range(2))
    first = torch.randn(2, 4, 4)

    def two(noise: str) -> tuple[Tensor, Tensor]:
        sampler = FixedSampler(FixedSampler.Options(noise=noise))
        one = sampler.noise(shape, generators, None, first)
        return one, sampler.noise(shape, generators, one, first)

    one, other = two("shared")
    assert torch.equal(one, other)
    assert not torch.equal(one, first)
    one, other = two("shared-prior")
    assert torch.equal(one, first)
    assert torch.equal(other, first)
    one, other = two("independent")
    assert not torch.equal(one, other)


def test_a_truncated_prior_stays_within_its_bounds() -> None:
    sampler = FixedSampler(FixedSampler.Options(truncation=0.5))
    e = sampler.prior((32, 32), rng.generators(0, "test", range(3)))
    assert e.abs().max() <= 0.5
    assert e.std() == pytest.approx(0.2838, abs=0.01)  # of a standard normal truncated to ±0.5
    plain = FixedSampler(FixedSampler.Options()).prior((32, 32), rng.generators(0, "test", range(3)))
    assert plain.std() == pytest.approx(1, abs=0.03)


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_the_loop_is_algorithm_1(model: SphereModel) -> None:
    """Step by step as the paper writes it, with the noise that the loop drew."""
    generators = rng.generators(0, "test", range(5))
    e = rng.normal((4, 4), generators)
    shared = rng.normal((4, 4), generators)
    v = sphere.spherify(e)
    x = model.decode(v, LABELS)
    expected = [x]
    for _ in range(2):
        z = model.encode(x, LABELS)
        v = sphere.spherify(sphere.spherify(z) + model.noise.sigma_max * shared)
        x = model.decode(v, LABELS)
        expected.append(x)
    steps = run_steps(model, make(NoGuidance))
    assert [step.number for step in steps] == [1, 2, 3]
    for step, image in zip(steps, expected, strict=True):
        torch.testing.assert_close(step.decoded, image)
        assert step.latents is not None
        torch.testing.assert_close(step.latents.flatten(1).norm(dim=1), torch.full((5,), 4.0))


def test_generation_from_an_image_without_noise_is_reconstruction(model: SphereModel) -> None:
    images = torch.rand(5, 1, 8, 8)
    sampler = FixedSampler(FixedSampler.Options(r=0))
    steps = run_steps(model, make(NoGuidance), sampler, steps=1, start=images * 2 - 1)
    torch.testing.assert_close(steps[0].images, spheregen.reconstruct(model, images, LABELS))


def test_a_model_that_refines_latents_decodes_only_what_is_asked_for(model: SphereModel) -> None:
    decoded = 0

    class Refining(SphereModel):
        def refine(self, step: Step, labels: Tensor | None, conditioner: spheregen.Conditioner) -> Tensor:
            assert step.latents is not None
            return step.latents.roll(1, dims=1)

        def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
            nonlocal decoded
            decoded += 1
            return super().decode(latents, labels)

    refining = Refining(model.encoder, model.decoder, model.regularizer, model.shape, model.noise)
    steps = run_steps(refining, make(NoGuidance), steps=4)
    assert decoded == 0
    assert steps[-1].images.shape == (5, 1, 8, 8)
    assert decoded == 1


def test_network_passes_count_guidance_twice() -> None:
    assert network_passes(4, make(NoGuidance)) == 7
    assert network_passes(4, make(PixelGuidance, scale=2.0)) == 11
    assert network_passes(4, make(LatentGuidance, scale=2.0)) == 10
    assert network_passes(4, make(ComboGuidance, scale=2.0)) == 14
    assert network_passes(4, make(ComboGuidance, scale=1.0)) == 7
    assert network_passes(1, make(ComboGuidance, scale=2.0), from_image=True) == 4


def test_a_sample_does_not_depend_on_its_batch(model: SphereModel) -> None:
    whole = spheregen.sample(model, [1, 2, 3, 4], steps=3, seed=5)
    halves = spheregen.sample(model, [1, 2, 3, 4], steps=3, seed=5, batch_size=3)
    torch.testing.assert_close(whole, halves, atol=1e-5, rtol=0)
    last = spheregen.sample(model, [4], steps=3, seed=5, first=3)
    torch.testing.assert_close(whole[3:], last, atol=1e-5, rtol=0)
    assert not torch.allclose(whole, spheregen.sample(model, [1, 2, 3, 4], steps=3, seed=6), atol=1e-2)
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert not whole.requires_grad


def test_sampling_leaves_training_mode_and_the_random_state_alone(model: SphereModel) -> None:
    model.train()
    before = torch.get_rng_state()
    spheregen.sample(model, [1, 2], steps=3)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())


def test_unconditional_models_take_a_count(tiny: Callable[..., Recipe]) -> None:
    model = SphereModel.from_recipe(tiny("conditioner.use=unconditional")).eval()
    assert spheregen.sample(model, count=3).shape == (3, 1, 8, 8)
    with pytest.raises(spheregen.SpheregenError, match="unconditional"):
        spheregen.sample(model, [1])
    with pytest.raises(spheregen.SpheregenError, match="cannot be guided"):
        spheregen.sample(model, count=1, guidance=2.0)


def test_bad_requests_are_refused(model: SphereModel) -> None:
    with pytest.raises(spheregen.SpheregenError, match="labels: 11: this model knows 0 to 9"):
        spheregen.sample(model, [3, 11])
    with pytest.raises(spheregen.SpheregenError, match="steps: expected at least 1"):
        spheregen.sample(model, [3], steps=0)
    with pytest.raises(spheregen.PluginError, match="unknown conditioner 'pixle': did you mean 'pixel'"):
        spheregen.sample(model, [3], position="pixle")
    with pytest.raises(spheregen.SpheregenError, match="a class an image, or count"):
        spheregen.sample(model)


def test_guidance_can_be_moved_and_scaled(model: SphereModel) -> None:
    assert conditioner_for(model).name == "combo"
    assert conditioner_for(model, 1.4, "pixel").name == "pixel"
    assert conditioner_for(model, 1.4, "pixel").options.scale == 1.4
    assert conditioner_for(model, 2.0).options.scale == 2.0


def test_bf16_images_are_nearly_those_of_float32(model: SphereModel) -> None:
    exact, near = (
        spheregen.sample(model, [0, 1, 2], steps=2, seed=5, precision=precision)  # type: ignore[arg-type]
        for precision in ("fp32", "bf16")
    )
    assert near.dtype == torch.float32
    assert not torch.equal(exact, near)
    torch.testing.assert_close(near, exact, atol=0.05, rtol=0)
    with pytest.raises(spheregen.SpheregenError, match="precision: expected fp32 or bf16, got 'fp8'"):
        spheregen.sample(model, [0], precision="fp8")  # type: ignore[arg-type]
