"""Packing into shards, and reading them: what goes in comes out, in an order that is quick to read and never lost."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from conftest import Invoke, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from spheregen_data import shard_files
from spheregen_data.digits import Digits
from spheregen_data.image_folder import ImageFolder
from spheregen_data.shards import Shards

from spheregen import DataError, ImageSource, Recipe, RunError, ShardIndex, SpheregenError, Trainer, pack, read_image
from spheregen.loader import Slices, TrainingOrder, training_batches
from spheregen.packing import Packing, packed_order
from spheregen.recipe_files import read_raw

RANDOM = np.random.default_rng(0)


def message(call: Callable[[], Any], kind: type[SpheregenError] = DataError) -> str:
    """The error that a call raises, which must be one line."""
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos of two classes, of several sizes and kinds."""
    root = tmp_path / "photos"
    for split, count in (("train", 9), ("test", 4)):
        for name in ("cats", "dogs"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = RANDOM.integers(0, 256, (20 + number, 30, 3), np.uint8)
                file = root / split / name / f"{number}.{'jpg' if number % 2 else 'png'}"
                Image.fromarray(pixels).save(file)
    return root


def images_of(root: Path, split: str = "train") -> ImageFolder:
    options = {"root": str(root), "image_size": 16, "classes": 2, "split": split}
    return ImageFolder(ImageFolder.Options.model_validate(options))


def shards_of(root: Path | str, **options: Any) -> Shards:
    found = {"root": str(root), "image_size": 16, "classes": 2, **options}
    return Shards(Shards.Options.model_validate(found))


def digits_in(root: Path | str, **options: Any) -> Shards:
    return shards_of(root, image_size=8, channels=1, classes=10, **options)


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    """The photos in shards of four."""
    pack({"train": images_of(folder)}, tmp_path / "shards", Packing(shard_images=4))
    return tmp_path / "shards"


def assert_equal(ours: ImageSource, source: ImageSource, packing: Packing) -> None:
    assert len(ours) == len(source)
    assert ours.class_names == source.class_names
    assert ours.spec == source.spec
    for place, number in enumerate(packed_order(len(source), packing).tolist()):
        (image, label), (expected, expected_label) = ours[place], source[number]
        assert torch.equal(image, expected)
        assert label == expected_label
        assert type(label) is int


# -- what goes in comes out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "packing", [Packing(shard_images=4), Packing(shuffle=False), Packing(shard_images=5, workers=2)]
)
def test_a_folder_in_shards_is_the_folder(folder: Path, tmp_path: Path, packing: Packing) -> None:
    splits = {split: images_of(folder, split) for split in ("train", "test")}
    indices = pack(splits, tmp_path / "out", packing)
    for split, source in splits.items():
        assert_equal(shards_of(tmp_path / "out", split=split), source, packing)
        limit = packing.shard_images or 100
        assert len(indices[split].shards) == -(-len(source) // limit)
    assert packing.shuffle != (shards_of(tmp_path / "out").labels.tolist() == splits["train"].labels.tolist())


def test_digits_in_shards_are_digits(digits: Path) -> None:
    for split in ("train", "test"):
        source = Digits(Digits.Options.model_validate({"split": split}))
        assert_equal(digits_in(digits, split=split), source, Packing())


def test_webdataset_reads_the_shards(packed: Path) -> None:
    import webdataset

    source = shards_of(packed)
    urls = sorted(map(str, packed.glob("train-*.tar")))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == len(source) == 18
    for place, sample in enumerate(samples):
        image, label = source[place]
        assert np.array_equal(sample["png"], image.permute(1, 2, 0).numpy())
        assert sample["cls"] == label


def test_files_can_be_kept_as_they_are(folder: Path, tmp_path: Path) -> None:
    source, packing = images_of(folder), Packing(stored="keep", shard_images=7)
    pack({"train": source}, tmp_path / "out", packing)
    assert_equal(shards_of(tmp_path / "out"), source, packing)
    stored = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as file:
            stored += [file.extractfile(m).read() for m in file if not m.name.endswith("cls")]  # type: ignore[union-attr]
    originals = [Path(source.paths[i]).read_bytes() for i in packed_order(len(source), packing).tolist()]
    assert stored == originals
    # Any size and number of channels can be had from them.
    image, _ = shards_of(tmp_path / "out", image_size=12, channels=1)[0]
    assert torch.equal(image, read_image(io.BytesIO(originals[0]), 12, 1))
    text = message(lambda: pack({"train": Digits(Digits.Options())}, tmp_path / "no", packing))
    assert "no file of its own" in text
    assert not (tmp_path / "no").exists()


def test_jpg_is_smaller_and_close(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    (tmp_path / "in" / "a").mkdir(parents=True)
    Image.fromarray(np.stack([ramp, ramp // 2, 255 - ramp], 2)).save(tmp_path / "in" / "a" / "x.png")
    source = ImageFolder(ImageFolder.Options(root=str(tmp_path / "in"), image_size=64, classes=1))
    sizes = []
    for quality in (50, 95):
        out = tmp_path / str(quality)
        index = pack({"train": source}, out, Packing(stored="jpg", quality=quality))["train"]
        sizes.append(index.shards[0].sizes[0])
        difference = shards_of(out, image_size=64, classes=1)[0][0].int() - source[0][0].int()
        assert 0 < difference.abs().float().mean() < 3
    assert sizes[0] < sizes[1]


def test_a_shard_ends_before_it_is_too_large(tmp_path: Path) -> None:
    index = pack({"train": Digits(Digits.Options())}, tmp_path / "out", Packing(shard_bytes=200_000))["train"]
    lengths = [(tmp_path / "out" / shard.name).stat().st_size for shard in index.shards]
    assert lengths == [shard.bytes for shard in index.shards]
    assert len(lengths) > 10
    assert max(lengths) < 200_000 + 10_240 + 1024  # a tar file is filled up to 10 KiB
    assert min(lengths[:-1]) > 190_000


def test_the_fingerprint_follows_the_content(folder: Path, tmp_path: Path) -> None:
    def print_of(name: str, packing: Packing, split: str = "train") -> str:
        pack({"train": images_of(folder, split)}, tmp_path / name, packing)
        return shards_of(tmp_path / name).fingerprint()

    first = print_of("a", Packing(shard_images=4))
    assert print_of("b", Packing(shard_images=4)) == first
    assert print_of("c", Packing(shard_images=3)) == first  # the same images, cut otherwise
    assert len({first, print_of("d", Packing(seed=1)), print_of("e", Packing(stored="jpg")),
                print_of("f", Packing(), "test")}) == 4  # fmt: skip
    for name in ("train-000000.tar", "train.json"):  # the very bytes
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_describing_reads_nothing() -> None:
    options = Shards.Options(root="s3://nowhere/at-all", image_size=64, channels=1, classes=3)
    assert Shards.describe(options).num_classes == 3


# -- what goes wrong is one line ---------------------------------------------------------------------------------------


def test_unreadable_images_are_refused_or_left_out(folder: Path, tmp_path: Path, invoke: Invoke) -> None:
    (folder / "train" / "cats" / "3.jpg").write_bytes(b"no image")
    call = ["data", "pack", folder, tmp_path / "out", "--set", "data.image_size=16", "--set", "data.classes=2"]
    code, _, error = invoke(*call)
    assert code == 1
    assert "cats/3.jpg: not an image" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]  # nothing half-written
    for switch in (["--on-error", "skip"], ["--set", "data.on_error=skip"]):
        code, out, _ = invoke(*call[:3], tmp_path / switch[1], *call[4:], *switch)
        assert code == 0
        assert "17 images, 2 classes in 1 shards" in out
        assert "1 unreadable left out" in out
        source = shards_of(tmp_path / switch[1])
        assert sorted(source.labels.tolist()) == [0] * 8 + [1] * 9


def test_a_folder_that_is_not_empty_is_refused(folder: Path, packed: Path) -> None:
    before = {path.name: path.read_bytes() for path in packed.iterdir()}
    assert "not an empty folder" in message(lambda: pack({"train": images_of(folder)}, packed), RunError)
    assert {path.name: path.read_bytes() for path in packed.iterdir()} == before


def test_an_interruption_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack({"train": images_of(folder)}, tmp_path / "out", Packing(shard_images=2), stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_a_missing_index_and_a_missing_split_are_told(packed: Path, tmp_path: Path) -> None:
    text = message(lambda: shards_of(tmp_path))
    assert f"{tmp_path}/train.json: no such index" in text
    assert "spheregen data pack" in text
    assert "test.json" in message(lambda: shards_of(packed, split="test"))


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [("image_size", 32, "data.image_size is 32"), ("channels", 1, "data.channels is 1"),
     ("classes", 3, "data.classes is 3, the packed images have 2")],
)  # fmt: skip
def test_other_images_than_the_recipe_expects_are_refused(packed: Path, option: str, value: int, expected: str) -> None:
    assert expected in message(lambda: shards_of(packed, **{option: value}))


def test_damaged_shards_are_named(packed: Path, folder: Path, tmp_path: Path) -> None:
    shard = packed / "train-000001.tar"
    whole = shard.read_bytes()
    source = shards_of(packed)
    shard.write_bytes(whole[:3000])  # while it is in use
    assert "train-000001.tar: 3,000 bytes" in message(lambda: [source[i] for i in range(8)])
    text = message(lambda: shards_of(packed))
    assert "train-000001.tar: 3,000 bytes, its index says" in text
    assert "cut short" in text
    shard.write_bytes(whole + bytes(512))
    assert "another set" in message(lambda: shards_of(packed))
    shard.unlink()
    assert "train-000001.tar: cannot be read: No such file" in message(lambda: shards_of(packed))
    # Another set's shard of the same length, and a byte that changed.
    for other in ((packed / "train-000000.tar").read_bytes().ljust(len(whole), b"\0")[: len(whole)],
                  whole[:1600] + bytes([whole[1600] ^ 1]) + whole[1601:]):  # fmt: skip
        shard.write_bytes(other)
        again = shards_of(packed)
        text = message(lambda again=again: [again[i] for i in range(4, 8)])  # type: ignore[misc]
        assert "train-000001.tar: image" in text
        assert "damaged" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda index: index.update(images=3), "promises 3 images"),
        (lambda index: index["shards"][0].update(name="../../x.tar"), "plain name"),
        (lambda index: index["shards"][1]["labels"].pop(), "different lengths"),
        (lambda index: index.update(class_names=["one"]), "beyond its 1 classes"),
        (lambda index: index["shards"][0]["offsets"].__setitem__(0, 10**9), "behind its end"),
        (lambda index: index.update(version=2), "version"),
        (lambda index: index.pop("shards"), "shards: Field required"),
    ],
)
def test_a_damaged_index_is_refused(packed: Path, change: Callable[[Any], Any], expected: str) -> None:
    index = json.loads((packed / "train.json").read_text())
    change(index)
    (packed / "train.json").write_text(json.dumps(index))
    text = message(lambda: shards_of(packed))
    assert f"{packed}/train.json" in text
    assert expected in text


def test_an_index_that_is_no_json_is_refused(packed: Path) -> None:
    (packed / "train.json").write_text((packed / "train.json").read_text()[:100])
    assert "not a whole index" in message(lambda: shards_of(packed))


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(packed: Path) -> Iterator[str]:
    """The shards at an address in memory."""
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(packed), "/bucket/photos", recursive=True)
    yield "memory://bucket/photos"
    filesystem.rm("/bucket", recursive=True)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that were fetched, in order."""
    names: list[str] = []
    kind: Any = type(fsspec.filesystem("memory"))
    get = kind.get_file

    def noted(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        names.append(path.rsplit("/", 1)[1])
        return get(self, path, *arguments, **options)

    monkeypatch.setattr(kind, "get_file", noted)
    return names


def test_an_address_reads_as_the_folder_does(packed: Path, remote: str, fetched: list[str], tmp_path: Path) -> None:
    local, cache = shards_of(packed), tmp_path / "cache"
    far = shards_of(remote, cache=str(cache))
    assert far.fingerprint() == local.fingerprint()
    assert fetched == []  # the index alone tells length and classes
    for _ in range(2):
        for place in range(len(local)):
            assert torch.equal(far[place][0], local[place][0])
            assert far[place][1] == local[place][1]
    assert fetched == sorted(path.name for path in packed.glob("*.tar"))  # each once
    again = shards_of(remote, cache=str(cache))  # as another process would
    again[0]
    assert len(fetched) == 5
    assert torch.equal(shards_of(f"file://{packed}")[3][0], local[3][0])


def test_of_several_workers_one_fetches(
    packed: Path, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    kind: Any = type(fsspec.filesystem("memory"))
    get = kind.get_file

    def noted(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        with open(notes, "a") as file:  # shared by all processes
            file.write(path.rsplit("/", 1)[1] + "\n")
        return get(self, path, *arguments, **options)

    monkeypatch.setattr(kind, "get_file", noted)
    far = shards_of(remote, cache=str(tmp_path / "cache"))
    batches = training_batches(far, 0, Slices(6), 0, 2, False)
    for _ in range(9):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert sorted(notes.read_text().split()) == sorted(path.name for path in packed.glob("*.tar"))


def test_the_cache_keeps_within_its_bound(packed: Path, remote: str, fetched: list[str], tmp_path: Path) -> None:
    length = (packed / "train-000000.tar").stat().st_size
    cache = tmp_path / "cache"

    def kept() -> list[str]:
        return sorted(path.name for path in cache.rglob("*.tar"))

    far = shards_of(remote, cache=str(cache), cache_gb=2.5 * length / 1e9, shuffle_shards=1)
    for place in (0, 4):
        far[place]
    os.utime(next(cache.rglob("train-000001.tar")), (1, 1))  # used longest ago
    far[8]
    assert kept() == ["train-000000.tar", "train-000002.tar"]
    for place in range(18):
        far[place]
        assert sum(path.stat().st_size for path in cache.rglob("*.tar")) <= 2.5 * length
    # A process that has a shard open reads on when it is gone.
    assert "train-000000.tar" not in kept()
    before = len(fetched)
    far[1]
    assert len(fetched) == before
    text = message(lambda: shards_of(remote, cache=str(cache), cache_gb=2.5 * length / 1e9, shuffle_shards=3))
    assert "data.cache_gb" in text
    assert "data.shuffle_shards" in text


def test_a_damaged_cache_is_mended(remote: str, fetched: list[str], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shards_of(remote, cache=str(cache))[0]
    (path,) = cache.rglob("*.tar")
    path.write_bytes(b"")  # as after a power cut
    shards_of(remote, cache=str(cache))[0]
    assert fetched == ["train-000000.tar"] * 2


def test_what_is_wrong_at_an_address_is_one_line(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(shard_files.time, "sleep", naps.append)
    filesystem = fsspec.filesystem("memory")
    cache = tmp_path / "cache"
    far = shards_of(remote, cache=str(cache))
    with filesystem.open("/bucket/photos/train-000001.tar", "wb") as file:
        file.write(b"short")
    assert f"{remote}/train-000001.tar: 5 bytes" in message(lambda: far[5])
    filesystem.rm("/bucket/photos/train-000002.tar")
    assert f"{remote}/train-000002.tar: no such shard" in message(lambda: far[9])
    assert not [path for path in cache.rglob("*") if path.suffix in (".tar", ".part")]
    assert "memory://bucket/nothing/train.json: no such index" in message(lambda: shards_of("memory://bucket/nothing"))
    assert "nosuch" in message(lambda: shards_of("nosuch://bucket/photos"))
    assert naps == []  # none of these is worth another attempt

    kind: Any = type(filesystem)
    get, failures = kind.get_file, iter([OSError("reset"), TimeoutError(), None])

    def shaky(self: Any, *arguments: Any, **options: Any) -> Any:
        if failure := next(failures):
            raise failure
        return get(self, *arguments, **options)

    monkeypatch.setattr(kind, "get_file", shaky)
    assert far[0][0].shape == (3, 16, 16)
    assert naps == [1, 2]


def test_sources_can_be_pickled(packed: Path, remote: str, tmp_path: Path) -> None:
    for source in (shards_of(packed), shards_of(remote, cache=str(tmp_path))):
        source[0]
        copy = pickle.loads(pickle.dumps(source))
        assert torch.equal(copy[0][0], source[0][0])


# -- the order of an epoch ---------------------------------------------------------------------------------------------


def ordered(counts: list[int], k: int) -> Shards:
    """A source that knows no more than how many images each of its shards has."""
    source = Shards.__new__(Shards)
    source.options = Shards.Options(root=".", image_size=1, classes=0, shuffle_shards=k)
    source.shard_names = [str(i) for i in range(len(counts))]
    source.shard_of = np.repeat(np.arange(len(counts)), counts)
    source.labels = np.zeros(len(source.shard_of), int)
    return source


def under_way(shards: torch.Tensor) -> int:
    """The most shards of which, at any place, some images came and some are still to come."""
    places = [(shards == shard).nonzero().flatten() for shard in shards.unique()]
    spans = torch.tensor([[int(p[0]), int(p[-1])] for p in places])
    return max(int(((spans[:, 0] <= place) & (place <= spans[:, 1])).sum()) for place in range(len(shards)))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 12), st.integers(0, 2**40))
def test_an_order_is_a_permutation_of_few_shards_at_a_time(counts: list[int], k: int, seed: int) -> None:
    source = ordered(counts, k)
    order = source.epoch_order(torch.Generator().manual_seed(seed))
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(sum(counts)))
    assert torch.equal(order, source.epoch_order(torch.Generator().manual_seed(seed)))
    assert under_way(torch.from_numpy(source.shard_of)[order]) <= k


def test_an_order_mixes_shards_and_differs_between_epochs() -> None:
    source = ordered([200] * 50, 8)
    first, second = (source.epoch_order(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert (first == second).float().mean() < 0.01
    shards = torch.from_numpy(source.shard_of)[first]
    batches = shards[: 64 * (len(shards) // 64)].view(-1, 64)
    distinct = torch.tensor([len(batch.unique()) for batch in batches[25:-25]])  # an epoch's ends have fewer
    assert distinct.float().mean() > 7.5
    # Neighbours in a shard are no neighbours in an epoch.
    assert (first.diff().abs() == 1).float().mean() < 0.02


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 3), st.integers(0, 9))
def test_training_takes_the_source_s_order_from_any_step(n: int, processes: int, accumulate: int, step: int) -> None:
    source = ordered([3] * n, 2)
    batch = 2 * processes * accumulate

    def passes(slices: Slices, start: int, count: int) -> Iterator[list[int]]:
        return islice(TrainingOrder(len(source), 5, slices, start, source.epoch_order), count)

    whole = list(chain(*passes(Slices(batch), 0, step + 3)))
    for epoch in range(len(whole) // len(source)):
        assert sorted(whole[epoch * len(source) : (epoch + 1) * len(source)]) == list(range(len(source)))
    parts = [passes(Slices(batch, accumulate, processes, p), step, 3 * accumulate) for p in range(processes)]
    # In each pass, each process has its slice.
    assert list(chain(*chain(*zip(*parts, strict=True)))) == whole[step * batch :]


def test_the_order_of_other_sources_is_what_it_was() -> None:
    from spheregen import rng

    source = Digits(Digits.Options())
    expected = torch.randperm(1437, generator=rng.generator(3, "order", 0))[:40].tolist()
    assert next(iter(TrainingOrder(1437, 3, Slices(40)))) == expected
    assert next(iter(TrainingOrder(1437, 3, Slices(40), 0, source.epoch_order))) == expected


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in 29 shards."""
    root = tmp_path_factory.mktemp("digits") / "shards"
    sources: dict[str, ImageSource] = {
        "train": Digits(Digits.Options()), "test": Digits(Digits.Options(split="test"))
    }  # fmt: skip
    pack(sources, root, Packing(shard_images=50))
    return root


