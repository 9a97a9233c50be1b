"""Interpolation, crossover and restyling, and their commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import hypothesis.strategies as st
import pytest
import torch
from conftest import Invoke, scramble
from hypothesis import given, settings
from PIL import Image
from spheregen_guidance import ComboGuidance, NoGuidance
from spheregen_samplers import DecaySampler, FixedSampler
from torch import Tensor

import spheregen
from spheregen import Recipe, SphereModel, editing, pictures, rng, sphere
from spheregen.generation import Step, generate


def same(a: Tensor, b: Tensor) -> None:
    """Equal but for rounding."""
    torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


@pytest.fixture
def images() -> Tensor:
    """Four images [4, 1, 8, 8] in [0, 1]."""
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def by_hand(
    model: SphereModel, images: Tensor, labels: Tensor, steps: int, strength: float, gamma: float, seed: int
) -> Tensor:
    """The loop from images, in the settings of the paper's edits: [steps, B, C, H, W]."""
    walk = generate(
        model, labels, steps=steps, sampler=DecaySampler(DecaySampler.Options(r=strength, gamma=gamma)),
        conditioner=NoGuidance(NoGuidance.Options()), start=images * 2 - 1,
        generators=rng.generators(seed, "edit", range(len(images))),
    )  # fmt: skip
    return torch.stack([step.images for step in walk])


# -- the geometry ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([(2,), (3,), (4, 4), (16, 32)]), count=st.integers(2, 12))
def test_great_circle_points_lie_on_the_sphere_at_equal_angles(seed: int, size: tuple[int, ...], count: int) -> None:
    u, v = sphere.spherify(torch.randn(2, *size, generator=torch.Generator().manual_seed(seed)))
    points = editing.blend(torch.stack([u, v]), torch.linspace(0, 1, count), "great-circle")
    radius = u.numel() ** 0.5
    torch.testing.assert_close(points.flatten(1).norm(dim=1), torch.full((count,), radius))
    torch.testing.assert_close(points[0], u, atol=1e-5 * radius, rtol=0)
    torch.testing.assert_close(points[-1], v, atol=1e-5 * radius, rtol=0)
    chords = (points[1:] - points[:-1]).flatten(1).norm(dim=1) / radius
    angles = 2 * torch.asin((chords / 2).clamp(max=1))
    whole = torch.deg2rad(sphere.angle_between(u.unsqueeze(0), v.unsqueeze(0)))
    torch.testing.assert_close(angles, whole.expand(count - 1) / (count - 1), atol=2e-3, rtol=0)


def test_great_circles_between_equal_and_near_points_stay_there() -> None:
    u = sphere.spherify(torch.randn(1, 4, 4))
    torch.testing.assert_close(sphere.great_circle(u, u, 0.3), u)
    near = sphere.spherify(u + 1e-6 * torch.randn(1, 4, 4))
    torch.testing.assert_close(sphere.great_circle(u, near, 0.5), u, atol=1e-5, rtol=0)


def test_linear_points_are_blended_and_spherified() -> None:
    points = sphere.spherify(torch.randn(4, 3, 5))
    a, b, c, d = points
    expected = sphere.spherify((0.75 * a + 0.25 * b).unsqueeze(0))[0]
    torch.testing.assert_close(editing.blend(points[:2], torch.tensor([0.25]))[0], expected)
    mean = sphere.spherify(((a + b + c + d) / 4).unsqueeze(0))[0]
    torch.testing.assert_close(editing.blend(points, torch.tensor([[0.5, 0.5]]))[0], mean)
    # Halfway both paths meet.
    half = torch.tensor([0.5])
    torch.testing.assert_close(editing.blend(points[:2], half, "great-circle"), editing.blend(points[:2], half))


