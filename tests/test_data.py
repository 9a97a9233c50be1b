"""Image sources: every pixel and label against files made here, in the formats as they are published."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from spheregen_data.cifar10 import Cifar10
from spheregen_data.digits import Digits
from spheregen_data.fashion_mnist import FashionMNIST
from spheregen_data.flowers102 import Flowers102
from spheregen_data.image_folder import ImageFolder
from torch.utils.data import DataLoader

from spheregen import DataError, ImageSource, ImageSpec, Recipe, RecipeError, read_image

RANDOM = np.random.default_rng(0)


def message(call: Callable[[], Any]) -> str:
    """The DataError that a call raises, which must be one line."""
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_as_described(source: ImageSource) -> None:
    spec = source.spec
    for index in (0, len(source) - 1):
        image, label = source[index]
        assert image.shape == (spec.channels, spec.size, spec.size)
        assert image.dtype == torch.uint8
        assert image.is_contiguous()
        assert type(label) is int
        assert 0 <= label < max(spec.num_classes, 1)
    assert len(source.class_names) == spec.num_classes


# -- digits ------------------------------------------------------------------------------------------------------------


def test_the_splits_of_digits_part_the_published_set() -> None:
    from sklearn.datasets import load_digits

    train, test = Digits(Digits.Options()), Digits(Digits.Options(split="test"))
    assert (len(train), len(test)) == (1437, 360)
    for source in (train, test):
        assert_as_described(source)
    assert train.spec == ImageSpec(8, 1, 10)
    # Together they hold each published image once, in its grey value and with its label.
    pixels, labels = load_digits(return_X_y=True)
    images = torch.cat([train.images, test.images]).flatten(1)
    ours = torch.cat([torch.cat([train.labels, test.labels])[:, None], images.long()], dim=1)
    published = np.concatenate([labels[:, None], np.rint(pixels * 255 / 16)], axis=1)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, published.astype(int).tolist()))
    # Stratified: each class gives a fifth of its images.
    counts = torch.stack([train.labels.bincount(), test.labels.bincount()])
    assert ((counts[1] / counts.sum(0)) - 0.2).abs().max() < 0.005


def test_digits_can_be_enlarged() -> None:
    small, large = Digits(Digits.Options()), Digits(Digits.Options(image_size=32))
    assert_as_described(large)
    back = torch.nn.functional.avg_pool2d(large.images.float(), 4)
    own, other = ((back - images).abs().mean() for images in (small.images, small.images.roll(1, 0)))
    assert own < other / 3
    assert large.images.amax() == small.images.amax() == 255
    assert torch.equal(small.labels, large.labels)


# -- fashion-mnist -----------------------------------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_fashion(folder: Path, n: int = 5, packed: bool = True) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True, exist_ok=True)
    content = {}
    for prefix in ("train", "t10k"):
        images = RANDOM.integers(0, 256, (n, 28, 28), np.uint8)
        labels = RANDOM.integers(0, 10, n).astype(np.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(values)) if packed else idx(values))
        content[prefix] = images, labels
    return content


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_reads_the_published_files(tmp_path: Path, packed: bool) -> None:
    content = write_fashion(tmp_path, packed=packed)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        source = FashionMNIST(FashionMNIST.Options(root=str(tmp_path), split=split))  # type: ignore[arg-type]
        images, labels = content[prefix]
        assert_as_described(source)
        assert torch.equal(source.images[:, 0], torch.from_numpy(images))
        assert source.labels.tolist() == labels.tolist()
    assert source.class_names[0] == "T-shirt/top"


def test_fashion_mnist_can_be_padded_to_32(tmp_path: Path) -> None:
    images, _ = write_fashion(tmp_path)["train"]
    source = FashionMNIST(FashionMNIST.Options(root=str(tmp_path), image_size=32))
    assert_as_described(source)
    assert torch.equal(source.images[:, 0, 2:30, 2:30], torch.from_numpy(images))
    assert source.images.sum() == images.sum(dtype=np.int64)


def test_fashion_mnist_is_found_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion(tmp_path / "data" / "fashion-mnist", n=2)
    write_fashion(tmp_path / "elsewhere" / "fashion-mnist", n=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPHEREGEN_DATA", raising=False)
    assert len(FashionMNIST(FashionMNIST.Options())) == 2
    monkeypatch.setenv("SPHEREGEN_DATA", str(tmp_path / "elsewhere"))
    assert len(FashionMNIST(FashionMNIST.Options())) == 3


def test_missing_fashion_mnist_tells_what_where_and_how(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    text = message(lambda: FashionMNIST(FashionMNIST.Options(root=str(tmp_path))))
    assert "no train-labels-idx1-ubyte" in text
    assert str(tmp_path) in text
    assert "apt-get install dataset-fashion-mnist" in text
    assert "download = true" in text


def damage_cut(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])


def damage_short(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def damage_other(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"<html>not found</html>")


def damage_labels(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(4, np.uint8))))


@pytest.mark.parametrize("damage", [damage_cut, damage_short, damage_other, damage_labels])
def test_damaged_fashion_mnist_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write_fashion(tmp_path)
    damage(tmp_path)
    assert str(tmp_path) in message(lambda: FashionMNIST(FashionMNIST.Options(root=str(tmp_path))))


# -- cifar10 -----------------------------------------------------------------------------------------------------------


def write_cifar(folder: Path, n: int = 3) -> np.ndarray:
    folder.mkdir(parents=True)
    records = RANDOM.integers(0, 256, (6 * n, 3073), np.uint8)
    records[:, 0] %= 10
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for i, name in enumerate(names):
        (folder / name).write_bytes(records[i * n : (i + 1) * n].tobytes())
    return records


def test_cifar10_reads_the_binary_files_in_order(tmp_path: Path) -> None:
    records = write_cifar(tmp_path / "cifar-10-batches-bin")
    for root in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        train = Cifar10(Cifar10.Options(root=str(root)))
        test = Cifar10(Cifar10.Options(root=str(root), split="test"))
        assert_as_described(train)
        assert (len(train), len(test)) == (15, 3)
        assert torch.cat([train.labels, test.labels]).tolist() == records[:, 0].tolist()
        assert test.images.flatten(1).tolist() == records[15:, 1:].tolist()
        # Planes of red, green and blue; rows of 32.
        assert train[4][0][1, 2, 3] == records[4, 1 + 1024 + 2 * 32 + 3]
    assert train.class_names[3] == "cat"


def test_damaged_cifar10_is_refused(tmp_path: Path) -> None:
    options = Cifar10.Options(root=str(tmp_path))
    text = message(lambda: Cifar10(options))
    assert "data_batch_1.bin" in text
    assert "cifar-10-binary.tar.gz" in text
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar(folder)
    (folder / "data_batch_3.bin").write_bytes(bytes(3073 * 3 - 1))
    assert "data_batch_3.bin: cut short" in message(lambda: Cifar10(options))
    (folder / "data_batch_3.bin").write_bytes(bytes([10]) + bytes(3072))
    assert "label 10" in message(lambda: Cifar10(options))


# -- downloads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", [FashionMNIST, Cifar10, Flowers102])
def test_a_download_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, component: type[Any]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    text = message(lambda: component(component.Options(root=str(tmp_path), download=True)))
    assert str(tmp_path) in text
    assert "Name or service not known" in text


def test_a_download_puts_the_files_where_they_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spheregen_data.fashion_mnist._download", lambda root: write_fashion(root / "fashion-mnist"))
    options = FashionMNIST.Options(root=str(tmp_path / "new"), download=True)
    assert len(FashionMNIST(options)) == 5
    monkeypatch.setattr("spheregen_data.fashion_mnist._download", None)  # and it is not fetched again
    assert len(FashionMNIST(options)) == 5


def test_of_several_processes_one_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for processes: each opens the lock's file on its own."""
    count = 4
    all_here = threading.Barrier(count)
    fetched: list[Path] = []

    def fetch(root: Path) -> None:
        fetched.append(root)
        write_fashion(root / "fashion-mnist")

    def build(_: int) -> int:
        all_here.wait()
        return len(FashionMNIST(FashionMNIST.Options(root=str(tmp_path / "new"), download=True)))

    monkeypatch.setattr("spheregen_data.fashion_mnist._download", fetch)
    with ThreadPoolExecutor(count) as pool:
        assert list(pool.map(build, range(count))) == [5] * count
    assert len(fetched) == 1


