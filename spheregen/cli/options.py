"""Options that several commands share, as the objects that they stand for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from spheregen.errors import SpheregenError, suggest
from spheregen.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from spheregen.interfaces import Sampler
    from spheregen.model import SphereModel


def pick_device(name: str) -> str:
    """A torch device from --device. Raises SpheregenError for one that is not there."""
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return str(accelerator or "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise SpheregenError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name


IMAGE_HELP = "An image file of any size and mode, or test:N or train:N for the data set's N-th (from 0)."

SINGLES_HELP = "Also write every result as a file of its own, into a folder of the picture's name."


def pick_images(model: SphereModel, names: Sequence[str | Path]) -> Tensor:
    """Images by file, or by split and number in the recipe's data (test:7): float [n, C, S, S] in [0, 1]."""
    import torch

    from spheregen.images import read_image

    assert model.recipe is not None
    spec, found = model.shape.image, []
    sources = {"train": cache(model.recipe.data.build), "test": cache(model.recipe.held_out)}
    for name in map(str, names):
        numbered = re.fullmatch(r"(train|test):(\d+)", name)
        if not numbered:
            found.append(read_image(name, spec.size, spec.channels))
            continue
        source, number = sources[numbered[1]](), int(numbered[2])
        if number >= len(source):
            raise SpheregenError(f"{name}: the {numbered[1]} split has the images 0 to {len(source) - 1}")
        found.append(source[number][0])
    return torch.stack(found).float() / 255


def pick_sampler(model: SphereModel, name: str | None, settings: list[str]) -> Sampler:
    """The recipe's sampler, or another by name, with `key=value` settings over the recipe's."""
    assert model.recipe is not None
    section = model.recipe.sampler
    component = registry.get("sampler", name) if name else section.component
    known = component.Options.model_fields
    values = {key: value for key, value in section.options.model_dump().items() if key in known}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in known:
            raise SpheregenError(f"--sampler-set {setting}: expected key=value with a key of sampler "
                                 f"'{component.name}'; {suggest(key, known)}")  # fmt: skip
        try:
            values[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = text
    try:
        return component(component.Options(**values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise SpheregenError(f"--sampler-set {first['loc'][0]}: {first['msg']}, got {first['input']!r}") from None