@pytest.mark.parametrize("path", ["linear", "great-circle"])
def test_the_square_has_its_corners_and_its_sides(path: editing.Path) -> None:
    points = sphere.spherify(torch.randn(4, 6))
    corners = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    torch.testing.assert_close(editing.blend(points, corners, path), points)
    t = torch.linspace(0, 1, 5)
    upper = editing.blend(points, torch.stack([t, torch.zeros(5)], 1), path)
    torch.testing.assert_close(upper, editing.blend(points[:2], t, path))
    right = editing.blend(points, torch.stack([torch.ones(5), t], 1), path)
    torch.testing.assert_close(right, editing.blend(points[[1, 3]], t, path))


# -- interpolation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["linear", "great-circle"])
@pytest.mark.parametrize(("steps", "noise"), [(1, "shared"), (3, "shared"), (3, "independent"), (3, "shared-prior")])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_ends_are_the_samples(
    model: SphereModel, path: editing.Path, steps: int, noise: str, guidance: float
) -> None:
    sampler = FixedSampler(FixedSampler.Options(noise=noise))
    made = spheregen.interpolate(
        model, [3, 8], frames=5, path=path, steps=steps, guidance=guidance, sampler=sampler, seed=4
    )
    samples = spheregen.sample(model, [3, 8], steps=steps, guidance=guidance, sampler=sampler, seed=4)
    assert made.shape == (5, 1, 8, 8)
    same(made[[0, -1]], samples)
    assert (made[1:] - made[:-1]).flatten(1).norm(dim=1).min() > 0  # it moves at every frame


def test_the_corners_are_the_samples(model: SphereModel) -> None:
    labels = [3, 8, 0, 1]
    made = spheregen.interpolate(model, labels, frames=3, steps=3, seed=4).unflatten(0, (3, 3))
    samples = spheregen.sample(model, labels, steps=3, seed=4)
    same(made[[0, 0, -1, -1], [0, -1, 0, -1]], samples)
    upper = spheregen.interpolate(model, labels[:2], frames=3, steps=3, seed=4)
    same(made[0], upper)


def test_picks_are_samples_by_number_and_places_are_free(model: SphereModel) -> None:
    made = spheregen.interpolate(model, [3, 8], picks=[5, 2], at=[1.0, 0.0], steps=2, seed=1)
    same(made[0], spheregen.sample(model, [8], steps=2, seed=1, first=2)[0])
    same(made[1], spheregen.sample(model, [3], steps=2, seed=1, first=5)[0])
    whole = spheregen.interpolate(model, [3, 8, 1, 0], frames=3, steps=2)
    same(spheregen.interpolate(model, [3, 8, 1, 0], at=[(0.5, 1.0)], steps=2)[0], whole.unflatten(0, (3, 3))[2, 1])


def test_images_may_be_the_ends(model: SphereModel, images: Tensor) -> None:
    made = spheregen.interpolate(model, images=images[:2], frames=4)
    same(made[[0, -1]], spheregen.reconstruct(model, images[:2]))
    made = spheregen.interpolate(model, [3, 1, 4, 1], images=images, frames=2, path="great-circle")
    labels = torch.tensor([3, 1, 4, 1])
    same(made, spheregen.reconstruct(model, images, labels))


def test_a_frame_does_not_depend_on_its_batch(model: SphereModel) -> None:
    whole = spheregen.interpolate(model, [3, 8], frames=7, steps=3)
    parts = spheregen.interpolate(model, [3, 8], frames=7, steps=3, batch_size=3)
    same(whole, parts)


def test_noise_between_keeps_its_strength() -> None:
    """A blend of Gaussian noises is as long as they are, so that the step turns the latent as far."""
    places = torch.linspace(0, 1, 5)
    between = editing._Between(FixedSampler(FixedSampler.Options()), places, "linear", None)
    noise = between.noise((16, 32), rng.generators(0, "test", range(2)), None, None)
    ends = rng.normal((16, 32), rng.generators(0, "test", range(2)))
    torch.testing.assert_close(noise[[0, -1]], ends)
    lengths = ends.flatten(1).norm(dim=1)
    torch.testing.assert_close(noise.flatten(1).norm(dim=1), lengths[0] + places * (lengths[1] - lengths[0]))


