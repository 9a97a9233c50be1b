"""Images in webdataset shards, as `spheregen data pack` writes them: in a folder, or at any address fsspec reads."""

from __future__ import annotations

import hashlib
import io
import zlib
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

import spheregen
from spheregen_data.shard_files import CachedFiles, Files, LocalFiles, is_remote


class Shards(spheregen.ImageSource, name="shards"):
    """A set in shards, made by `spheregen data pack`: few large files in place of many small ones.

    An image is read by its place in its tar file. Shards at an address (s3://, gs://, https://, …) are fetched as a
    whole when they are first needed and kept in a folder on this machine, of bounded size, that all processes share.

    Training takes shards in random order and images at random from a few of them at a time. Every image comes once an
    epoch, and the order follows from the recipe's seed, so that a run resumes in the middle of an epoch.
    """

    class Options(spheregen.Options):
        root: str
        """The folder of the index and the shards, or its address: s3://bucket/birds, https://host/birds, …"""
        image_size: int = Field(gt=0)
        """Height and width; that of the packed images, or any where their files were kept as they are."""
        channels: Literal[1, 3] = 3
        """1 for grey, 3 for RGB; those of the packed images, or any where their files were kept as they are."""
        classes: int = Field(ge=0)
        """How many classes there are; 0 for images without labels."""
        split: Literal["train", "test"] = "train"
        """Which part of the set."""
        shuffle_shards: int = Field(8, gt=0)
        """How many shards training reads at a time; the more, the better its batches are mixed."""
        cache: str = "~/.cache/spheregen/shards"
        """Where shards from an address are kept; several sets, and all processes of a machine, may share it."""
        cache_gb: float = Field(20.0, gt=0)
        """How large that folder may grow, in 10⁹ bytes: the shards used longest ago make room."""
        draft: bool = False
        """For files that were kept as they are: let the JPEG decoder halve large photos, as image-folder does."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.files: Files = (
            CachedFiles(options.root, options.cache) if is_remote(options.root) else LocalFiles(options.root)
        )
        name = f"{options.split}.json"
        index = spheregen.ShardIndex.parse(self.files.index(name), self.files.address(name))
        self._refuse_another(index)
        self.names, self.content = index.class_names, index.content
        shards = index.shards
        self.shard_names = [shard.name for shard in shards]
        counts = [len(shard.labels) for shard in shards]
        # A few numbers an image, in arrays: workers share them with their parent for as long as nobody writes to them.
        self.shard_of = np.repeat(np.arange(len(shards)), counts)
        self.offsets, self.sizes, self.crcs, self.labels = (
            np.concatenate([getattr(shard, column) for shard in shards])
            for column in ("offsets", "sizes", "crcs", "labels")
        )
        self.files.expect({shard.name: shard.bytes for shard in shards})
        if isinstance(self.files, CachedFiles):
            self.files.bound(options.cache_gb, options.shuffle_shards, index.content)

    @classmethod
    def describe(cls, options: Options) -> spheregen.ImageSpec:
        return spheregen.ImageSpec(options.image_size, options.channels, options.classes)

    def _refuse_another(self, index: spheregen.ShardIndex) -> None:
        """Refuse a recipe that expects other images than the index tells of."""
        for key, wanted, found in (
            ("image_size", self.options.image_size, index.image_size),
            ("channels", self.options.channels, index.channels),
            ("classes", self.options.classes, len(index.class_names)),
        ):
            if found not in (None, wanted):
                address = self.files.address(f"{self.options.split}.json")
                raise spheregen.DataError(f"{address}: data.{key} is {wanted}, the packed images have {found}")

    @property
    def class_names(self) -> list[str]:
        return self.names

    def fingerprint(self) -> str:
        """Of the index's hash of all images and labels, and of what decides how they are decoded."""
        options = self.options
        decoded = f"{self.content} {options.image_size} {options.channels} {options.draft}"
        return hashlib.sha256(decoded.encode()).hexdigest()

    def epoch_order(self, generator: torch.Generator) -> Tensor:
        """A permutation in which at most `shuffle_shards` shards, k, are under way at any place.

        The shards are ranked at random. An image of the shard of rank i is placed at random in the stretch from i to
        i + k, and images come in the order of their places: at place t they are from the ranks in (t − k, t], and in
        every stretch of 1 one shard begins and one ends.
        """
        k, shards = self.options.shuffle_shards, len(self.shard_names)
        if k >= shards:
            return super().epoch_order(generator)
        rank = torch.randperm(shards, generator=generator)[torch.from_numpy(self.shard_of)]
        place = rank + k * torch.rand(len(self), generator=generator, dtype=torch.float64)
        return place.argsort(stable=True)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        options, shard = self.options, self.shard_names[self.shard_of[index]]
        data = self.files.read(shard, int(self.offsets[index]), int(self.sizes[index]))
        name = f"{self.files.address(shard)}: image {index}"
        if zlib.crc32(data) != self.crcs[index]:
            raise spheregen.DataError(f"{name} is damaged, or the shard belongs to another set")
        image = spheregen.read_image(
            io.BytesIO(data), options.image_size, options.channels, draft=options.draft, name=name
        )
        return image, int(self.labels[index])
