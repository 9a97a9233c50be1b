"""Packing an image source into webdataset shards with an index: few large files in place of many small ones.

pack({"train": source}, "birds-shards")
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from spheregen import rng
from spheregen.checkpoint import new_folder
from spheregen.errors import DataError, SpheregenError
from spheregen.interfaces import ImageSource
from spheregen.shard_index import Shard, ShardIndex

BLOCK = 512  # a tar file is made of blocks: one for a member's header, then its bytes, filled up


@dataclass(frozen=True)
class Packing:
    """How to pack.

    stored: "png" keeps every pixel as the source gives it, "jpg" compresses at `quality` (1 to 95), "keep" takes the
    source's own files as they are. shard_bytes, shard_images: a shard ends before it exceeds either. shuffle: store in
    a random order, so that each shard is a mixture of the classes and reading a few shards at a time is enough to
    shuffle. skip: leave out images that cannot be read, and count them, instead of refusing.
    """

    stored: Literal["png", "jpg", "keep"] = "png"
    quality: int = 95
    shard_bytes: int = 256 * 10**6
    shard_images: int | None = None
    shuffle: bool = True
    seed: int = 0
    skip: bool = False
    workers: int = 0


Progress = Callable[[str, int, int], None]


def pack(
    sources: Mapping[str, ImageSource],
    out: str | Path,
    packing: Packing = Packing(),
    on_progress: Progress = lambda name, done, total: None,
) -> dict[str, ShardIndex]:
    """Write each source as a set of shards into the folder `out`, which appears when all are whole.

    sources: by the name of the set, "train" or "test". on_progress is told a set's name, how many of its images are
    done and how many there are. Raises RunError where `out` is not empty, DataError where an image cannot be read, or
    none can, SpheregenError where the package webdataset is missing.
    """
    try:
        with new_folder(out) as aside:
            return {name: _pack_set(name, source, aside, packing, on_progress) for name, source in sources.items()}
    except OSError as error:  # the disk is full, or not ours to write to; what images raise is a DataError
        raise SpheregenError(f"{out}: cannot be written: {error.strerror or error}") from None


def packed_order(images: int, packing: Packing) -> Tensor:
    """The source's numbers of the images in the order in which they are packed, the unreadable ones included."""
    if not packing.shuffle:
        return torch.arange(images)
    return torch.randperm(images, generator=rng.generator(packing.seed, "pack"))


def _pack_set(name: str, source: ImageSource, folder: Path, packing: Packing, on_progress: Progress) -> ShardIndex:
    writer = ShardFolder(folder, name, packing)
    content = hashlib.sha256()
    left_out, total = 0, len(source)
    try:
        for done, sample in enumerate(_samples(source, packing)):
            on_progress(name, done, total)
            if isinstance(sample, str):
                if not packing.skip:
                    raise DataError(sample)
                left_out += 1
                continue
            content.update(f"{sample.label} {len(sample.encoded)} ".encode())
            content.update(sample.encoded)
            writer.write(sample)
    finally:
        writer.close()
    on_progress(name, total, total)
    if not writer.shards:
        raise DataError(f"{name}: none of its {total} images can be read")
    spec, kept = source.spec, packing.stored == "keep"
    index = ShardIndex(
        image_size=None if kept else spec.size,
        channels=None if kept else spec.channels,
        class_names=source.class_names,
        images=total - left_out,
        left_out=left_out,
        content=content.hexdigest(),
        shards=writer.shards,
    )
    (folder / f"{name}.json").write_text(index.model_dump_json() + "\n", encoding="utf-8")
    return index


# -- images, encoded ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """An encoded image: the ending of a file of it, its bytes, and its label."""

    ending: str
    encoded: bytes
    label: int


class Encoded(Dataset[Any]):
    """A source's images as samples; one that cannot be read as the message that says so."""

    def __init__(self, source: ImageSource, packing: Packing) -> None:
        self.source, self.packing = source, packing

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample | str:
        try:
            image, label = self.source[index]  # of a file that is kept too: what is packed can be read
            if self.packing.stored != "keep":
                return Sample(self.packing.stored, encode(image, self.packing), label)
            original = self.source.original(index)
        except DataError as error:
            return str(error)
        if original is None:
            return f"{self.source.name}: image {index} is no file of its own that could be kept (--keep)"
        return Sample(*original, label)


def encode(image: Tensor, packing: Packing) -> bytes:
    """uint8 [C, H, W] -> a PNG or JPEG file."""
    pixels = image.squeeze(0) if image.shape[0] == 1 else image.permute(1, 2, 0)
    file = io.BytesIO()
    picture = Image.fromarray(pixels.numpy())
    if packing.stored == "png":
        picture.save(file, "PNG")
    else:
        picture.save(file, "JPEG", quality=packing.quality, subsampling=0)  # colours at full resolution
    return file.getvalue()


def _samples(source: ImageSource, packing: Packing) -> Iterator[Sample | str]:
    """The source's samples in the order of packing, made by as many processes as were asked for."""
    order = packed_order(len(source), packing)
    chosen = Subset(Encoded(source, packing), order.tolist())
    # In chunks, because each passes between processes as a whole.
    for chunk in DataLoader(chosen, 16, num_workers=packing.workers, collate_fn=list):
        yield from chunk


# -- shards ------------------------------------------------------------------------------------------------------------


@dataclass
class ShardFolder:
    """Writes samples into shards <name>-000000.tar, … in a folder, and notes each shard's table."""

    folder: Path
    name: str
    packing: Packing
    shards: list[Shard] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            import webdataset
        except ImportError:
            raise SpheregenError("packing needs the package webdataset: pip install 'spheregen[shards]'") from None
        self.count = 0
        self.begin()
        # The limits are kept here, because webdataset leaves headers out of a shard's size; for small images they are
        # most of it.
        self.writer = webdataset.ShardWriter(
            f"{self.name}-%06d.tar", maxcount=2**62, maxsize=2**62, verbose=0, opener=self.open, post=self.finish,
            encoder=False, mtime=0,
        )  # fmt: skip

    def begin(self) -> None:
        self.bytes = 0
        self.rows: list[tuple[int, int, int]] = []  # size, crc, label

    def open(self, name: str) -> Any:
        self.file = open(self.folder / name, "wb")  # noqa: SIM115  # finish closes it
        return self.file

    def write(self, sample: Sample) -> None:
        label = str(sample.label).encode()
        size = sum(BLOCK + -(-len(part) // BLOCK) * BLOCK for part in (sample.encoded, label))
        full = self.bytes + size > self.packing.shard_bytes or len(self.rows) == self.packing.shard_images
        if self.rows and full:
            self.writer.next_stream()
        self.writer.write({"__key__": f"{self.count:09d}", sample.ending: sample.encoded, "cls": label})
        self.rows.append((len(sample.encoded), zlib.crc32(sample.encoded), sample.label))
        self.bytes += size
        self.count += 1

    def finish(self, name: str) -> None:
        """A shard is whole: on the disk with it, and its table from what a reader of tar files finds in it."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if self.rows:
            with tarfile.open(self.folder / name) as file:
                images = [member for member in file if not member.name.endswith(".cls")]
            sizes, crcs, labels = (list(column) for column in zip(*self.rows, strict=True))
            assert [member.size for member in images] == sizes
            offsets = [member.offset_data for member in images]
            length = (self.folder / name).stat().st_size
            self.shards.append(
                Shard(name=name, bytes=length, offsets=offsets, sizes=sizes, crcs=crcs, labels=labels)
            )  # fmt: skip
        self.begin()

    def close(self) -> None:
        self.writer.close()