def test_embeddings_stand_for_labels(model: SphereModel) -> None:
    """A float label is the class's vector, in both networks, whose tables are their own."""
    labels, z = torch.tensor([3, 10]), torch.randn(2, 4, 4)
    torch.testing.assert_close(model.decode(z, model.decoder.embed(labels)), model.decode(z, labels))
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model.encode(x, model.encoder.embed(labels)), model.encode(x, labels))
    assert not torch.equal(model.encoder.embed(labels), model.decoder.embed(labels))


def test_blends_of_classes_are_blends_of_vectors_and_are_guided(tiny: Callable[..., Recipe]) -> None:
    """Also where the networks differ in width; the null class stays the null class."""
    torch.manual_seed(0)
    model = scramble(SphereModel.from_recipe(tiny("encoder.width=48"))).eval()
    labels, weights = torch.tensor([3, 8]), torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 1.0]])
    among, rows = editing._blended(model, labels, weights)
    assert rows is not None
    assert rows.tolist() == [0, 1, 2]
    x, v = torch.rand(3, 1, 8, 8), sphere.spherify(torch.randn(3, 4, 4))
    null = torch.full((3,), 10)
    for whole, part, network, inputs in ((among.encode, model.encode, model.encoder, x),
                                         (among.decode, model.decode, model.decoder, v)):  # fmt: skip
        made = whole(inputs, rows)
        same(made[[0, 2]], part(inputs[[0, 2]], labels))
        vector = weights @ network.embed(labels)
        same(made, part(inputs, vector))
        same(whole(inputs, torch.full((3,), among.shape.null_label)), part(inputs, null))
    guidance = ComboGuidance(ComboGuidance.Options(scale=4.0))
    z, z_null = model.encode(x, weights @ model.encoder.embed(labels)), model.encode(x, null)
    guided = guidance.encode(among.encode, x, rows, among.shape.null_label)
    torch.testing.assert_close(guided, z_null + 2.0 * (z - z_null), atol=1e-4, rtol=1e-4)
    assert model.shape.num_classes == 10  # the model itself is as it was
    torch.testing.assert_close(model.decode(v, labels[[0, 1, 0]]), model.decode(v, labels[[0, 1, 0]]))
    assert model.decoder.embed(labels).shape == (2, 32)


def test_networks_that_cannot_blend_say_so(model: SphereModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model.decoder), "embed", spheregen.Decoder.embed)
    with pytest.raises(spheregen.SpheregenError, match=r"decoder 'vit-mixer' cannot blend classes.*embed"):
        spheregen.interpolate(model, [3, 8], steps=1)
    assert spheregen.interpolate(model, [3, 3], steps=1, frames=3).shape == (3, 1, 8, 8)
    assert spheregen.interpolate(model, steps=1, frames=3).shape == (3, 1, 8, 8)


def test_a_model_that_refines_by_itself_still_does(model: SphereModel) -> None:
    called = []

    class Refining(SphereModel):
        def refine(self, step: Step, labels: Tensor | None, conditioner: spheregen.Conditioner) -> Tensor:
            called.append(labels)
            assert step.latents is not None
            return step.latents

    refining = Refining(model.encoder, model.decoder, model.regularizer, model.shape, model.noise, model.recipe)
    spheregen.interpolate(refining, [3, 8], frames=3, steps=2)
    assert [labels.tolist() for labels in called if labels is not None] == [[0, 1, 2]]


def test_unconditional_models_interpolate_and_cross(tiny: Callable[..., Recipe], images: Tensor) -> None:
    torch.manual_seed(0)
    model = scramble(SphereModel.from_recipe(tiny("conditioner.use=unconditional"))).eval()
    made = spheregen.interpolate(model, frames=3, steps=2)
    same(made[[0, -1]], spheregen.sample(model, count=2, steps=2))
    assert spheregen.crossover(model, images[:1], images[1:2], steps=2).shape == (3, 1, 1, 8, 8)
    with pytest.raises(spheregen.SpheregenError, match="unconditional"):
        spheregen.restyle(model, images[:1], [3])
    with pytest.raises(spheregen.SpheregenError, match="unconditional"):
        spheregen.crossover(model, images[:1], images[1:2], labels=[3])


