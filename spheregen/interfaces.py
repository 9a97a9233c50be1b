"""The interfaces that plugins implement.

Conventions, everywhere: B images a batch; images are float [B, C, H, W] in [-1, 1] inside the networks and [0, 1] at
every public edge; latents are float [B, N, D] with N tokens of D channels, L = N·D; labels are int64 [B], where
`shape.null_label` stands for "no class", or None for an unconditional model.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spheregen import rng
from spheregen.component import Component, ImageSpec, ModelShape, Options
from spheregen.errors import SpheregenError


class Network(nn.Module, Component, ABC):
    """What Encoder and Decoder share: they are built from their options and the sizes all parts agree on.

    `many_labels`: whether `forward` takes k·B labels for B inputs, as `repeat_for` orders them. The two branches of
    guidance then share what the network computes before its first look at the labels. Where it is False, inputs come
    repeated.
    """

    many_labels: bool = False

    def __init__(self, options: Any, shape: ModelShape) -> None:
        super().__init__()
        self.options = options
        self.shape = shape

    @classmethod
    def check(cls, options: Any, shape: ModelShape) -> None:
        """Refuse sizes that do not fit each other, when the recipe is read and before anything is built.

        Raises ValueError with a message that begins with the option's name and a colon.
        """

    def repeated_blocks(self) -> list[nn.Module]:
        """The blocks, alike and in a row, that make up most of the network: what training compiles, or computes again
        in the backward pass, one at a time. None, as here, where there are none."""
        return []

    def embed(self, labels: Tensor) -> Tensor:
        """The vectors that stand for classes inside this network: int64 [B] -> float [B, width].

        A network that has them takes such vectors, or blends of them, in `forward` where labels are expected. Raises
        SpheregenError, as here, for a network that cannot.
        """
        raise SpheregenError(f"{self.kind} '{self.name}' cannot blend classes: it has no embed(labels)")

    def authors_names(self) -> dict[str, str]:
        """For `spheregen import`: the name that each tensor of `state_dict()` bears in checkpoints made with the paper
        authors' code, after their leading `encoder.` or `decoder.`. Shapes and meaning must be the same. Empty, as
        here, for a network that is not theirs."""
        return {}

    def authors_tables(self) -> dict[str, Tensor]:
        """For `spheregen import`: by their name, the tensors that such checkpoints hold and this network computes. They
        are compared, not loaded: where they differ, so do the conventions, and the import is refused."""
        return {}


def repeat_for(x: Tensor, labels: Tensor | None) -> Tensor:
    """x [B, …] once for each B of k·B labels: [k·B, …], all of x before its first repetition."""
    if labels is None or labels.shape[0] == x.shape[0]:  # not len: torch.export would fix the batch's size
        return x
    if labels.shape[0] % x.shape[0]:
        raise ValueError(f"expected a label an image, or k of them; got {len(labels)} labels for {len(x)}")
    return x.repeat(labels.shape[0] // x.shape[0], *[1] * (x.ndim - 1))


class Encoder(Network, kind="encoder"):
    """E: an image to its latent (Section 2.1). The sphere comes after it: the output may have any length."""

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """images [B, C, H, W] in [-1, 1], labels [B] or None -> latent [B, N, D]."""


class Decoder(Network, kind="decoder"):
    """D: a point of the sphere to an image (Eq. 2)."""

    @abstractmethod
    def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """latents [B, N, D] of norm √L, labels [B] or None -> images [B, C, H, W] in [-1, 1]."""


class Regularizer(nn.Module, Component, ABC, kind="regularizer"):
    """What stands between the encoder and the sphere (Appendix C.3): a layer, a further loss, both or neither."""

    def __init__(self, options: Any, shape: ModelShape) -> None:
        super().__init__()
        self.options = options
        self.shape = shape

    def forward(self, z: Tensor) -> Tensor:
        """The encoder's output [B, N, D] -> what is spherified, of the same shape."""
        return z

    def loss(self, z: Tensor, generator: torch.Generator) -> Tensor | None:
        """A scalar, already weighted, added to the objective for the clean latents z [B, N, D]; None adds nothing.

        generator: for whatever is random in it, on z's device; the same on all processes, another at every step.
        """
        return None

    @property
    def has_statistics(self) -> bool:
        """Whether it keeps statistics of the latents that passed, which generation may want recalibrated (C.4)."""
        return False

    def go_live(self) -> None:
        """Forget the statistics gathered in training and use, from now on, each batch's own, also in eval mode."""

    def gathering(self) -> AbstractContextManager[None]:
        """Forget the statistics, and gather them anew over all that passes within this block, in eval mode; after it,
        they are used."""
        return nullcontext()


