"""Recipes as files: finding them, `extends`, `--set`, and remembering where each key came from."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spheregen.errors import RecipeError, suggest


class Origins:
    """Which file, or --set, each section and key came from, so that a refusal can name it."""

    def __init__(self, file: str | Path) -> None:
        self.file = str(file)
        self._files: dict[tuple[str, ...], str] = {}

    def note(self, key: tuple[str, ...], file: str) -> None:
        self._files[key] = file

    def fault(self, loc: tuple[Any, ...], message: str) -> str:
        """`file: [section] key: message`."""
        keys = tuple(str(part) for part in loc)
        file = self._files.get(keys[:2]) or self._files.get(keys[:1]) or self.file
        section, rest = (f"[{keys[0]}] ", keys[1:]) if len(keys) > 1 or keys[0] in SECTIONS else ("", keys)
        return f"{file}: {section}{'.'.join(rest)}{': ' if rest else ''}{message}"

    def folder(self, key: str) -> Path:
        """The folder of the file that gave a key: what relative paths in it are relative to."""
        file = self._files.get((key,), self.file)
        return Path() if file.startswith("--set") else Path(file).parent


SECTIONS = (
    "data", "latent", "encoder", "decoder", "regularizer", "noise", "perceptual", "objective", "conditioner",
    "sampler", "sampling", "features", "evaluation", "training",
    "sweep",
)  # fmt: skip


def shipped_folder() -> Path:
    """Where the recipes that ship lie: in the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """The recipes that ship, by name (ablations/angle, digits, …)."""
    folder = shipped_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.toml"))}


def find_recipe(name: str | Path) -> Path:
    """A recipe's file from its path or, where no such file exists, from the name of a shipped one."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    key = path.with_suffix("").as_posix() if path.suffix == ".toml" else path.as_posix()
    key = key.removeprefix("recipes/")
    if key in shipped:
        return shipped[key]
    raise RecipeError(f"{name}: no such recipe file, and no shipped recipe of that name; {suggest(key, shipped)}")


def read_raw(name: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Origins]:
    """The tables of a recipe with `extends` and overrides applied, and where each key came from."""
    path = find_recipe(name)
    origins = Origins(path)
    raw = _read_chain(path, origins, ())
    raw.setdefault("name", path.stem.replace("_", "-"))
    override_all(raw, overrides, origins)
    return raw, origins


def _read_chain(path: Path, origins: Origins, below: tuple[Path, ...]) -> dict[str, Any]:
    """A file's tables over those of the file that it extends."""
    if path.resolve() in below:
        raise RecipeError(f"{path}: extends: goes round in a circle")
    try:
        own = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    base: dict[str, Any] = {}
    parent = own.pop("extends", None)
    if parent is not None:
        if not isinstance(parent, str):
            raise RecipeError(f"{path}: extends: expected the path of a recipe, got {parent!r}")
        beside = path.parent / parent
        base = _read_chain(find_recipe(beside if beside.is_file() else parent), origins, (*below, path.resolve()))
        base.pop("name", None)
        base.pop("description", None)
    _merge(base, own, str(path), origins)
    return base


def _merge(base: dict[str, Any], own: dict[str, Any], file: str, origins: Origins) -> None:
    """`own` over `base`, in place. A section that names another component starts afresh."""
    for key, value in own.items():
        origins.note((key,), file)
        if not isinstance(value, dict):
            base[key] = value
            continue
        old = base.get(key)
        if not isinstance(old, dict) or ("use" in value and value["use"] != old.get("use")):
            old = {}
        for alternatives in EXCLUSIVE:
            if any(name in value for name in alternatives):
                old = {name: v for name, v in old.items() if name not in alternatives}
        base[key] = {**old, **value}
        for name in value:
            origins.note((key, name), file)


# Keys of which one is given: a file or an override that gives one takes the place of the other.
EXCLUSIVE = (("channels", "compression"), ("epochs", "images"), ("warmup_epochs", "warmup_images"))


def override_all(raw: dict[str, Any], settings: Sequence[str], origins: Origins) -> None:
    """Apply `section.key=value` settings in their order; but first those that pick a component, because with it the
    section starts afresh."""
    for setting in sorted(settings, key=lambda setting: setting.partition("=")[0].strip().split(".")[1:] != ["use"]):
        override(raw, setting, origins)


def override(raw: dict[str, Any], setting: str, origins: Origins) -> None:
    """Apply one `section.key=value`; the value is TOML, or else text."""
    key, equals, text = setting.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts):
        raise RecipeError(f"--set {setting}: expected section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    label = f"--set {setting}"
    for part in reversed(parts[1:]):
        value = {part: value}
    _merge(raw, {parts[0]: value}, label, origins)
