"""The index of a set in shards: what lies beside the tar files of `spheregen data pack` and tells all that is in them.

    birds-shards/
      train.json                        the index of the set "train": ShardIndex as JSON
      train-000000.tar, …               webdataset shards: 000000017.png and 000000017.cls a sample
      test.json, test-000000.tar, …     where there is a test split

The samples' offsets stand in the index, so that the set's length, its classes and any image of it are had without
reading the shards through.
"""

from __future__ import annotations

from typing import Literal

import pydantic

from spheregen.errors import DataError


class Shard(pydantic.BaseModel):
    """One tar file; its lists have an entry a sample, in the file's order."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    """The file's name, in the index's folder."""
    bytes: int
    """The file's length."""
    offsets: list[int]
    """Where the encoded images begin in the file."""
    sizes: list[int]
    """Their lengths in bytes."""
    crcs: list[int]
    """Their CRC-32, so that damage, or a shard of another set, is found when an image is read."""
    labels: list[int]
    """Their classes, 0 where there are none."""

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Shard:
        # The index may come from anywhere, and the name becomes a path.
        if "/" in self.name or "\\" in self.name or self.name.startswith(".") or not self.name.endswith(".tar"):
            raise ValueError(f"{self.name!r} is not the plain name of a tar file")
        if not len(self.offsets) == len(self.sizes) == len(self.crcs) == len(self.labels) > 0:
            raise ValueError(f"{self.name}: its lists are empty or of different lengths")
        if min(self.offsets) < 0 or min(self.sizes) < 0 or min(self.labels) < 0:
            raise ValueError(f"{self.name}: it has negative offsets, sizes or labels")
        if max(map(int.__add__, self.offsets, self.sizes)) > self.bytes:
            raise ValueError(f"{self.name}: an image ends behind its end")
        return self


class ShardIndex(pydantic.BaseModel):
    """What a set in shards holds."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    image_size: int | None
    """Height and width of the images; None where files were kept as they are, of any size."""
    channels: int | None
    """1 (grey) or 3 (RGB); None where files were kept as they are."""
    class_names: list[str]
    """One name a class, in the order of the labels; empty where there are no classes."""
    images: int
    """How many images there are, in all shards."""
    left_out: int = 0
    """How many could not be read when the set was packed, and are not in it."""
    content: str
    """SHA-256 of the encoded images and labels in their order: another one where any of them differs, the same however
    they are cut into shards."""
    shards: list[Shard]

    @pydantic.model_validator(mode="after")
    def _whole(self) -> ShardIndex:
        found = sum(len(shard.labels) for shard in self.shards)
        if found != self.images or not found:
            raise ValueError(f"it promises {self.images} images, its shards list {found}")
        if len({shard.name for shard in self.shards}) < len(self.shards):
            raise ValueError("two of its shards bear one name")
        if max(max(shard.labels) for shard in self.shards) >= max(len(self.class_names), 1):
            raise ValueError(f"a label lies beyond its {len(self.class_names)} classes")
        return self

    @classmethod
    def parse(cls, text: bytes, source: str) -> ShardIndex:
        """An index from its JSON. Raises DataError that names `source`, where the JSON came from."""
        try:
            return cls.model_validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            message = f"{where}{': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
            raise DataError(f"{source}: not a whole index of shards: {' '.join(message.split())}") from None