def test_nothing_is_left_behind(model: SphereModel, images: Tensor) -> None:
    model.train()
    before = torch.get_rng_state()
    made = spheregen.interpolate(model, [1, 2], frames=3, steps=2)
    crossed = spheregen.crossover(model, images[:2], images[2:], steps=2)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    assert not made.requires_grad
    assert not crossed.requires_grad


# -- crossover and restyling -------------------------------------------------------------------------------------------


def test_seams_show_which_image_where() -> None:
    a, b = torch.ones(1, 4, 4), torch.zeros(1, 4, 4)
    upper = torch.tensor([[1, 1, 1, 0.5], [1, 1, 0.5, 0], [1, 0.5, 0, 0], [0.5, 0, 0, 0]])
    expected = {
        "left-right": torch.tensor([[1.0, 1, 0, 0]] * 4),
        "top-bottom": torch.tensor([[1.0, 1, 0, 0]] * 4).T,
        "rising": upper,
        "falling": upper.flip(0),
    }
    assert expected.keys() == editing.SEAMS.keys()
    for seam, mask in expected.items():
        assert torch.equal(editing.stitch(a, b, seam)[0], mask), seam
    x, y = torch.rand(2, 3, 1, 5, 5)
    for seam in editing.SEAMS:
        torch.testing.assert_close(editing.stitch(x, y, seam) + editing.stitch(y, x, seam), x + y)
    mask = torch.rand(5, 5)
    torch.testing.assert_close(editing.stitch(x, y, mask), mask * x + (1 - mask) * y)


def test_crossover_of_one_image_alone_refines_it(model: SphereModel, images: Tensor) -> None:
    a, b = images[:2], images[2:]
    null = torch.tensor([10, 10])
    made = spheregen.crossover(model, a, b, torch.ones(8, 8), steps=3, seed=2)
    assert made.shape == (4, 2, 1, 8, 8)
    assert torch.equal(made[0], a)
    same(made[1:], by_hand(model, a, null, 3, 0.25, 1.0, 2))
    other = spheregen.crossover(model, a, b, torch.zeros(8, 8), steps=3, seed=2)
    same(other[1:], by_hand(model, b, null, 3, 0.25, 1.0, 2))
    mixed = spheregen.crossover(model, a, b, "falling", labels=[3, 4], steps=3, seed=2)
    stitched = editing.stitch(a, b, "falling")
    torch.testing.assert_close(mixed[0], stitched)
    same(mixed[1:], by_hand(model, stitched, torch.tensor([3, 4]), 3, 0.25, 1.0, 2))


def test_restyle_is_the_loop_from_the_image(model: SphereModel, images: Tensor) -> None:
    labels = torch.tensor([3, 8, 1, 0])
    made = spheregen.restyle(model, images, labels, steps=3, strength=0.7, seed=5)
    assert made.shape == (4, 4, 1, 8, 8)
    assert torch.equal(made[0], images)
    same(made[1:], by_hand(model, images, labels, 3, 0.7, 0.0, 5))
    one = spheregen.restyle(model, images[:1], labels, steps=3, strength=0.7, seed=5)
    same(one[:, 0], made[:, 0])
    assert not torch.allclose(one[-1, 0], one[-1, 1], atol=1e-3)
    quiet = spheregen.restyle(model, images, labels, steps=1, strength=0)
    same(quiet[1], spheregen.reconstruct(model, images, labels))
    again = spheregen.restyle(model, images, labels, steps=1, gamma=1)  # the last step of a decay is noiseless
    same(again[1], quiet[1])