def test_a_download_cut_short_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(root: Path) -> None:
        write_fashion(root / "fashion-mnist")
        raise OSError("connection lost")

    options = FashionMNIST.Options(root=str(tmp_path / "new"), download=True)
    monkeypatch.setattr("spheregen_data.fashion_mnist._download", cut)
    assert "connection lost" in message(lambda: FashionMNIST(options))
    assert not (tmp_path / "new" / "fashion-mnist").exists()
    monkeypatch.setattr("spheregen_data.fashion_mnist._download", lambda root: write_fashion(root / "fashion-mnist"))
    assert len(FashionMNIST(options)) == 5


# -- flowers102 --------------------------------------------------------------------------------------------------------


def write_flowers(folder: Path) -> None:
    from scipy.io import savemat

    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 7):
        Image.new("RGB", (40, 30), (40 * number, 0, 0)).save(folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": [[77, 1, 102, 5, 5, 9]]})
    savemat(folder / "setid.mat", {"trnid": [[6, 1]], "valid": [[3]], "tstid": [[2, 4, 5]]})


def test_flowers102_joins_the_published_parts(tmp_path: Path) -> None:
    write_flowers(tmp_path / "flowers-102")
    expected = {"train": [1, 6], "val": [3], "test": [2, 4, 5], "all": [1, 2, 3, 4, 5, 6]}
    labels = dict(enumerate([77, 1, 102, 5, 5, 9], 1))
    for split, numbers in expected.items():
        source = Flowers102(Flowers102.Options(root=str(tmp_path), split=split, image_size=16))  # type: ignore[arg-type]
        assert_as_described(source)
        found = [source[i] for i in range(len(source))]
        assert [label + 1 for _, label in found] == [labels[number] for number in numbers]
        reds = [round(float(image[0].float().mean()) / 40) for image, _ in found]
        assert reds == numbers
    assert Flowers102.Options().split == "all"
    assert source.class_names[76] == "passion flower"


def test_a_model_of_all_flowers_has_nothing_held_out(tmp_path: Path) -> None:
    write_flowers(tmp_path / "flowers-102")
    root = f'data.root="{tmp_path}"'
    with pytest.raises(RecipeError, match=r'^\[data\] flowers102: split = "all" holds nothing out; split = "train"'):
        Recipe.read("oxford_flowers_l", [root]).held_out()
    held_out = Recipe.read("oxford_flowers_l", [root, "data.split=train"]).held_out()
    assert held_out.numbers.tolist() == [2, 4, 5]
    with pytest.raises(RecipeError, match=r'split = "test" leaves nothing'):
        Recipe.read("oxford_flowers_l", [root, "data.split=test"]).held_out()


def test_damaged_flowers102_is_refused(tmp_path: Path) -> None:
    options = Flowers102.Options(root=str(tmp_path))
    assert "setid.mat" in message(lambda: Flowers102(options))
    write_flowers(tmp_path / "flowers-102")
    setid = tmp_path / "flowers-102" / "setid.mat"
    setid.write_bytes(setid.read_bytes()[:150])
    assert "setid.mat: not the published file" in message(lambda: Flowers102(options))


# -- image files -------------------------------------------------------------------------------------------------------


def square(path: Path, mode: str, colour: Any, **save: Any) -> Path:
    Image.new(mode, (20, 20), colour).save(path, **save)
    return path


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "expected"),
    [
        ("L", "png", 90, (90, 90, 90)),
        ("1", "png", 1, (255, 255, 255)),
        ("RGB", "png", (10, 20, 30), (10, 20, 30)),
        ("RGBA", "png", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", "png", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", "webp", (0, 0, 0, 102), (153, 153, 153)),
        ("LA", "png", (100, 0), (255, 255, 255)),
        ("CMYK", "tif", (255, 0, 0, 0), (0, 255, 255)),
        ("I;16", "png", 257 * 77, (77, 77, 77)),
        ("I;16", "png", 65535, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str, colour: Any, expected: tuple[int, ...]) -> None:
    path = square(tmp_path / f"image.{suffix}", mode, colour)
    image = read_image(path, 8, 3)
    assert image.shape == (3, 8, 8)
    assert image.is_contiguous()
    assert (image.float() - torch.tensor(expected).view(3, 1, 1)).abs().max() <= 1
    grey = read_image(path, 8, 1)
    assert grey.shape == (1, 8, 8)
    assert (grey.float() - Image.new("RGB", (1, 1), expected).convert("L").getpixel((0, 0))).abs().max() <= 1  # type: ignore[operator]


def test_palettes_and_their_transparency_are_resolved(tmp_path: Path) -> None:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([200, 100, 50, 0, 0, 255])
    image.paste(1, (10, 0, 20, 20))
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "transparent.png", transparency=1)
    opaque, transparent = (read_image(tmp_path / f"{name}.png", 20, 3) for name in ("opaque", "transparent"))
    for pixels in (opaque, transparent):
        assert pixels[:, 5, 5].tolist() == [200, 100, 50]
    assert opaque[:, 5, 15].tolist() == [0, 0, 255]
    assert transparent[:, 5, 15].tolist() == [255, 255, 255]


