"""The geometry, against the paper's equations."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spheregen import rng, sphere
from spheregen.sphere import NoiseRange

shapes = st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 12))


@given(shapes, st.integers(0, 2**31), st.floats(1e-1, 1e6))
def test_spherify_projects_the_whole_flattened_latent_to_radius_root_L(
    shape: tuple[int, int, int], seed: int, scale: float
) -> None:
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).sign() * scale
    v = sphere.spherify(z)
    assert v.shape == z.shape
    torch.testing.assert_close(v.flatten(1).norm(dim=1), torch.full((shape[0],), math.sqrt(shape[1] * shape[2])))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(v.flatten(1), z.flatten(1)), torch.ones(shape[0]))


def test_spherify_normalises_over_all_tokens_not_each() -> None:
    z = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
    torch.testing.assert_close(sphere.spherify(z), z * 2 / 5)  # √L = 2, ‖z‖ = 5


def test_spherify_leaves_the_origin_with_a_bounded_gradient() -> None:
    z = torch.zeros(1, 4, 4, requires_grad=True)
    v = sphere.spherify(z)
    v.sum().backward()
    assert torch.equal(v, torch.zeros_like(v))
    assert z.grad is not None
    assert z.grad.abs().max() <= 1e3 * 1.01


@given(st.floats(0.1, 89.5))
def test_angle_and_sigma_are_inverse(degrees: float) -> None:
    assert sphere.sigma_to_angle(sphere.angle_to_sigma(degrees)) == pytest.approx(degrees, abs=1e-9)


def test_sigma_of_the_papers_angles() -> None:
    assert sphere.angle_to_sigma(45) == pytest.approx(1)
    assert sphere.angle_to_sigma(88) == pytest.approx(28.6, abs=0.05)  # Section 6


@pytest.mark.parametrize("degrees", [20.0, 45.0, 80.0, 85.0])
def test_perturbation_turns_by_the_angle_of_eq_12(degrees: float) -> None:
    generator = torch.Generator().manual_seed(0)
    v = sphere.spherify(torch.randn(64, 64, 64, generator=generator))
    e = torch.randn(64, 64, 64, generator=generator)
    noisy = sphere.perturb(v, sphere.angle_to_sigma(degrees), e)
    # L = 4096: the angle's spread is about 1/√L = 0.9 degrees, its mean's a tenth of that.
    assert sphere.angle_between(v, noisy).mean() == pytest.approx(degrees, abs=0.5)
    torch.testing.assert_close(noisy.flatten(1).norm(dim=1), torch.full((64,), 64.0))


@pytest.mark.parametrize("size", [(2,), (3,), (4, 32)])
def test_a_turn_is_of_exactly_its_angle(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    v = sphere.spherify(torch.randn(6, *size, generator=generator))
    e = torch.randn(6, *size, generator=generator)
    degrees = torch.tensor([0.5, 10, 45, 90, 135, 179])
    turned = sphere.turn(v, degrees, e)
    torch.testing.assert_close(sphere.angle_between(v, turned), degrees, atol=0.05, rtol=0)
    torch.testing.assert_close(turned.flatten(1).norm(dim=1), v.flatten(1).norm(dim=1))
    torch.testing.assert_close(sphere.turn(v, 0.0, e), v)
    torch.testing.assert_close(sphere.turn(v, 180.0, e), -v, atol=1e-5, rtol=0)
    torch.testing.assert_close(sphere.turn(v, 30.0, e + 5 * v), sphere.turn(v, 30.0, e), atol=1e-4, rtol=0)
    # v, the turned point and e lie in one plane, and the turn leads towards e.
    assert (sphere.angle_between(turned, e)[:2] < sphere.angle_between(v, e)[:2]).all()


def test_noise_to_signal_ratio_is_sigma_max() -> None:
    """Eq. 11: E‖σ_max·e‖ / ‖v‖ = σ_max."""
    generator = torch.Generator().manual_seed(0)
    v = sphere.spherify(torch.randn(200, 16, 16, generator=generator))
    e = torch.randn(200, 16, 16, generator=generator)
    ratio = (NoiseRange(80).sigma_max * e).flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)
    assert ratio.mean() == pytest.approx(NoiseRange(80).sigma_max, rel=0.01)


def test_no_noise_leaves_the_latent_untouched() -> None:
    v = sphere.spherify(torch.randn(3, 4, 5))
    noisy = sphere.perturb(v, torch.tensor([0.0, 1.0, 0.0]), torch.randn(3, 4, 5))
    assert torch.equal(noisy[0], v[0])
    assert torch.equal(noisy[2], v[2])
    assert not torch.equal(noisy[1], v[1])


def test_large_and_small_noise_share_one_direction() -> None:
    """Eq. 6: v, v_noisy and v_NOISY lie in one plane, v_noisy between the others."""
    generator = torch.Generator().manual_seed(3)
    v = sphere.spherify(torch.randn(8, 4, 8, generator=generator))
    e = torch.randn(8, 4, 8, generator=generator)
    far, near = sphere.perturb(v, 3.0, e), sphere.perturb(v, 1.0, e)
    whole = sphere.angle_between(v, far)
    parts = sphere.angle_between(v, near) + sphere.angle_between(near, far)
    torch.testing.assert_close(whole, parts, atol=1e-2, rtol=0)


def test_spherified_gaussian_noise_is_uniform_on_the_sphere() -> None:
    """Eq. 3. On the sphere S² of radius √3 every coordinate is uniform in [-√3, √3] (Archimedes)."""
    from scipy.stats import kstest

    v = sphere.spherify(torch.randn(4000, 1, 3, generator=torch.Generator().manual_seed(0))).flatten(1)
    for coordinate in range(3):
        uniform = (v[:, coordinate] / math.sqrt(3) + 1) / 2
        assert kstest(uniform.numpy(), "uniform").pvalue > 0.01
    assert v.mean(0).norm() < 0.1


@given(st.integers(2, 300), st.integers(0, 2**31))
def test_stratified_has_one_number_a_stratum_and_exact_ends(count: int, seed: int) -> None:
    u = sphere.stratified(count, torch.Generator().manual_seed(seed)).sort().values
    assert u[0] == 0
    assert u[-1] == 1
    assert torch.equal((u[:-1] * count).floor().clamp(max=count - 2).long(), torch.arange(count - 1))


def test_stratified_is_shuffled() -> None:
    u = sphere.stratified(64, torch.Generator().manual_seed(0))
    assert not torch.equal(u, u.sort().values)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from(["sigma", "angle"]))
def test_radii_stay_in_their_ranges(seed: int, draw: Literal["sigma", "angle"]) -> None:
    noise = NoiseRange(80, 85, draw=draw)
    r, r_sub = sphere.draw_radii(256, noise, torch.Generator().manual_seed(seed))
    limit = sphere.angle_to_sigma(85) / noise.sigma_max
    assert (r >= 0).all()
    assert r.max() <= limit * (1 + 1e-6)
    assert (r_sub >= 0).all()
    assert (r_sub <= 0.5 * (1 + 1e-6)).all()
    inside = r <= 1
    assert (r_sub[inside] <= 0.5 * r[inside] * (1 + 1e-6)).all()


def test_radii_without_widening_are_stratified_and_reach_one() -> None:
    r, _ = sphere.draw_radii(1000, NoiseRange(80), torch.Generator().manual_seed(0))
    assert r.max() == 1
    assert r.mean() == pytest.approx(0.5, abs=1e-3)  # far tighter than independent draws, whose spread is 0.009


def test_a_tenth_is_widened_over_the_whole_band() -> None:
    noise = NoiseRange(80, 85)
    r, _ = sphere.draw_radii(20_000, noise, torch.Generator().manual_seed(0))
    wide = r[r > 1]
    assert len(wide) / len(r) == pytest.approx(0.1, abs=0.01)
    angles = torch.rad2deg(torch.atan(wide * noise.sigma_max))
    assert angles.max() > 84.9
    limit = sphere.angle_to_sigma(85) / noise.sigma_max
    assert wide.mean() == pytest.approx((1 + limit) / 2, rel=0.01)


def test_the_authors_widening_reaches_a_tenth_of_the_band() -> None:
    noise = NoiseRange(80, 85, wide_draw="first-tenth")
    r, _ = sphere.draw_radii(20_000, noise, torch.Generator().manual_seed(0))
    assert (r > 1).float().mean() == pytest.approx(0.1, abs=0.01)
    assert r.max() == pytest.approx(1.10, abs=0.005)  # about 80.9 degrees
    assert sphere.sigma_to_angle(r.max().item() * noise.sigma_max) == pytest.approx(80.9, abs=0.1)


def test_uniform_angles_are_uniform_in_degrees() -> None:
    noise = NoiseRange(80, draw="angle")
    r, _ = sphere.draw_radii(10_000, noise, torch.Generator().manual_seed(0))
    degrees = torch.rad2deg(torch.atan(r * noise.sigma_max))
    assert degrees.mean() == pytest.approx(40, abs=0.1)
    assert degrees.max() == pytest.approx(80, abs=1e-3)


def test_an_images_noise_does_not_depend_on_its_batch() -> None:
    whole = rng.normal((3, 4), rng.generators(7, "sample", range(6)))
    part = rng.normal((3, 4), rng.generators(7, "sample", [4]))
    assert torch.equal(whole[4:5], part)
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 6
    assert not torch.equal(whole, rng.normal((3, 4), rng.generators(8, "sample", range(6))))
    assert not torch.equal(whole, rng.normal((3, 4), rng.generators(7, "noise", range(6))))