def test_from_an_image_the_schedule_begins_at_the_first_reencoding(model: SphereModel, images: Tensor) -> None:
    """Samplers promise a strength for t = 2…T alone, Algorithm 1's re-encodings; an image stands for step 1."""
    asked: list[tuple[int, int]] = []

    class Asked(FixedSampler):
        def strength(self, step: int, steps: int) -> float:
            asked.append((step, steps))
            return super().strength(step, steps)

    def walk(steps: int, start: Tensor | None) -> None:
        asked.clear()
        conditioner = NoGuidance(NoGuidance.Options())
        generators: Sequence[torch.Generator] = rng.generators(0, "test", range(2))
        sampler = Asked(FixedSampler.Options())
        list(generate(model, torch.tensor([1, 2]), steps=steps, sampler=sampler, conditioner=conditioner,
                      generators=generators, start=start))  # fmt: skip

    walk(3, images[:2])
    assert asked == [(2, 4), (3, 4), (4, 4)]
    walk(3, None)
    assert asked == [(2, 3), (3, 3)]


def test_variations_lie_at_their_angle_around_the_image(model: SphereModel, images: Tensor) -> None:
    labels = [3, 8, 1, 0]
    found: list[Step] = []
    made = spheregen.vary(model, images, labels, degrees=35, count=3, seed=2, on_step=found.append)
    assert made.shape == (4, 3, 1, 8, 8)
    (step,) = found
    assert step.latents is not None
    with torch.no_grad():
        v = model.to_sphere(images * 2 - 1, torch.tensor(labels)).repeat_interleave(3, dim=0)
    torch.testing.assert_close(sphere.angle_between(v, step.latents), torch.full((12,), 35.0), atol=0.05, rtol=0)
    same(made.flatten(0, 1), step.images)
    assert (made[:, 1:] - made[:, :1]).flatten(2).norm(dim=2).min() > 0  # each in a direction of its own
    none = spheregen.vary(model, images, labels, degrees=0, count=1)
    same(none[:, 0], spheregen.reconstruct(model, images, torch.tensor(labels)))
    # Neither the other images nor their number matter, and more degrees lead farther along the same direction.
    same(spheregen.vary(model, images[2:3], [1], degrees=35, count=2, seed=2)[0], made[2, :2])
    spheregen.vary(model, images, labels, degrees=70, count=3, seed=2, on_step=found.append)
    far = found[1].latents
    assert far is not None
    torch.testing.assert_close(sphere.angle_between(step.latents, far), torch.full((12,), 35.0), atol=0.05, rtol=0)


def test_variations_go_on_as_samples_do(model: SphereModel, images: Tensor) -> None:
    """The first step decodes the turned latents, the others are Algorithm 1's, guided where asked."""
    found: list[Step] = []
    made = spheregen.vary(
        model, images[:1], [4], count=2, steps=3, guidance=1.5, position="combo", seed=1, on_step=found.append
    )
    assert [step.number for step in found] == [1, 2, 3]
    same(made[0], found[-1].images)
    generators = rng.generators(1, "vary", range(2))
    rng.normal((4, 4), generators)  # the directions
    assert found[0].latents is not None
    assert model.recipe is not None
    walk = generate(model, torch.tensor([4, 4]), steps=3, sampler=model.recipe.sampler.build(), generators=generators,
                    conditioner=ComboGuidance(ComboGuidance.Options(scale=1.5)), latents=found[0].latents)  # fmt: skip
    same(made[0], list(walk)[-1].images)


