"""What the page may ask for. Each request becomes a call of the library and the command line that does the same."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from spheregen import editing, generation, pictures
from spheregen.cli.options import pick_sampler
from spheregen.errors import SpheregenError
from spheregen.generation import Step
from spheregen.images import read_image
from spheregen.model import SphereModel

IMAGES = 64
STEPS = 50

OnStep = Callable[[Step], object]
Steps = Annotated[int, Field(ge=1, le=STEPS)]
Count = Annotated[int, Field(ge=1, le=IMAGES)]
Strength = Annotated[float, Field(ge=0, le=10)]
Seed = Annotated[int, Field(ge=0, le=2**53 - 1)]  # what JavaScript counts exactly


@dataclass(frozen=True)
class Place:
    """Where the model is, as command lines name it. options: words that every command takes (--device, …)."""

    run: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A request made ready. work returns images [n, C, H, W] in [0, 1]; command writes the same images as files. Each
    has a title and, where it was made as one class, that label."""

    work: Callable[[OnStep], Tensor]
    steps: int
    command: str
    files: list[str]
    titles: list[str]
    labels: Sequence[int] | None = None


class Part(BaseModel):
    """Of a request: unknown keys are refused, and so are infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Source(Part):
    """An image of the page. file: what the command line calls it."""

    png: Base64Bytes
    file: str = Field(min_length=1, max_length=500)

    @field_validator("file")
    @classmethod
    def _unlike_others(cls, file: str) -> str:
        """A file's name that is neither taken for an option nor for an image of the data set."""
        return f"./{file}" if re.match(r"-|(train|test):\d+$", file) else file

    def read(self, model: SphereModel) -> Tensor:
        """[1, C, S, S] in [0, 1]."""
        spec = model.shape.image
        largest = max(1.0, spec.size**2 / 1e6)
        pixels = read_image(io.BytesIO(self.png), spec.size, spec.channels, name=self.file, megapixels=largest)
        return pixels.unsqueeze(0).float() / 255


class Request(Part, ABC):
    """Something to make of a model. name: the command that makes it too."""

    name: ClassVar[str]

    @abstractmethod
    def prepare(self, model: SphereModel, place: Place) -> Job:
        """Check the request against the model. Raises SpheregenError, with nothing computed yet."""


class Guided(Request):
    """What can be guided. What is left out is the command's own: sampling takes the recipe's guidance, edits none."""

    guidance: float | None = Field(None, ge=0, le=100)
    position: str | None = None
    sampler: str | None = None
    sampler_options: dict[str, bool | int | float | str] = {}
    seed: Seed = 0

    def settings(self, model: SphereModel) -> dict[str, Any]:
        """Arguments of the library's functions, all checked."""
        guidance, position = self.guidance, self.position
        if guidance is not None or position is not None:
            generation.conditioner_for(model, guidance, position)
        found = {"position": position, "seed": self.seed}
        return found if guidance is None else {**found, "guidance": guidance}

    def chosen_sampler(self, model: SphereModel) -> Any:
        return pick_sampler(model, self.sampler, self._sampler_settings())

    def words(self) -> list[str]:
        """The same as words of a command line."""
        found = ["--cfg", number(self.guidance)] if self.guidance is not None else []
        found += ["--cfg-position", self.position] if self.position is not None else []
        found += ["--sampler", self.sampler] if self.sampler is not None else []
        found += [word for setting in self._sampler_settings() for word in ("--sampler-set", setting)]
        return [*found, "--seed", str(self.seed)]

    def _sampler_settings(self) -> list[str]:
        return [f"{key}={toml(value)}" for key, value in self.sampler_options.items()]