def test_floats_are_refused(tmp_path: Path) -> None:
    path = square(tmp_path / "image.tif", "F", 0.5)
    assert "unknown range" in message(lambda: read_image(path, 8, 3))


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), "black")
    image.paste("red", (0, 0, 64, 32))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: to be turned 90° clockwise
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    pixels = read_image(tmp_path / "turned.jpg", 8, 3)[0]
    assert pixels[:, 6:].float().mean() > 220  # now the right half
    assert pixels[:, :2].float().mean() < 30


@pytest.mark.parametrize("size", [(64, 40), (40, 64), (211, 300), (33, 32), (32, 32), (17, 24), (129, 64)])
def test_the_crop_keeps_the_centre_and_the_aspect(tmp_path: Path, size: tuple[int, int]) -> None:
    """A white disc in the middle, its diameter half the shorter side, stays one, wherever it came from."""
    scale = 4
    width, height = size[0] * scale, size[1] * scale
    y, x = np.mgrid[:height, :width] + 0.5
    radius = min(width, height) / 4
    disc = ((x - width / 2) ** 2 + (y - height / 2) ** 2 < radius**2).astype(np.uint8) * 255
    Image.fromarray(disc).resize(size, Image.Resampling.BOX).save(tmp_path / "disc.png")
    pixels = read_image(tmp_path / "disc.png", 32, 1)[0].double() / 255
    steps = torch.arange(32) + 0.5
    mass = pixels.sum()
    assert mass == pytest.approx(np.pi * 8**2, rel=0.05)
    for axis in (0, 1):
        profile = pixels.sum(axis)
        centre = (profile * steps).sum() / mass
        assert centre == pytest.approx(16, abs=0.51)  # an odd margin cannot be halved
        spread = (profile * (steps - centre) ** 2).sum() / mass
        assert spread.sqrt() == pytest.approx(8 / 2, rel=0.03)  # a disc's radius is twice its standard deviation