def test_what_a_watcher_raises_ends_the_work(model: SphereModel, images: Tensor) -> None:
    class Enough(Exception):
        pass

    seen: list[int] = []

    def watch(step: Step) -> None:
        seen.append(step.number)
        if step.number == 2:
            raise Enough

    model.train()
    for call in (
        lambda: spheregen.sample(model, [1, 2], steps=5, on_step=watch),
        lambda: spheregen.vary(model, images, steps=5, on_step=watch),
        lambda: spheregen.restyle(model, images, [1, 2, 3, 4], steps=5, on_step=watch),
        lambda: spheregen.crossover(model, images[:1], images[1:2], steps=5, on_step=watch),
        lambda: spheregen.interpolate(model, [1, 2], steps=5, on_step=watch),
    ):
        seen.clear()
        with pytest.raises(Enough):
            call()
        assert seen == [1, 2]
        assert model.training  # as it was before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: spheregen.vary(m, x, degrees=181), "degrees: expected 0 to 180, got 181"),
        (lambda m, x: spheregen.vary(m, x, count=0), "count: expected at least 1, got 0"),
        (lambda m, x: spheregen.vary(m, x, steps=0), "steps: expected at least 1, got 0"),
        (lambda m, x: spheregen.vary(m, x, [12, 1, 1, 1]), "labels: 12: this model knows 0 to 9"),
        (lambda m, x: spheregen.vary(m, x[:, :, :4]), "images: expected"),
        (lambda m, x: spheregen.interpolate(m, [1, 2, 3]), "expected two ends or four corners, got 3 labels"),
        (
            lambda m, x: spheregen.interpolate(m, [1, 2], images=x),
            "as many of each, one an end, got 2 labels, 4 images",
        ),
        (lambda m, x: spheregen.interpolate(m, [1, 2], frames=1), "frames: expected at least 2, got 1"),
        (lambda m, x: spheregen.interpolate(m, [1, 2], at=[1.5]), "at: expected numbers from 0 to 1"),
        (lambda m, x: spheregen.interpolate(m, [1, 2], at=[(0, 1)]), "at: expected numbers from 0 to 1"),
        (lambda m, x: spheregen.interpolate(m, [1, 2, 3, 4], at=[0.5]), "at: expected pairs"),
        (lambda m, x: spheregen.interpolate(m, [1, 2], path=cast(Any, "liner")), "did you mean 'linear'"),
        (lambda m, x: spheregen.interpolate(m, [1, 12]), "labels: 12: this model knows 0 to 9"),
        (lambda m, x: spheregen.crossover(m, x, x, "risin"), "seam: unknown 'risin'; did you mean 'rising'"),
        (
            lambda m, x: spheregen.crossover(m, x[:, :, :4], x),
            "images: expected \\[B, 1, 8, 8\\], got \\[4, 1, 4, 8\\]",
        ),
        (lambda m, x: spheregen.restyle(m, x, [1, 2]), "got 4 images and 2 labels"),
        (lambda m, x: spheregen.restyle(m, x[:1], [1], steps=0), "steps: expected at least 1"),
    ],
)
def test_bad_requests_are_refused(
    model: SphereModel, images: Tensor, call: Callable[[SphereModel, Tensor], Tensor], message: str
) -> None:
    with pytest.raises(spheregen.SpheregenError, match=message):
        call(model, images)


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_a_grid_has_frames_captions_and_empty_places() -> None:
    images = torch.zeros(6, 1, 64, 64)
    images[1] = torch.nan
    plain, told = pictures.grid(images, 3, framed=[0]), pictures.grid(images, 3, captions=["", "a", ""], framed=[0])
    assert plain.size == (3 * 74 + 10, 2 * 74 + 10)
    assert told.width == plain.width
    assert told.height > plain.height  # by the captions of the first row alone
    assert plain.getpixel((10 + 74 + 32, 10 + 32)) == (255, 255, 255)
    assert plain.getpixel((10 + 32, 10 + 32)) == (0, 0, 0)
    assert plain.getpixel((8, 40)) == pictures._FRAME
    assert plain.getpixel((8, 40 + 74)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_animations_hold_their_frames(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), (50 * i, 0, 0)) for i in range(5)]
    pictures.save_animation(frames, tmp_path / f"moving.{kind}", 40)
    with Image.open(tmp_path / f"moving.{kind}") as file:
        assert getattr(file, "n_frames", 1) == 5
        assert file.size == (20, 10)
        for i in range(5):
            file.seek(i)
            pixel = file.convert("RGB").getpixel((3, 3))
            assert isinstance(pixel, tuple)
            assert pixel[0] == pytest.approx(50 * i, abs=3)
    with pytest.raises(spheregen.SpheregenError, match=r"moving.mp4: an animation is a .webp or .gif"):
        pictures.save_animation(frames, tmp_path / "moving.mp4")
    assert [path.name for path in tmp_path.iterdir()] == [f"moving.{kind}"]


# -- commands ----------------------------------------------------------------------------------------------------------