@pytest.mark.parametrize("address", [False, True])
def test_workers_read_what_one_process_reads(digits: Path, tmp_path: Path, address: bool) -> None:
    root, cache = str(digits), {}
    if address:
        fsspec.filesystem("memory").put(str(digits), "/workers", recursive=True)
        # Room for little more than is under way, so that shards come and go.
        limit = sum(path.stat().st_size for path in digits.glob("train-0000[01]?.tar")) / 1e9
        root, cache = "memory://workers", {"cache": str(tmp_path), "cache_gb": limit}
    sources = digits_in(digits, shuffle_shards=3), digits_in(root, shuffle_shards=3, **cache)
    ours, theirs = (
        training_batches(source, 0, Slices(100), 5, workers, False)
        for source, workers in zip(sources, (0, 2), strict=True)
    )
    for _ in range(16):  # beyond an epoch
        (a, la), (b, lb) = next(ours), next(theirs)
        assert torch.equal(a, b)
        assert torch.equal(la, lb)
    theirs.close()  # type: ignore[attr-defined]


def on_shards(tiny: Callable[..., Recipe], root: Path, *more: str) -> Recipe:
    places = ["data.use=shards", f"data.root={root}", "data.image_size=8", "data.channels=1", "data.classes=10"]
    return tiny(*places, "data.shuffle_shards=3", *more)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stop_in_the_middle_of_an_epoch_changes_nothing(
    tiny: Callable[..., Recipe], digits: Path, tmp_path: Path, workers: int
) -> None:
    # 360 images in 8 shards; 15 batches of 36 are an epoch and a half, the stop is in the middle of the first.
    recipe = on_shards(tiny, digits, "data.split=test", "training.batch_size=36", "training.images=540",
                       "training.sample_images=9999", "training.checkpoint_images=9999", "sampling.per_class=1",
                       f"training.workers={workers}")  # fmt: skip
    whole = Trainer(recipe, tmp_path / "whole")
    assert whole.fit()
    halted = Trainer(recipe, tmp_path / "halted")

    step = halted._train_step

    def counted(batches: Any) -> Any:
        halted.stop = halted.step == 5
        return step(batches)

    halted._train_step = counted  # type: ignore[method-assign]
    assert not halted.fit()
    assert halted.step == 6
    assert Trainer(recipe, tmp_path / "halted").fit()
    ours, theirs = state_of(tmp_path / "whole"), state_of(tmp_path / "halted")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_packing_a_recipe_and_training_on_it(
    tiny: Callable[..., Recipe], tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = invoke("data", "pack", "digits", "packed", "--shard-mb", "0.5")
    assert code == 0
    assert "train: 1,437 images, 10 classes in" in out
    assert "test: 360 images" in out
    words = out.strip().splitlines()[-1].split(": ")[1].split()
    recipe = tiny(*[word for word in words if word != "--set"])
    assert len(recipe.data.build()) == 1437
    assert len(recipe.held_out()) == 360
    again = Recipe.parse(recipe.as_dict())
    assert again.data.options == recipe.data.options


def test_a_folder_without_a_test_split_packs_the_other(folder: Path, tmp_path: Path, invoke: Invoke) -> None:
    call = ["data", "pack", folder / "train", tmp_path / "out"]
    code, _, error = invoke(*call)
    assert code == 1
    assert "image_size: is missing (--set data.KEY=VALUE)" in error
    assert "classes: is missing" in error
    code, out, error = invoke(*call, "--set", "data.image_size=16", "--set", "data.classes=2", "--keep")
    assert code == 0
    assert "no test split" in error
    assert "train: 18 images" in out
    index = ShardIndex.parse((tmp_path / "out" / "train.json").read_bytes(), "train.json")
    assert index.image_size is None
    assert index.class_names == ["cats", "dogs"]
    _, _, error = invoke(*call, "--set", "training.lr=1", "--set", "data.image_size=16", "--set", "data.classes=2")
    assert "the section data alone" in error


def test_an_attempt_that_was_killed_is_told(folder: Path, tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / ".out.abc").mkdir()
    settings = ["--set", "data.image_size=16", "--set", "data.classes=2"]
    code, _, error = invoke("data", "pack", folder, tmp_path / "out", *settings)
    assert code == 0
    assert ".out.abc: left from an attempt that was killed" in error


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_another_component_starts_its_section_afresh(order: list[int]) -> None:
    settings = ["data.use=shards", "data.root=s3://bucket/imagenet", "data.classes=1000"]
    raw, _ = read_raw("imagenet_l", [settings[i] for i in order])
    assert raw["data"] == {"use": "shards", "root": "s3://bucket/imagenet", "classes": 1000}
    recipe = Recipe.read("imagenet_l", [*settings, "data.image_size=256"])
    assert recipe.data.component is Shards
    assert recipe.image.size == 256


# -- large photos ------------------------------------------------------------------------------------------------------


def test_drafts_are_close_to_the_exact_images(tmp_path: Path) -> None:
    from sklearn.datasets import load_sample_image

    for name, photo in (("flower", load_sample_image("flower.jpg")), ("china", load_sample_image("china.jpg"))):
        path = tmp_path / f"{name}.jpg"
        Image.fromarray(photo).resize((1707, 1143)).save(path, quality=95)
        for size, halves in ((64, True), (256, True), (300, False), (600, False)):
            exact, draft = (read_image(path, size, 3, draft=draft).double() for draft in (False, True))
            assert torch.equal(exact, draft) != halves  # none where less than twice the size would be left
            assert torch.stack([exact.flatten(), draft.flatten()]).corrcoef()[0, 1] > 0.98
    grey = read_image(path, 64, 1, draft=True)
    assert grey.shape == (1, 64, 64)
