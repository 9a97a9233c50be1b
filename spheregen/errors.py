"""The errors that a user can cause: each message is one readable line, printed without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class SpheregenError(Exception):
    """Base of every error that spheregen raises on purpose."""


class RecipeError(SpheregenError):
    """A recipe that cannot be read: the message names the file, the section, the key and what was expected."""


class PluginError(SpheregenError):
    """A plugin that cannot be loaded, or two components with one name."""


class DataError(SpheregenError):
    """Images that are missing, unreadable or do not fit the recipe."""


class WeightsError(SpheregenError):
    """Weights that cannot be had or do not fit the network."""


class RunError(SpheregenError):
    """A run folder, checkpoint or model file that is missing or broken."""


def suggest(name: str, known: Iterable[str]) -> str:
    """The tail of a refusal: the nearest known name, if one is near, and all known names.

    >>> suggest("digit", ["digits", "cifar10"])
    "did you mean 'digits'? (known: cifar10, digits)"
    """
    names = sorted(known)
    listed = f"(known: {', '.join(names)})" if names else "(none are known)"
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{near[0]}'? {listed}" if near else listed


def misfits(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """How named tensors differ from those that a module wants, in names and shapes, as one line; "" where they fit."""
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is unknown" for name in found if name not in wanted]
    faults += [
        f"{name} is {list(found[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + more