# -- image folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of three images, whose grey value is 10 × class + number, and files that are no images."""
    root = tmp_path / "images"
    for c, name in enumerate(["ant", "bee", "cow"]):
        (root / name / "deep").mkdir(parents=True)
        for n, file in enumerate(["a.png", "b.PNG", "deep/c.bmp"]):
            square(root / name / file, "L", 10 * c + n)
        (root / name / "notes.txt").write_text("not an image")
        (root / name / ".hidden.png").write_text("not an image")
    (root / ".cache").mkdir()
    square(root / "beside.png", "L", 99)
    return root


def options(root: Path, **changes: Any) -> ImageFolder.Options:
    return ImageFolder.Options(**{"root": str(root), "image_size": 8, "channels": 1, "classes": 3, **changes})


def greys(source: ImageFolder) -> list[int]:
    return [int(source[i][0].float().mean()) for i in range(len(source))]


def test_an_image_folder_is_its_class_folders_in_order(folder: Path) -> None:
    source = ImageFolder(options(folder))
    assert_as_described(source)
    assert source.spec == ImageSpec(8, 1, 3)
    assert source.class_names == ["ant", "bee", "cow"]
    assert greys(source) == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert [source[i][1] for i in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert ImageFolder(options(folder, channels=3))[4][0].shape == (3, 8, 8)


def test_the_order_is_not_the_file_systems(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir, listdir = os.scandir, os.listdir
    backwards = False

    class Listing(ExitStack):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.entries = iter(sorted(scandir(path), key=lambda entry: entry.name, reverse=backwards))

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            return self.entries

        def __next__(self) -> os.DirEntry[str]:
            return next(self.entries)

    monkeypatch.setattr(os, "scandir", Listing)
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=backwards))
    forwards = ImageFolder(options(folder))
    backwards = True
    source = ImageFolder(options(folder))
    assert source.class_names == forwards.class_names == ["ant", "bee", "cow"]
    assert source.paths == forwards.paths
    assert source.paths == sorted(source.paths)


