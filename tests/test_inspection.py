"""Tests of uniformity, the search for copies, and `spheregen inspect`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Invoke, scramble
from PIL import Image
from scipy import stats
from torch import Tensor

import spheregen
from spheregen import ImageSpec, ModelShape, Recipe, SphereModel, inspection_pictures, sphere, uniformity
from spheregen.copies import find_copies, nearest, pixels
from spheregen.inspection import inspect_latents, labels_of


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- tests of uniformity -----------------------------------------------------------------------------------------------


def many(test: Callable[[Tensor], uniformity.Test], count: int, dimension: int, times: int) -> list[uniformity.Test]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them get into each other's way over such small matrices
    try:
        return [test(points) for points in gaussian(times, count, dimension, seed=count + dimension)]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("test", [uniformity.rayleigh, uniformity.bingham])
@pytest.mark.parametrize(("count", "dimension"), [(30, 3), (100, 8), (12, 60), (20, 256)])
def test_p_values_of_uniform_points_are_uniform(
    test: Callable[[Tensor], uniformity.Test], count: int, dimension: int
) -> None:
    """The null distribution, with more points than dimensions and with fewer."""
    found = many(test, count, dimension, 600)
    assert stats.kstest([each.p for each in found], "uniform").pvalue > 1e-3
    z = np.array([each.z for each in found])
    assert z.mean() == pytest.approx(0, abs=4 / math.sqrt(600))
    assert z.var() == pytest.approx(1, abs=0.35)
    assert np.mean([each.p < 0.05 for each in found]) == pytest.approx(0.05, abs=0.03)


def test_p_values_of_projections_are_uniform() -> None:
    axes = uniformity.projections(24, torch.Generator().manual_seed(0))
    found = many(lambda points: uniformity.projected_bingham(points, axes), 60, 24, 400)
    assert stats.kstest([each.p for each in found], "uniform").pvalue > 1e-3
    assert {each.df for each in found} == {8 * 5}  # 24 dimensions hold 8 blocks of 3


def test_closed_forms() -> None:
    same = torch.ones(50, 8)
    assert uniformity.mean_resultant_length(same) == pytest.approx(1)
    scale = math.sqrt(1 - 1 / 50)
    assert uniformity.rayleigh(same).statistic == pytest.approx(8 + (50 * 8 - 8) / scale)
    # All along one axis: tr T² = 1.
    assert uniformity.bingham(same).statistic == pytest.approx(35 + (50 * 8 * 10 / 2 * (1 - 1 / 8) - 35) / scale)
    opposite = torch.cat([same, -same])
    assert uniformity.mean_resultant_length(opposite) == pytest.approx(0, abs=1e-6)
    frame = torch.cat([torch.eye(8), -torch.eye(8)])  # T = I / L: as even as can be
    assert uniformity.rayleigh(frame).statistic == pytest.approx(8 - 8 / math.sqrt(1 - 1 / 16))
    assert uniformity.bingham(frame).statistic == pytest.approx(35 - 35 / math.sqrt(1 - 1 / 16))
    assert uniformity.bingham(frame).p == pytest.approx(1)


def test_statistics_are_their_definitions() -> None:
    u = uniformity.directions(gaussian(40, 5))
    moment = torch.stack([torch.outer(x, x) for x in u]).mean(0)
    bingham = 40 * 5 * 7 / 2 * (float(torch.trace(moment @ moment)) - 1 / 5)
    test = uniformity.bingham(u)
    assert test.df == 4 * 7 // 2
    assert test.statistic == pytest.approx(14 + (bingham - 14) / math.sqrt(1 - 1 / 40))
    assert test.p == pytest.approx(stats.chi2.sf(test.statistic, 14))
    wide = gaussian(6, 50)  # fewer points than dimensions: the same statistic by the other way
    moment = torch.stack([torch.outer(x, x) for x in uniformity.directions(wide)]).mean(0)
    bingham = 6 * 50 * 52 / 2 * (float(torch.trace(moment @ moment)) - 1 / 50)
    assert uniformity.bingham(wide).statistic == pytest.approx(1274 + (bingham - 1274) / math.sqrt(1 - 1 / 6))


@pytest.mark.parametrize("test", [uniformity.rayleigh, uniformity.bingham])
def test_neither_lengths_nor_rotations_matter(test: Callable[[Tensor], uniformity.Test]) -> None:
    points = gaussian(30, 10) + 0.3
    turn = torch.linalg.qr(gaussian(10, 10, seed=1)).Q
    found = test(points)
    assert test(points * torch.rand(30, 1).add(0.1)).statistic == pytest.approx(found.statistic, rel=1e-5)
    assert test(points @ turn).statistic == pytest.approx(found.statistic, rel=1e-4)
    assert test(points.view(30, 2, 5)) == found  # latents are flattened


def test_each_test_finds_what_it_is_for() -> None:
    axes = uniformity.projections(64, torch.Generator().manual_seed(1))
    uniform = gaussian(300, 64, seed=3)
    one_side = uniform + 0.35 * gaussian(64, seed=4)
    assert uniformity.rayleigh(one_side).p < 1e-6
    # A preferred axis, whose two ends cancel: invisible to Rayleigh, plain to Bingham, and to projections weakly.
    stretched = uniform * torch.where(torch.arange(64) == 0, 4.0, 1.0)
    assert uniformity.rayleigh(stretched).p > 0.01
    assert uniformity.bingham(stretched).p < 1e-6
    flat = uniform * (torch.arange(64) < 8)  # a subspace: all three-dimensional views of it are uneven
    assert uniformity.projected_bingham(flat, axes).p < 1e-6
    assert uniformity.projected_bingham(uniform, axes).p > 0.01
    assert uniformity.rayleigh(uniform).p > 0.01
    assert uniformity.bingham(uniform).p > 0.01


def test_projections_are_orthonormal() -> None:
    axes = uniformity.projections(100, torch.Generator().manual_seed(0), blocks=5)
    frame = axes.transpose(0, 1).flatten(1)
    assert axes.shape == (5, 100, 3)
    torch.testing.assert_close(frame.T @ frame, torch.eye(15, dtype=torch.float64))


def test_pooled_tests_add_up() -> None:
    tests = [uniformity.rayleigh(gaussian(20, 5, seed=i)) for i in range(4)]
    together = uniformity.pooled(tests)
    assert together.df == 20
    assert together.statistic == pytest.approx(sum(test.statistic for test in tests))
    assert together.p == pytest.approx(stats.chi2.sf(together.statistic, 20))


def test_one_point_says_nothing() -> None:
    with pytest.raises(ValueError, match="at least 2 points"):
        uniformity.rayleigh(gaussian(1, 5))


def test_pairwise_angles() -> None:
    points = torch.tensor([[1.0, 0, 0], [0, 2, 0], [-3, 0, 0], [1, 1, 0]])
    assert uniformity.pairwise_angles(points).tolist() == pytest.approx([90, 180, 45, 90, 45, 135])


def test_chances_are_told_shortly() -> None:
    assert [inspection_pictures.chance(p) for p in (0.5, 0.0312, 3e-7, 0.0)] == ["0.5", "0.031", "3e-07", "< 1e-16"]


# -- copies ------------------------------------------------------------------------------------------------------------


class Images(spheregen.ImageSource):
    """Images [n, C, H, W] in [0, 1], and labels where given."""

    def __init__(self, images: Tensor, labels: list[int] | None = None) -> None:
        super().__init__(None)
        self.images, self.classes = (images * 255).round().byte(), labels or [0] * len(images)

    @classmethod
    def describe(cls, options: Any) -> ImageSpec:
        return ImageSpec(8, 1, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.classes[index]


def photos(count: int, seed: int = 0) -> Tensor:
    """Noise images that an 8-bit file holds exactly."""
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).mul(255).round() / 255


def test_nearest_is_brute_force() -> None:
    queries, vectors = gaussian(7, 20), gaussian(33, 2, 20, seed=1)
    distances, which = nearest(queries, vectors.split(5), 4)
    every = (queries[:, None, None].double() - vectors.double()).square().sum(3).sqrt()
    expected, version = every.min(dim=2)
    order = expected.argsort(dim=1)[:, :4]
    torch.testing.assert_close(distances, expected.gather(1, order))
    assert torch.equal(which // 2, order)
    assert torch.equal(which % 2, version.gather(1, order))


def test_copies_are_found_mirrored_too() -> None:
    training = photos(60)
    samples = torch.cat([training[7:10].flip(-1), training[20:23], photos(2, seed=5)])
    (found,) = find_copies(samples, Images(training), photos(30, seed=6), mirrored=True, neighbours=3, batch_size=7)
    assert found.measure == "pixels"
    assert found.samples.numbers[:6, 0].tolist() == [7, 8, 9, 20, 21, 22]
    assert found.samples.mirrored[:6, 0].tolist() == [True] * 3 + [False] * 3
    assert found.samples.distances[:6, 0].max() < 1e-6
    assert found.samples.distances[6:, 0].min() > 0.1
    assert (found.samples.distances.diff(dim=1) >= 0).all()
    told = found.as_dict()
    assert told["samples"]["smallest"] < 1e-6
    assert told["held_out"]["smallest"] > 0.1
    assert told["sample_is_nearer"] >= 6 / 8
    assert told["p"] < 0.01
    assert told["held_out_in_training"] == 0
    (plain,) = find_copies(samples, Images(training), neighbours=3)
    assert plain.samples.distances[:3, 0].min() > 0.1  # mirror images do not count
    assert plain.held_out is None
    assert "p" not in plain.as_dict()


def test_distances_are_root_mean_squares() -> None:
    a, b = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.25)
    assert torch.dist(pixels(a), pixels(b)) == pytest.approx(0.25)
    a, b = torch.zeros(1, 3, 256, 256), torch.full((1, 3, 256, 256), 0.25)
    assert pixels(a).shape == (1, 3 * 64 * 64)
    assert torch.dist(pixels(a), pixels(b)) == pytest.approx(0.25)


def test_alike_sets_are_alike_and_overlap_is_told() -> None:
    training = Images(photos(100))
    (found,) = find_copies(photos(60, seed=1), training, photos(60, seed=2))
    told = found.as_dict()
    assert told["sample_is_nearer"] == pytest.approx(0.5, abs=0.15)
    assert told["p"] > 0.01
    (found,) = find_copies(photos(60, seed=1), training, photos(100)[:10])
    assert found.as_dict()["held_out_in_training"] == 10


def test_some_training_images_can_stand_for_all() -> None:
    training = photos(50)
    (found,) = find_copies(training[:20], Images(training), neighbours=2, among=10)
    copies = found.samples.distances[:, 0] < 1e-6
    seen = found.samples.numbers.unique()
    assert len(seen) <= 10
    assert copies.sum() == torch.isin(torch.arange(20), seen[torch.isin(seen, torch.arange(20))]).sum()


def test_an_extractor_is_a_second_measure() -> None:
    class Halves(spheregen.FeatureExtractor):
        def __init__(self) -> None:
            super().__init__(None)

        @property
        def label(self) -> str:
            return "halves"

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
            return torch.stack([images[..., :4].flatten(1).mean(1), images[..., 4:].flatten(1).mean(1)], 1), None

    training = photos(30)
    dimmed = training[:4].flatten(2).sort(dim=2).values.view(4, 1, 8, 8)
    by_pixels, by_halves = find_copies(training[:4].flip(-2), Images(training), dimmed, extractor=Halves())
    assert by_halves.measure == "halves"
    assert by_halves.samples.numbers[:, 0].tolist() == [0, 1, 2, 3]  # turned upside down, the halves stay
    assert by_halves.samples.distances[:, 0].max() < 1e-5
    assert by_pixels.samples.distances[:, 0].min() > 0.1


# -- the latents of a model --------------------------------------------------------------------------------------------


def test_latents_are_looked_at_class_by_class(model: SphereModel) -> None:
    training = Images(photos(60), [0, 1] * 25 + [2] * 10)
    held_out = Images(photos(12, seed=1), [0] * 12)
    found = inspect_latents(model, training, held_out=held_out, count=20, classes=[1, 2, 3], batch_size=7)
    assert [(each.label, each.count) for each in found.classes] == [(1, 20), (2, 10)]
    assert found.passed_over == {"3": 0}
    assert found.held_out_angles is None  # it holds class 0 alone
    assert found.dimension == 16
    two = found.classes[1]
    with torch.no_grad():
        x, y = torch.stack([training[i][0] for i in range(50, 60)]).float() / 127.5 - 1, torch.full((10,), 2)
        z = model.encode(x, y)
        v = sphere.spherify(z)
        again = model.encode(model.decode(v, y), y)
    torch.testing.assert_close(two.lengths.sort().values, (z.flatten(1).norm(dim=1) / 4).sort().values)
    torch.testing.assert_close(two.angles.sort().values, sphere.angle_between(v, again).sort().values)
    assert two.resultant == pytest.approx(uniformity.mean_resultant_length(v), rel=1e-4)
    assert two.bingham.statistic == pytest.approx(uniformity.bingham(v).statistic, rel=1e-4)
    torch.testing.assert_close(two.shadow.norm(dim=1), torch.ones(10))
    assert found.overall["rayleigh"].statistic == pytest.approx(sum(each.rayleigh.statistic for each in found.classes))
    json.dumps(found.as_dict())
    whole = inspect_latents(model, training, count=20, classes=[1, 2])
    torch.testing.assert_close(whole.classes[1].angles, two.angles, atol=1e-3, rtol=0)  # whatever the batch

    again_found = inspect_latents(model, training, held_out=held_out, count=20, classes=[0])
    assert again_found.held_out_angles is not None
    assert len(again_found.held_out_angles) == 12


def test_too_few_images_are_refused(model: SphereModel) -> None:
    with pytest.raises(spheregen.SpheregenError, match=r"no class has 10 images; --count and the data allow 4"):
        inspect_latents(model, Images(photos(8), [0, 1] * 4), classes=[0, 1])


def test_without_classes_all_images_are_one(tiny: Callable[..., Recipe]) -> None:
    model = scramble(SphereModel.from_recipe(tiny("conditioner.use=unconditional"))).eval()
    found = inspect_latents(model, Images(photos(30)), count=25)
    assert [(each.name, each.count) for each in found.classes] == [("all images", 25)]


def test_labels_are_read_where_a_source_keeps_none() -> None:
    source = Images(photos(4), [3, 1, 4, 1])
    assert labels_of(source).tolist() == [3, 1, 4, 1]


def test_uniform_latents_pass(tiny: Callable[..., Recipe]) -> None:
    """A model whose encoder is a rotation of Gaussian images has uniform latents, and is told so."""
    shape = tiny().shape

    class Rotation(spheregen.Encoder):
        def __init__(self, options: Any, shape: ModelShape) -> None:
            super().__init__(options, shape)
            self.turn = torch.nn.Parameter(torch.linalg.qr(gaussian(16, 16)).Q)

        def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
            # 8-bit uniform noise made Gaussian, of which 16 coordinates are kept.
            noise = torch.special.ndtri(((images + 1) / 2 * 255 + 0.5) / 256)
            return (noise.flatten(1)[:, :16] @ self.turn).view(-1, 4, 4)

    class Back(spheregen.Decoder):
        def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
            grey = torch.special.ndtr(latents.flatten(1) @ encoder.turn.T) * 2 - 1
            return torch.cat([grey, torch.zeros(len(grey), 48)], 1).view(-1, 1, 8, 8)

    regularizer = tiny().regularizer.build(shape)
    encoder = Rotation(None, shape)
    model = SphereModel(encoder, Back(None, shape), regularizer, shape, tiny().noise.range())
    found = inspect_latents(model, Images(photos(600), [0, 1] * 300), classes=[0, 1], count=300)
    assert min(test.p for test in found.overall.values()) > 0.01
    assert max(each.angles.max() for each in found.classes) < 5
    assert all(each.resultant < 1.5 / math.sqrt(300) for each in found.classes)


# -- the command -------------------------------------------------------------------------------------------------------


def test_inspect_writes_pictures_and_json(invoke: Invoke, run: Path) -> None:
    code, out, err = invoke("inspect", run, "--class", "2-4", "--count", "30", "--samples", "12", "--neighbours", "3")
    assert code == 0, err
    for word in ("Rayleigh", "Bingham", "together", "re-encoding", "nearest training image", "held out"):
        assert word in out
    folder = run / "inspection"
    assert {path.name for path in folder.iterdir()} == {
        "spheres.png", "latents.png", "neighbours.png", "distances.png", "inspection.json",
    }  # fmt: skip
    report = json.loads((folder / "inspection.json").read_text())
    assert [each["name"] for each in report["latents"]["classes"]] == ["2", "3", "4"]
    assert [each["count"] for each in report["latents"]["classes"]] == [30, 30, 30]
    assert report["latents"]["dimension"] == 16
    assert report["settings"] == {
        "seed": 0, "count": 30, "samples": 12, "steps": 2, "among": 1437, "guidance": 1.0, "position": "combo",
    }  # fmt: skip
    assert 0 <= report["copies"][0]["sample_is_nearer"] <= 1
    assert len(report["weights"]["hash"]) == 16
    neighbours = Image.open(folder / "neighbours.png")
    assert neighbours.width > 4 * 64  # a sample and three neighbours
    assert neighbours.height > 12 * 64  # of six samples and six held-out images
    for name in ("spheres", "latents", "distances"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300
            low, high = picture.convert("L").getextrema()
            assert low != high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "nowhere: not a run folder"),
        (["inspect", "RUN", "--class", "12"], "--class 12: this model knows 0 to 9"),
        (["inspect", "RUN", "--device", "warp"], "--device warp"),
    ],
)
def test_errors_are_one_readable_line(invoke: Invoke, run: Path, arguments: list[str], message: str) -> None:
    code, out, err = invoke(*[run if word == "RUN" else word for word in arguments])
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert "Traceback" not in out + err
    assert not (run / "inspection").exists()


def test_without_a_test_split_it_says_so_and_goes_on(
    invoke: Invoke, tmp_path: Path, tiny: Callable[..., Recipe]
) -> None:
    from spheregen.checkpoint import RunFolder

    for label in range(2):
        (tmp_path / "photos" / str(label)).mkdir(parents=True)
        for i, image in enumerate(photos(12, seed=label)):
            Image.fromarray((image[0] * 255).byte().numpy()).save(tmp_path / "photos" / str(label) / f"{i}.png")
    recipe = tiny("data.use=image-folder", f"data.root={tmp_path}/photos", "data.image_size=8", "data.channels=1",
                  "data.classes=2")  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    folder.begin(recipe)
    folder.save_model(scramble(SphereModel.from_recipe(recipe)), {})
    code, _, err = invoke("inspect", folder.path, "--samples", "5")
    assert code == 0, err
    assert "has no test split" in err
    report = json.loads((folder.path / "inspection/inspection.json").read_text())
    assert report["latents"]["held_out_reencoding_angle"] is None
    assert "held_out" not in report["copies"][0]