def test_interpolate_writes_a_picture_and_an_animation(invoke: Invoke, run: Path) -> None:
    code, out, err = invoke("interpolate", run, "--rows", "2", "--frames", "5")
    assert code == 0, err
    assert "10 images" in out
    picture = Image.open(run / "samples/interpolation-rows-seed0.png")
    assert picture.height == 2 * 74 + 10
    assert picture.width > 5 * 74
    with Image.open(run / "samples/interpolation-rows-seed0.webp") as moving:
        assert getattr(moving, "n_frames", 1) == 46  # there and back
        assert moving.height == 2 * 74 + 10


def test_interpolate_among_corners(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "square.png"
    code, _, err = invoke("interpolate", run, "--corners", "--class", "3", "--frames", "4", "--out", out,
                          "--animation", "gif", "--path", "great-circle", "--steps", "1")  # fmt: skip
    assert code == 0, err
    assert Image.open(out).width == 4 * 74 + 10
    with Image.open(tmp_path / "square.gif") as moving:
        assert getattr(moving, "n_frames", 1) == 48  # once around
    out.unlink()
    images = [word for i in range(4) for word in ("--image", f"test:{i}")]
    code, _, err = invoke("interpolate", run, "--corners", *images,
                          "--frames", "3", "--out", out, "--animation", "none")  # fmt: skip
    assert code == 0, err
    assert Image.open(out).size == (5 * 74 + 10, 5 * 74 + 10)  # the images stand outside of what is made of them


def test_interpolate_takes_samples_by_number_and_images(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (30, 20), (10, 200, 30, 128)).save(tmp_path / "a.png")
    code, _, err = invoke(
        "interpolate", run, "--image", tmp_path / "a.png", "--image", "train:3", "--animation", "none"
    )
    assert code == 0, err
    code, out, err = invoke("interpolate", run, "--class", "3", "--class", "8", "--pick", "7", "--pick", "2",
                            "--animation", "none", "--cfg", "1.5", "--seed", "3")  # fmt: skip
    assert code == 0, err
    assert "8 images" in out
    assert "guidance 1.5, seed 3" in out
    assert not list((run / "samples").glob("*.webp"))


def test_crossover_and_restyle_write_strips(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    Image.new("L", (10, 10), 255).save(tmp_path / "mask.png")
    Image.new("I;16", (30, 40), 30_000).save(tmp_path / "photo.png")
    code, out, err = invoke("crossover", tmp_path / "photo.png", "test:4", "--run", run, "--steps", "3")
    assert code == 0, err
    assert "left-right, top-bottom, falling, rising: 3 steps, r 0.25, γ 1" in out
    picture = Image.open(run / "samples/crossover-photo-test4.png")
    assert picture.width > 6 * 74
    assert picture.height > 4 * 74
    code, out, err = invoke("crossover", "test:3", "test:4", "--run", run, "--mask", tmp_path / "mask.png",
                            "--class", "3", "--out", tmp_path / "masked.png")  # fmt: skip
    assert code == 0, err
    assert out.startswith("mask: 10 steps")
    code, out, err = invoke("restyle", tmp_path / "photo.png", "--run", run, "--class", "2-4", "--steps", "2")
    assert code == 0, err
    assert "3 classes, 2 steps" in out
    assert Image.open(run / "samples/restyle-photo.png").height > 3 * 74


def test_vary_writes_a_row_an_angle(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    code, out, err = invoke("vary", "test:3", "--run", run, "--degrees", "15", "--degrees", "40.5", "--count", "3",
                            "--class", "3", "--singles")  # fmt: skip
    assert code == 0, err
    assert "15, 40.5 degrees, 3 each, 1 steps" in out
    assert Image.open(run / "samples/vary-test3.png").height > 2 * 74
    assert sorted(path.name for path in (run / "samples/vary-test3").iterdir()) == [f"0000{i}.png" for i in range(6)]
    with Image.open(run / "samples/vary-test3/00004.png") as single:
        assert single.size == (8, 8)


def test_results_are_written_singly_where_asked(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    for words, names in [
        (["restyle", "test:1", "--run", run, "--class", "3-4"], ["00000-3.png", "00001-4.png"]),
        (["crossover", "test:1", "test:2", "--run", run, "--seam", "rising"], ["00000-rising.png"]),
        (["reconstruct", run, "--count", "2"], ["00000.png", "00001.png"]),
        (["interpolate", run, "--image", "test:1", "--image", "test:2", "--at", "0", "--at", "0.25"],
         ["00000.png", "00001.png"]),
    ]:  # fmt: skip
        out = tmp_path / f"{words[0]}.png"
        assert invoke(*words, "--out", out)[0] == 0
        assert not out.with_suffix("").exists()
        assert invoke(*words, "--out", out.with_suffix(""), "--singles")[0] == 0  # a picture without a suffix
        folder = tmp_path / f"{words[0]}-singles"
        assert sorted(path.name for path in folder.iterdir()) == names
        assert all(Image.open(folder / name).size == (8, 8) for name in names)
    # Place 0 is the first image's reconstruction.
    assert invoke("reconstruct", run, "--image", "test:1", "--out", tmp_path / "one.png", "--singles")[0] == 0
    first, again = (
        Image.open(tmp_path / name).tobytes() for name in ("interpolate-singles/00000.png", "one/00000.png")
    )
    assert max(abs(a - b) for a, b in zip(first, again, strict=True)) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["interpolate", "RUN", "--class", "3", "--class", "4", "--class", "5"], "--class: expected an even number"),
        (["interpolate", "RUN", "--corners", "--class", "3-4"], "--class: expected 1 or 4, got 2"),
        (["interpolate", "RUN", "--corners", "--rows", "2"], "--rows: the square of --corners has none"),
        (
            ["interpolate", "RUN", "--image", "test:0", "--image", "test:1", "--pick", "1"],
            "leave out --pick or --image",
        ),
        (["interpolate", "RUN", "--image", "test:0"], "--image: expected 2, got 1"),
        (
            ["interpolate", "RUN", "--image", "test:0", "--image", "test:400"],
            "test:400: the test split has the images 0",
        ),
        (["interpolate", "RUN", "--pick", "1", "--pick", "2", "--pick", "3"], "--pick: expected an even number"),
        (["interpolate", "RUN", "--corners", "--at", "0.5"], "--at: lies between two ends; leave out --corners"),
        (["interpolate", "RUN", "--at", "1.5"], "at: expected numbers from 0 to 1"),
        (["vary", "test:0", "--run", "RUN", "--class", "cat"], "--class cat: this model knows 0 to 9"),
        (["interpolate", "RUN", "--class", "11"], "--class 11: this model knows 0 to 9"),
        (["crossover", "test:0", "nothing.png", "--run", "RUN"], "nothing.png: cannot be read"),
        (["crossover", "test:0", "test:1", "--run", "RUN", "--seam", "fallin"], "did you mean 'falling'?"),
        (["crossover", "test:0", "test:1", "--run", "RUN", "--mask", "nothing.png"], "nothing.png"),
        (["restyle", "test:0", "--run", "nowhere"], "nowhere: not a run folder"),
        (["restyle", "test:0", "--run", "RUN", "--class", "cat"], "--class cat: this model knows 0 to 9"),
    ],
)
def test_errors_are_one_readable_line(invoke: Invoke, run: Path, arguments: list[str], message: str) -> None:
    code, out, err = invoke(*[run if word == "RUN" else word for word in arguments])
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert "Traceback" not in out + err
    assert not (run / "samples").exists()


def test_the_shape_of_a_blend_is_a_models_shape(model: SphereModel) -> None:
    """What reads the sizes off a blended model finds the other's, but for the classes."""
    among, _ = editing._blended(model, torch.tensor([1, 2]), torch.tensor([[0.5, 0.5]]))
    assert among.shape == dataclasses.replace(model.shape, num_classes=1)
    assert among.decoder is not model.decoder
    assert among.regularizer is model.regularizer
