"""The examples of the documentation are plugins that load and do what the text says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import spheregen
from spheregen import Recipe, hookspecs
from spheregen.registry import Registry

ROOT = Path(__file__).parent.parent


def examples(page: str) -> list[str]:
    """The python blocks of a page that implement a hook."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    return [block for block in blocks if "hookimpl" in block]


@pytest.mark.parametrize(("page", "number"), [(p, i) for p in ("README.md", "docs/plugins.md")
                                              for i in range(len(examples(p)))])  # fmt: skip
def test_an_example_is_a_plugin(page: str, number: int, tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(examples(page)[number], encoding="utf-8")
    registry = Registry()
    before = len(registry.components())
    registry.load(str(file))
    (plugin,) = (name for name in registry.plugins() if name.startswith("example@"))
    hooks = registry.hooks_of(registry.plugins()[plugin])
    assert hooks
    assert (len(registry.components()) > before) == ("spheregen_components" in hooks)


def test_every_hook_has_its_section_and_example() -> None:
    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    for name in vars(hookspecs):
        if name.startswith("spheregen_"):
            assert f"### {name}(" in text
            assert any(f"def {name}(" in block for block in examples("docs/plugins.md"))


def test_the_readmes_sampler_samples(model: spheregen.SphereModel, tmp_path: Path) -> None:
    file = tmp_path / "cosine.py"
    file.write_text(examples("README.md")[0], encoding="utf-8")
    registry = Registry()
    registry.load(str(file))
    component = registry.get("sampler", "cosine")
    sampler = component(component.Options())
    strengths = [sampler.strength(step, 4) for step in (2, 3, 4)]
    assert strengths == sorted(strengths, reverse=True)
    images = spheregen.sample(model, labels=[1, 2], steps=3, sampler=sampler)
    assert images.shape == (2, 1, 8, 8)


def test_the_documented_backbone_trains(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    file.write_text(next(block for block in examples("docs/plugins.md") if "PlainEncoder" in block), encoding="utf-8")
    registry = Registry()
    settings = ["encoder.use=plain", "decoder.use=plain", "latent.channels=4", "training.images=64",
                "training.batch_size=16", "training.warmup_images=0", "sampling.per_class=1"]  # fmt: skip
    recipe = Recipe.read("digits", [f"plugins=[{str(file)!r}]", *settings], registry)
    run = spheregen.Trainer(recipe, tmp_path / "run", registry)
    assert run.fit()
    assert run.run.model.is_file()