class Sample(Guided):
    """New images: so many of each class, or so many in all where the model has none."""

    name = "sample"
    classes: list[int] = Field([], max_length=IMAGES)
    count: Count = 4
    steps: Steps = 4

    def prepare(self, model: SphereModel, place: Place) -> Job:
        labels, titles = None, [""] * self.count
        if model.shape.num_classes:
            classes = known(model, self.classes)
            if not classes:
                raise SpheregenError("classes: choose at least one")
            if len(classes) * self.count > IMAGES:
                raise SpheregenError(
                    f"count: {len(classes)} classes of {self.count} images are {len(classes) * self.count}; expected "
                    f"at most {IMAGES} in all"
                )
            labels = [label for label in classes for _ in range(self.count)]
            titles = [model.class_names[label] for label in labels]
        elif self.classes:
            raise SpheregenError("classes: this model is unconditional; leave them out")
        count, sampler, settings = None if labels else self.count, self.chosen_sampler(model), self.settings(model)
        words = ["sample", place.run, *class_words(model, self.classes), "--count", str(self.count)]
        words += ["--steps", str(self.steps), *self.words(), *place.options]
        return Job(
            lambda on_step: generation.sample(
                model, labels, count=count, steps=self.steps, sampler=sampler, on_step=on_step, **settings
            ),
            self.steps,
            *written(words, titles, folder=True),
            titles,
            labels,
        )


class Reconstruct(Request):
    """An image encoded and decoded."""

    name = "reconstruct"
    image: Source

    def prepare(self, model: SphereModel, place: Place) -> Job:
        image = self.image.read(model)
        words = ["reconstruct", place.run, "--image", self.image.file, *place.options]
        return Job(lambda _: generation.reconstruct(model, image), 1, *written(words, [""]), ["re-encoded"])


class Vary(Guided):
    """Variations around an image."""

    name = "vary"
    image: Source
    label: int | None = None
    degrees: float = Field(20, ge=0, le=180)
    count: Count = 8
    steps: Steps = 1

    def prepare(self, model: SphereModel, place: Place) -> Job:
        image, labels = self.image.read(model), chosen(model, self.label)
        sampler, settings = self.chosen_sampler(model), self.settings(model)
        words = ["vary", self.image.file, "--run", place.run, "--degrees", number(self.degrees)]
        words += ["--count", str(self.count), *class_words(model, labels), "--steps", str(self.steps)]
        words += [*self.words(), *place.options]
        titles = [f"{self.degrees:g}°"] * self.count
        return Job(
            lambda on_step: editing.vary(
                model, image, labels, degrees=self.degrees, count=self.count, steps=self.steps, sampler=sampler,
                on_step=on_step, **settings,
            )[0],
            self.steps,
            *written(words, [""] * self.count),
            titles,
            labels and labels * self.count,
        )  # fmt: skip


class Interpolate(Guided):
    """Images between two, at places from 0 to 1."""

    name = "interpolate"
    images: tuple[Source, Source]
    labels: tuple[int, int] | None = None
    at: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1, max_length=IMAGES)
    path: Literal["linear", "great-circle"] = "linear"
    steps: Steps = 1

    def prepare(self, model: SphereModel, place: Place) -> Job:
        ends = torch.cat([image.read(model) for image in self.images])
        labels = known(model, self.labels) if self.labels is not None else None
        sampler, settings = self.chosen_sampler(model), self.settings(model)
        words = ["interpolate", place.run, *(word for image in self.images for word in ("--image", image.file))]
        words += class_words(model, labels)
        words += [word for at in self.at for word in ("--at", number(at))]
        words += ["--path", self.path, "--steps", str(self.steps), *self.words(), "--animation", "none", *place.options]
        return Job(
            lambda on_step: editing.interpolate(
                model, labels, images=ends, at=self.at, path=self.path, steps=self.steps, sampler=sampler,
                on_step=on_step, **settings,
            ),
            self.steps,
            *written(words, [""] * len(self.at)),
            [f"{at:.0%}" for at in self.at],
        )  # fmt: skip


class Edit(Guided):
    """What both edits share; they bring the decaying sampler with them (Eq. 13)."""

    sampler: None = None
    sampler_options: dict[str, Any] = Field({}, max_length=0)
    steps: Steps = 4
    strength: Strength = 1.0
    gamma: Strength = 0.0

    def words(self) -> list[str]:
        found = ["--steps", str(self.steps), "--strength", number(self.strength), "--gamma", number(self.gamma)]
        return [*found, *super().words()]

    def settings(self, model: SphereModel) -> dict[str, Any]:
        return {**super().settings(model), "steps": self.steps, "strength": self.strength, "gamma": self.gamma}