class Sampler(Component, ABC, kind="sampler"):
    """The random part of generation: the first latent, and the noise and its strength at each further step."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def prior(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        """e of Eq. 3, before it is spherified: [B, *shape], one generator an image."""
        return rng.normal(shape, generators)

    @abstractmethod
    def strength(self, step: int, steps: int) -> float:
        """r of Eq. 5 at step t = 2…T: the noise is r·σ_max."""

    @abstractmethod
    def noise(
        self, shape: Sequence[int], generators: Sequence[torch.Generator], previous: Tensor | None, first: Tensor | None
    ) -> Tensor:
        """e of Eq. 4 for one step: [B, *shape].

        previous: what this method returned at the step before, None at the first re-encoding. first: the prior's
        draw, None where generation started from an image.
        """


class Conditioner(Component, ABC, kind="conditioner"):
    """The owner of the condition: how it is dropped in training, and how guidance combines the outputs of a network
    with and without it (Section 2.4, Appendix C.1).

    `conditional` False makes a model without a class table. `encoder_passes` and `decoder_passes` count the network
    evaluations (NFE) that one call of each costs.
    """

    conditional: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def encoder_passes(self) -> int:
        return 1

    @property
    def decoder_passes(self) -> int:
        return 1

    @abstractmethod
    def drop(self, labels: Tensor | None, uniform: Tensor, null_label: int) -> Tensor | None:
        """Training: labels [B] with some replaced by the null label, decided by uniform [B] numbers in [0, 1)."""

    def encode(self, encoder: Any, images: Tensor, labels: Tensor | None, null_label: int) -> Tensor:
        """E(x, y), guided where this conditioner guides latents. encoder: a callable (images, labels) -> [B, N, D],
        which takes k·B labels too and gives [k·B, N, D]."""
        return encoder(images, labels)

    def decode(self, decoder: Any, latents: Tensor, labels: Tensor | None, null_label: int) -> Tensor:
        """D(v, y), guided where this conditioner guides pixels. decoder: a callable (latents, labels) -> images,
        which takes k·B labels too and gives k·B images."""
        return decoder(latents, labels)


class PerceptualDistance(nn.Module, Component, ABC, kind="perceptual"):
    """How different two images look. Features and distance are apart, so that an image that stands in several loss
    terms goes through the network once."""

    def __init__(self, options: Any, image: ImageSpec) -> None:
        super().__init__()
        self.options = options
        self.image = image

    @classmethod
    def check(cls, options: Any, image: ImageSpec) -> None:
        """Refuse images that the network cannot take, when the recipe is read. Needs no weights.

        Raises ValueError with a message that begins with the option's name and a colon.
        """

    @classmethod
    def untrained(cls, options: Any, image: ImageSpec) -> PerceptualDistance:
        """The same networks with random weights, for which no file is needed: to plan, never to train."""
        return cls(options, image)

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """images [B, C, H, W] in [0, 1], C = 1 or 3 -> what `distance` compares: tensors whose first dimension is B."""

    @abstractmethod
    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Features of two batches -> distances [B], 0 for equal images."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images a, b [B, C, H, W] in [0, 1] -> distances [B]."""
        return self.distance(self.features(a), self.features(b))


class ImageSource(Component, ABC, kind="data"):
    """A set of images with labels, by index: what torch calls a map-style data set."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @classmethod
    @abstractmethod
    def describe(cls, options: Any) -> ImageSpec:
        """Size, channels and number of classes, told from the options alone."""

    @classmethod
    def held_out(cls, options: Any) -> Any:
        """The options of images that training with these does not see: by default those of the split "test".

        Raises ValueError where there are none.
        """
        if "split" not in cls.Options.model_fields:
            raise ValueError("has no test split")
        if options.split == "test":
            raise ValueError('split = "test" leaves nothing to test with')
        return options.model_copy(update={"split": "test"})

    @property
    def spec(self) -> ImageSpec:
        return self.describe(self.options)

    @property
    def class_names(self) -> list[str]:
        """One name a class, in the order of the labels."""
        return [str(i) for i in range(self.spec.num_classes)]

    def fingerprint(self) -> str:
        """A hash of everything that the images and labels are: another one where any of them differs. Statistics of
        the set are kept under it. By default every image is read; override it where there is a quicker way."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            image, label = self[index]
            digest.update(f"{tuple(image.shape)} {label} ".encode())
            digest.update(image.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def epoch_order(self, generator: torch.Generator) -> Tensor:
        """The order in which an epoch of training takes the images: a permutation of their indices, int64 [n].

        It must follow from the generator alone, which is seeded by the recipe's seed and the epoch: then a run can be
        taken up in the middle of an epoch. By default every permutation is as likely; override it where the images lie
        such that some orders are read much faster."""
        return torch.randperm(len(self), generator=generator)

    def original(self, index: int) -> tuple[str, bytes] | None:
        """For `spheregen data pack --keep`: the file that an image comes from, as its ending (no dot) and its bytes.
        None, as here, where images are not files of their own."""
        return None

    @property
    def skipped(self) -> int:
        """How many images were met so far that could not be read and were passed over; logged with the losses."""
        return 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """uint8 [C, H, W] and its label (0 where there are none). Deterministic: flips belong to the training loop."""


class FeatureExtractor(nn.Module, Component, ABC, kind="features"):
    """A network whose features metrics compare. Under another one than Inception a metric carries its label."""

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options

    @property
    def label(self) -> str:
        """Its short name in the names of metrics, as in FD(label)."""
        return str(self.name)

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """images [B, C, H, W] in [0, 1], C = 1 or 3 -> features [B, F], and class scores before the softmax [B, K] for
        the Inception Score, None where the network has none. Pixels are rounded to the 256 values a file would hold."""


__all__ = [
    "Conditioner",
    "Decoder",
    "Encoder",
    "FeatureExtractor",
    "ImageSource",
    "Network",
    "Options",
    "PerceptualDistance",
    "Regularizer",
    "Sampler",
]