def test_an_image_folder_without_classes(folder: Path) -> None:
    source = ImageFolder(options(folder, classes=0))
    assert source.spec.num_classes == 0
    assert source.class_names == []
    assert sorted(greys(source)) == [0, 1, 2, 10, 11, 12, 20, 21, 22, 99]
    assert {source[i][1] for i in range(len(source))} == {0}


def test_a_wrong_number_of_classes_is_refused(folder: Path) -> None:
    text = message(lambda: ImageFolder(options(folder, classes=5)))
    assert str(folder) in text
    assert "expected 5" in text
    assert "found 3" in text


def test_empty_and_missing_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "dog").mkdir()
    assert f"{folder / 'dog'}: no images" in message(lambda: ImageFolder(options(folder, classes=4)))
    (tmp_path / "empty").mkdir()
    assert "found 0" in message(lambda: ImageFolder(options(tmp_path / "empty")))
    assert "no images" in message(lambda: ImageFolder(options(tmp_path / "empty", classes=0)))
    assert "no such folder" in message(lambda: ImageFolder(options(tmp_path / "nowhere")))


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_splits_are_folders(folder: Path, tmp_path: Path, held_out: str) -> None:
    assert "no test split" in message(lambda: ImageFolder(options(folder, split="test")))
    root = tmp_path / "parted"
    root.mkdir()
    folder.rename(root / "train")
    assert len(ImageFolder(options(root))) == 9
    assert "neither test nor val" in message(lambda: ImageFolder(options(root, split="test")))
    for name in ("ant", "bee", "cow"):
        (root / held_out / name).mkdir(parents=True)
        square(root / held_out / name / "x.png", "L", 50)
    assert greys(ImageFolder(options(root, split="test"))) == [50, 50, 50]
    assert len(ImageFolder(options(root))) == 9


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_an_unreadable_file_is_refused_by_name(folder: Path) -> None:
    noise = Image.fromarray(RANDOM.integers(0, 256, (40, 40), np.uint8))
    noise.save(folder / "bee" / "a.png")
    truncate(folder / "bee" / "a.png")
    (folder / "cow" / "a.png").write_text("<html>not found</html>")
    source = ImageFolder(options(folder))
    assert str(folder / "bee" / "a.png") in message(lambda: source[3])
    assert str(folder / "cow" / "a.png") in message(lambda: source[6])
    assert source[4][1] == 1


def test_an_unreadable_file_can_be_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "deep/c.bmp"):
        (folder / "bee" / name).write_text("broken")
    source = ImageFolder(options(folder, on_error="skip"))
    assert source.skipped == 0
    for _ in range(2):  # the second time from memory
        assert greys(source) == [0, 1, 2, 11, 11, 11, 20, 21, 22]
        assert [source[i][1] for i in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert source.skipped == 2
    assert source.unreadable == [str(folder / "bee" / "a.png"), str(folder / "bee" / "deep" / "c.bmp")]
    assert len(caplog.records) == 2
    assert str(folder / "bee" / "a.png") in caplog.messages[0]
    (folder / "bee" / "b.PNG").write_text("broken")
    text = message(lambda: ImageFolder(options(folder, on_error="skip"))[3])
    assert str(folder / "bee") in text
    assert "none of its 3 images" in text


def test_workers_see_the_same_images_and_their_skips_are_known(folder: Path) -> None:
    (folder / "ant" / "a.png").write_text("broken")
    (folder / "cow" / "b.PNG").write_text("broken")
    source = ImageFolder(options(folder, on_error="skip"))
    batches = list(DataLoader(source, batch_size=2, num_workers=2))  # type: ignore[arg-type]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert source.skipped == 2
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.stack([source[i][0] for i in range(9)]))


def test_sources_can_be_pickled(folder: Path) -> None:
    copy = pickle.loads(pickle.dumps(ImageFolder(options(folder))))
    assert greys(copy) == [0, 1, 2, 10, 11, 12, 20, 21, 22]


def test_describing_touches_no_disk() -> None:
    assert ImageFolder.describe(options(Path("/nowhere"), classes=7)) == ImageSpec(8, 1, 7)
    assert FashionMNIST.describe(FashionMNIST.Options(root="/nowhere", image_size=32)) == ImageSpec(32, 1, 10)
    assert Cifar10.describe(Cifar10.Options(root="/nowhere")) == ImageSpec(32, 3, 10)
    assert Flowers102.describe(Flowers102.Options(root="/nowhere")) == ImageSpec(256, 3, 102)