class Crossover(Edit):
    """Two images stitched and made one, an image a seam."""

    name = "crossover"
    images: tuple[Source, Source]
    seams: list[Literal["left-right", "top-bottom", "falling", "rising"]] = Field(min_length=1, max_length=4)
    label: int | None = None
    steps: Steps = 10
    strength: Strength = 0.25
    gamma: Strength = 1.0

    def prepare(self, model: SphereModel, place: Place) -> Job:
        a, b = (image.read(model) for image in self.images)
        seams: list[str] = list(dict.fromkeys(self.seams))
        labels, settings = chosen(model, self.label), self.settings(model)
        masks = torch.cat([editing.stitch(torch.ones_like(a), torch.zeros_like(a), seam) for seam in seams])
        words = ["crossover", *(image.file for image in self.images), "--run", place.run]
        words += [word for seam in seams for word in ("--seam", seam)]
        words += [*class_words(model, labels), *self.words(), *place.options]
        return Job(
            lambda on_step: editing.crossover(
                model, a.expand_as(masks), b.expand_as(masks), masks, labels=labels and labels * len(seams),
                on_step=on_step, **settings,
            )[-1],
            self.steps,
            *written(words, seams),
            seams,
            labels and labels * len(seams),
        )  # fmt: skip


class Restyle(Edit):
    """An image as other classes."""

    name = "restyle"
    image: Source
    classes: list[int] = Field(min_length=1, max_length=IMAGES)

    def prepare(self, model: SphereModel, place: Place) -> Job:
        image = self.image.read(model)
        if not model.shape.num_classes:
            raise SpheregenError("restyle: this model is unconditional and has no classes to restyle to")
        classes, settings = known(model, self.classes), self.settings(model)
        titles = [model.class_names[label] for label in classes]
        words = ["restyle", self.image.file, "--run", place.run, *class_words(model, classes)]
        words += [*self.words(), *place.options]
        return Job(
            lambda on_step: editing.restyle(model, image, classes, on_step=on_step, **settings)[-1],
            self.steps,
            *written(words, titles),
            titles,
            classes,
        )


REQUESTS: dict[str, type[Request]] = {
    kind.name: kind for kind in (Sample, Reconstruct, Vary, Interpolate, Crossover, Restyle)
}


# -- classes, and the words of a command line --------------------------------------------------------------------------


def known(model: SphereModel, labels: Sequence[int]) -> list[int]:
    """Labels of classes, the null class not among them. Raises SpheregenError for others."""
    if unknown := [label for label in labels if not 0 <= label < model.shape.num_classes]:
        if not model.shape.num_classes:
            raise SpheregenError("classes: this model is unconditional; leave them out")
        raise SpheregenError(f"classes: {unknown[0]}: this model knows 0 to {model.shape.num_classes - 1}")
    return list(labels)


def chosen(model: SphereModel, label: int | None) -> list[int] | None:
    """A label as a list of one; None where there is none."""
    return None if label is None else known(model, [label])


def class_words(model: SphereModel, labels: Sequence[int] | None) -> list[str]:
    """--class by name where the name is one class's alone, else by number."""
    names = [name.casefold() for name in model.class_names]
    told = [model.class_names[i] if names.count(names[i]) == 1 else str(i) for i in labels or []]
    return [word for name in told for word in ("--class", name)]


def written(words: list[str], titles: Sequence[str], folder: bool = False) -> tuple[str, list[str]]:
    """The whole command line, with a place of its own to write to, and the files that it writes.

    folder: the command writes a folder of single images anyway; others write a picture, and a folder beside it.
    """
    digest = hashlib.blake2b("\0".join(words).encode(), digest_size=4).hexdigest()
    out = f"studio/{words[0]}-{digest}"
    end = ["--out", out] if folder else ["--out", f"{out}.png", "--singles"]
    files = [f"{out}/{pictures.file_name(i, title)}" for i, title in enumerate(titles)]
    return shlex.join(["spheregen", *words, *end]), files


def number(value: float) -> str:
    """A number, exactly, as short as it can be."""
    return str(int(value)) if value == int(value) else repr(float(value))


def toml(value: bool | int | float | str) -> str:
    """A value as `--sampler-set` reads it: TOML, but text without quotes where that is clear."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return repr(value)
    try:
        tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return value
    return json.dumps(value)
