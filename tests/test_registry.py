"""Plugins and the registry."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import spheregen
from spheregen.registry import SHIPPED, Registry

ROOT = Path(__file__).parent.parent

PLUGIN = """
import spheregen

class Steady(spheregen.Sampler, name="{name}"):
    '''Half the strength at every step.'''
    def strength(self, step, steps):
        return 0.5
    def noise(self, shape, generators, previous, first):
        return spheregen.rng.normal(shape, generators)

@spheregen.hookimpl
def spheregen_components():
    return [Steady]

@spheregen.hookimpl
def spheregen_commands(app):
    @app.command("hello-{name}")
    def hello():
        print("hello from a plugin")
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="steady"))
    return path


def test_the_shipped_plugins_bring_every_kind() -> None:
    registry = Registry()
    kinds = {component.kind for component in registry.components()}
    assert kinds >= {"encoder", "decoder", "regularizer", "sampler", "conditioner", "perceptual", "data"}
    assert registry.failures == {}


def test_a_plugin_in_a_file_is_found_by_its_path(mine: Path) -> None:
    registry = Registry()
    registry.load(str(mine))
    registry.load("mine.py", relative_to=mine.parent)  # again, by another path: harmless
    assert registry.get("sampler", "steady").name == "steady"
    assert registry.origin(registry.get("sampler", "steady")).startswith("mine@")


def test_a_plugin_is_found_by_the_environment(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPHEREGEN_PLUGINS", str(mine))
    assert Registry().get("sampler", "steady").name == "steady"


def test_a_broken_plugin_is_told_and_the_others_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import there_is_no_such_module\n")
    monkeypatch.setenv("SPHEREGEN_PLUGINS", str(broken))
    registry = Registry()
    assert registry.get("encoder", "vit-mixer").name == "vit-mixer"
    assert "there_is_no_such_module" in registry.failures[str(broken)]
    with pytest.raises(spheregen.PluginError, match="there_is_no_such_module"):
        registry.get("encoder", "of-the-broken-plugin")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("def (", "SyntaxError"), ("1 / 0", "ZeroDivisionError"), ("raise SystemError('no')", "no")],
)
def test_whatever_a_plugin_raises_names_the_plugin(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(spheregen.PluginError, match=rf"plugin .*bad\.py: .*{reason}"):
        Registry().load(str(path))


def test_a_missing_file_and_a_missing_module_are_refused() -> None:
    with pytest.raises(spheregen.PluginError, match=r"plugin not/there\.py: No such file"):
        Registry().load("not/there.py")
    with pytest.raises(spheregen.PluginError, match="plugin not_there"):
        Registry().load("not_there")


def test_an_unknown_name_tells_the_nearest_and_all() -> None:
    with pytest.raises(spheregen.PluginError, match=r"unknown sampler 'fixd': did you mean 'fixed'\? .*decay, fixed"):
        Registry().get("sampler", "fixd")


def test_two_components_with_one_name_are_refused_and_both_named(tmp_path: Path) -> None:
    path = tmp_path / "twice.py"
    path.write_text(PLUGIN.format(name="fixed"))
    registry = Registry()
    registry.load_shipped()
    with pytest.raises(spheregen.PluginError, match=r"twice.*sampler 'fixed'.*spheregen_samplers"):
        registry.load(str(path))
    assert registry.origin(registry.get("sampler", "fixed")) == "spheregen_samplers"


def test_a_component_without_a_name_is_refused() -> None:
    class Nameless(spheregen.Regularizer):
        pass

    plugin = SimpleNamespace(__name__="nameless", spheregen_components=lambda: [Nameless])
    with pytest.raises(spheregen.PluginError, match=r"nameless: .*Nameless has no name"):
        Registry().register(plugin)


def test_a_name_is_not_inherited() -> None:
    class Parent(spheregen.Regularizer, name="parent"):
        pass

    class Child(Parent):
        pass

    assert Child.name is None
    assert Child.kind == "regularizer"


def test_register_takes_a_module_from_code() -> None:
    class Mine(spheregen.Regularizer, name="from-code"):
        pass

    registry = Registry()
    registry.register(SimpleNamespace(__name__="from_code", spheregen_components=lambda: [Mine]))
    assert registry.get("regularizer", "from-code") is Mine


# -- the two rules that hold the house up --------------------------------------------------------------------------


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_the_core_imports_no_plugin() -> None:
    packages = {path.name for path in (ROOT / "plugins").iterdir() if path.is_dir()}
    assert set(SHIPPED) <= packages
    for path in (ROOT / "spheregen").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & packages, path


def test_plugins_import_only_what_spheregen_exports() -> None:
    for path in (ROOT / "plugins").rglob("*.py"):
        inner = {name for name in imports(path) if name.startswith("spheregen.")}
        assert not inner, f"{path} imports {inner}"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "spheregen"
        }
        assert used <= set(spheregen.__all__), f"{path} uses {used - set(spheregen.__all__)}"
        # Nor do they import each other.
        own = path.relative_to(ROOT / "plugins").parts[0]
        others = {n.split(".")[0] for n in imports(path) if n.startswith("spheregen_")} - {own}
        assert not others, f"{path} imports {others}"


@pytest.mark.parametrize("code", ["import spheregen", "import sys; sys.argv = ['spheregen', '--help']; main()"])
def test_import_and_help_do_not_import_torch(code: str) -> None:
    program = f"from spheregen.cli import main\ntry:\n    {code}\nexcept SystemExit: pass\n"
    program += "import sys; bad = {'torch', 'timm', 'torchvision', 'sklearn', 'accelerate'} & set(sys.modules)\n"
    program += "sys.stderr.write(repr(bad)); sys.exit(bool(bad))"
    if code == "import spheregen":
        program = program.replace("from spheregen.cli import main\n", "")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_everything_exported_is_there() -> None:
    missing: list[Any] = [name for name in spheregen.__all__ if not hasattr(spheregen, name)]
    assert missing == []
