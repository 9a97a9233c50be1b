"""Finds plugins, lists the components they bring, and builds one from its section of a recipe.

A plugin is used because it is named: here (what ships), in a recipe, by `--plugin`, in the environment variable
SPHEREGEN_PLUGINS, or by `spheregen.register`. There are no entry points.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from spheregen import hookspecs
from spheregen.component import Component
from spheregen.errors import PluginError, SpheregenError, suggest

SHIPPED = (
    "spheregen_vit",
    "spheregen_regularizers",
    "spheregen_samplers",
    "spheregen_guidance",
    "spheregen_perceptual",
    "spheregen_data",
    "spheregen_metrics",
)
ENVIRONMENT = "SPHEREGEN_PLUGINS"


class Registry:
    """The plugins in use and their components, by kind and name."""

    def __init__(self, shipped: Iterable[str] = SHIPPED) -> None:
        self.manager = pluggy.PluginManager("spheregen")
        self.manager.add_hookspecs(hookspecs)
        self.failures: dict[str, str] = {}
        self._shipped = tuple(shipped)
        self._components: dict[tuple[str, str], type[Component]] = {}
        self._origins: dict[type[Component], str] = {}

    # -- plugins ---------------------------------------------------------------------------------------------------

    def load(self, name: str, relative_to: Path | None = None) -> None:
        """Use the plugin `name`: an importable module, or a path to a .py file (relative to `relative_to`).

        Naming one twice is harmless. Raises PluginError with the plugin's name and the reason.
        """
        path, known = _identify(name, relative_to)
        if self.manager.has_plugin(known):
            return
        try:
            module = _import_file(path, known) if path else importlib.import_module(name)
            self.register(module, known)
        except SpheregenError:
            raise
        except Exception as error:  # whatever a broken plugin raises, it must not pass for our own bug
            raise PluginError(f"plugin {name}: {type(error).__name__}: {error}") from error

    def knows(self, name: str, relative_to: Path | None = None) -> bool:
        """Whether the plugin that `load` would load is in use already."""
        return name in self._shipped or self.manager.has_plugin(_identify(name, relative_to)[1])

    def register(self, plugin: ModuleType | object, name: str | None = None) -> None:
        """Use a module (or any object with hook implementations) as a plugin.

        Raises PluginError where one of its components bears a name that is taken; nothing is registered then.
        """
        name = name or getattr(plugin, "__name__", None) or repr(plugin)
        if self.manager.has_plugin(name):
            return
        components: list[type[Component]] = []
        if hook := getattr(plugin, "spheregen_components", None):
            components = list(hook())
        for component in components:
            self._refuse_unfit(component, name)
        self.manager.register(plugin, name)
        for component in components:
            self._components[component.kind, str(component.name)] = component
            self._origins[component] = name

    def unregister(self, plugin: object) -> None:
        """Stop using an object registered for its hooks (a training callback, say)."""
        self.manager.unregister(plugin)

    def load_shipped(self) -> None:
        """Use what ships and what the environment names. One that fails is noted in `failures`: the others work on."""
        named = [name.strip() for name in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if name.strip()]
        for name in (*self._shipped, *named):
            if name not in self.failures:
                try:
                    self.load(name)
                except PluginError as error:
                    self.failures[name] = str(error)

    def plugins(self) -> dict[str, object]:
        """The plugins in use, by name."""
        return dict(self.manager.list_name_plugin())

    def hooks_of(self, plugin: object) -> list[str]:
        """The names of the hooks that a plugin implements."""
        return sorted(caller.name for caller in self.manager.get_hookcallers(plugin) or [])

    # -- components ------------------------------------------------------------------------------------------------

    def components(self, kind: str | None = None) -> list[type[Component]]:
        """All components of a kind, or of every kind, by name."""
        self.load_shipped()
        found = [c for (k, _), c in self._components.items() if kind in (None, k)]
        return sorted(found, key=lambda c: (c.kind, str(c.name)))

    def get(self, kind: str, name: str) -> type[Any]:
        """The component `name` of a kind. Raises PluginError that lists what there is and the nearest name."""
        names = {str(c.name) for c in self.components(kind)}
        if name in names:
            return self._components[kind, name]
        broken = "".join(f"; {reason}" for reason in self.failures.values())
        raise PluginError(f"unknown {kind} '{name}': {suggest(name, names)}{broken}")

    def origin(self, component: type[Component]) -> str:
        """The plugin that brought a component."""
        return self._origins[component]

    def _refuse_unfit(self, component: type[Component], plugin: str) -> None:
        if not (isinstance(component, type) and issubclass(component, Component)):
            raise PluginError(f"plugin {plugin}: {component!r} is not a component class")
        if not component.name:
            raise PluginError(f"plugin {plugin}: {component.__qualname__} has no name; "
                              f'write class {component.__qualname__}(…, name="…")')  # fmt: skip
        other = self._components.get((component.kind, component.name))
        if other is not None:
            raise PluginError(
                f"plugin {plugin}: {component.kind} '{component.name}' is already taken by plugin "
                f"{self._origins[other]}"
            )


def _identify(name: str, relative_to: Path | None) -> tuple[Path | None, str]:
    """The file of a plugin named by its path, and the name under which it is registered.

    A file is known by its content: the copy that a run folder keeps of a plugin is the same plugin.
    """
    if not name.endswith(".py"):
        return None, name
    path = (relative_to or Path()) / Path(name).expanduser()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise PluginError(f"plugin {path}: {error.strerror or error}") from None
    return path, f"{path.stem}@{digest}"


def _import_file(path: Path, name: str) -> ModuleType:
    """A plugin in a single file, imported under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"_spheregen_plugin_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


registry = Registry()
register = registry.register
