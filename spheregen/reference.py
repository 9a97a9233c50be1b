"""Features of many images: extracted in chunks that survive an interruption, summed up, and cached for a data set.

Images pass through in batches and are gone. Their features go to disk a chunk at a time, so that a stopped extraction
goes on where it was, and processes share the work by taking chunks in turn.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from safetensors.torch import save_file
from torch import Tensor

from spheregen.checkpoint import read_tensors, replacing
from spheregen.errors import DataError, RunError
from spheregen.interfaces import FeatureExtractor, ImageSource

CHUNK = 500  # images; a multiple of no batch size: chunks are the same however many processes or images at a time
Progress = Callable[[str, int, int], None]


@dataclass
class Features:
    """What an extractor made of a set of images, in their order.

    features [n, F] and logits [n, K] or None, float32; labels int64 [n].
    """

    features: Tensor
    logits: Tensor | None
    labels: Tensor

    def __len__(self) -> int:
        return len(self.features)


@dataclass
class Moments:
    """Mean [F] and covariance [F, F], float64, of the features of `count` images."""

    mean: Tensor
    covariance: Tensor
    count: int


def moments(chunks: Iterator[Tensor]) -> Moments:
    """Moments of features that come chunk by chunk, [n, F] each, of which only one is held at a time."""
    count = 0
    for chunk in chunks:
        x = chunk.double()
        if not count:
            shift = x.mean(0)  # so that nothing is lost where the mean is large beside the spread
            total, products = torch.zeros_like(shift), x.new_zeros(len(shift), len(shift))
        x = x - shift
        count += len(x)
        total += x.sum(0)
        products += x.T @ x
    if count < 2:
        raise DataError(f"statistics need at least 2 images, there are {count}")
    mean = total / count
    return Moments(shift + mean, (products - count * torch.outer(mean, mean)) / (count - 1), count)


class Chunks:
    """A folder of features, a file for each `CHUNK` images."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def extract(self, images: Callable[[int, int], tuple[Tensor, Tensor]], extractor: FeatureExtractor,
                what: str, progress: Progress) -> None:  # fmt: skip
        """Fill in the chunks that are missing. images: (begin, end) -> images [n, C, H, W] in [0, 1], labels [n].

        Each process takes its turn; all return when all are done.
        """
        state = processes()
        device = next((t.device for t in [*extractor.parameters(), *extractor.buffers()]), torch.device("cpu"))
        numbers = range(state.process_index, -(-self.count // CHUNK), state.num_processes)
        for number in numbers:
            begin, end = number * CHUNK, min((number + 1) * CHUNK, self.count)
            if not self._is_whole(number, end - begin):
                x, labels = images(begin, end)
                made = [extract(extractor, batch, device) for batch in x.split(100)]
                tensors = {"features": torch.cat([features for features, _ in made]), "labels": labels}
                if made[0][1] is not None:
                    tensors["logits"] = torch.cat([logits for _, logits in made if logits is not None])
                with replacing(self.path(number)) as aside:
                    save_file(tensors, aside)
            progress(what, end, self.count)
        state.wait_for_everyone()

    def _is_whole(self, number: int, count: int) -> bool:
        try:
            return len(read_tensors(self.path(number))[0]["features"]) == count
        except (RunError, KeyError):
            return False

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for number in range(-(-self.count // CHUNK)):
            yield read_tensors(self.path(number))[0]

    def moments(self) -> Moments:
        return moments(chunk["features"] for chunk in self)

    def load(self, limit: int | None = None) -> Features:
        """All features, or those of `limit` images evenly spread over the set."""
        picks = torch.arange(self.count) if limit is None or limit >= self.count else spaced(self.count, limit)
        parts: dict[str, list[Tensor]] = {"features": [], "logits": [], "labels": []}
        for number, chunk in enumerate(self):
            rows = picks[(picks >= number * CHUNK) & (picks < (number + 1) * CHUNK)] - number * CHUNK
            for name, tensor in chunk.items():
                parts[name].append(tensor[rows])
        joined = {name: torch.cat(tensors) if tensors else None for name, tensors in parts.items()}
        assert joined["features"] is not None
        assert joined["labels"] is not None
        return Features(joined["features"], joined["logits"], joined["labels"])


def processes() -> PartialState:
    """accelerate's view of the processes that run this program together, on processors too (ACCELERATE_USE_CPU)."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


@torch.no_grad()
def extract(extractor: FeatureExtractor, images: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
    features, logits = extractor(images.to(device))
    return features.float().cpu(), None if logits is None else logits.float().cpu()


def spaced(count: int, picked: int) -> Tensor:
    """`picked` of `count` indices, evenly spread."""
    return torch.linspace(0, count - 1, picked, dtype=torch.float64).round().long()


def read_images(source: ImageSource, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Some of a source's images [n, C, H, W] in [0, 1], and labels [n]. Raises DataError where they differ in size."""
    images, labels = zip(*(source[index] for index in indices.tolist()), strict=True)
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise DataError(f"images of one size are needed, found {' and '.join(map(str, sorted(shapes)))}")
    return torch.stack(images).float() / 255, torch.tensor(labels)


def extractor_key(extractor: FeatureExtractor) -> str:
    """A hash of what an extractor is: its name, its options and its weights."""
    digest = hashlib.sha256(f"{extractor.name} {extractor.options.model_dump_json()}".encode())
    for name, tensor in sorted(extractor.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where statistics of data sets are kept: $SPHEREGEN_CACHE, or ~/.cache/spheregen."""
    return Path(os.environ.get("SPHEREGEN_CACHE") or Path("~/.cache/spheregen").expanduser())


@dataclass
class Reference:
    """A data set's features: moments over all its images, and `features` of `limit` of them at most.

    key: a hash of the images and of the extractor; metrics are told with it.
    """

    key: str
    moments: Moments
    features: Features


def reference(source: ImageSource, extractor: FeatureExtractor, limit: int, progress: Progress) -> Reference:
    """The reference of a data set: from the cache where one of the same key is there and whole, made otherwise."""
    count = len(source)
    identity = {
        "images": source.fingerprint(),
        "count": count,
        "extractor": extractor_key(extractor),
        "limit": min(limit, count),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "reference" / f"{key}.safetensors"
    chunks = Chunks(path.with_suffix(""), count)
    if (found := _cached(path, identity)) is None:
        chunks.extract(
            lambda begin, end: read_images(source, torch.arange(begin, end)), extractor, "reference", progress
        )
        state = processes()
        if state.is_main_process:
            made, kept = chunks.moments(), chunks.load(limit)
            tensors = {"mean": made.mean, "covariance": made.covariance, "features": kept.features,
                       "labels": kept.labels}  # fmt: skip
            if kept.logits is not None:
                tensors["logits"] = kept.logits
            with replacing(path) as aside:
                save_file(tensors, aside, metadata={"identity": json.dumps(identity)})
            remove(chunks.folder)
        state.wait_for_everyone()
        found = _cached(path, identity)
    if found is None:
        raise RunError(f"{path}: the statistics written there cannot be read back")
    held = Features(found["features"], found.get("logits"), found["labels"])
    return Reference(key, Moments(found["mean"], found["covariance"], count), held)


def _cached(path: Path, identity: dict[str, Any]) -> dict[str, Tensor] | None:
    """The tensors of a cached reference, None where it is missing, damaged or another's."""
    try:
        tensors, notes = read_tensors(path)
    except RunError:
        return None
    fits = notes.get("identity") == json.dumps(identity) and {"mean", "covariance", "features", "labels"} <= {*tensors}
    return tensors if fits else None


def remove(folder: Path) -> None:
    """Remove a folder of chunks."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    folder.rmdir()
