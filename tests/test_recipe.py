"""Recipes: reading, refusing, writing."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spheregen import Recipe, RecipeError
from spheregen.recipe_files import find_recipe, read_raw, shipped_recipes

DIGITS = find_recipe("digits")


def refusal(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.read("digits", overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("encoder.sise=base", ["--set encoder.sise=base", "[encoder] sise", "unknown key", "did you mean 'size'?"]),
        ("encoder.size=bas", ["[encoder] size", "'bas'", "did you mean 'base'?"]),
        ("encoder.use=vit-mixr", ["[encoder] use", "unknown encoder 'vit-mixr'", "did you mean 'vit-mixer'?"]),
        ("noise.angel=70", ["[noise] angel", "unknown key", "did you mean 'angle'?"]),
        ("noise.angle=90", ["[noise] angle", "less than 90", "got 90"]),
        ("noise.wide_angle=70", ["[noise] wide_angle", "larger than angle, 80"]),
        ("traning.lr=1", ["traning", "unknown section", "did you mean 'training'?"]),
        ("training.lr=fast", ["[training] lr", "number", "got 'fast'"]),
        ("training.batch_size=2.5", ["[training] batch_size", "integer"]),
        ("training.accumulate=7", ["[training] accumulate", "7 does not divide batch_size 64"]),
        ("encoder.heads=5", ["[encoder] heads", "5 do not divide the width 128"]),
        ("encoder.heads=64", ["[encoder] heads", "multiple of 4"]),
        ("latent.grid=3", ["[latent]", "grid 3 does not divide the image size 8"]),
        ("latent.compression=0.7", ["[latent] compression", "not a whole number"]),
        ("objective.consistency_perceptual=1", ["[objective] consistency_perceptual", "[perceptual]"]),
        ("perceptual.use=lpisp", ["[perceptual] use", "did you mean 'lpips'?"]),
        ("seed=abc", ["seed", "integer", "'abc'"]),
        ("plugins=[3]", ["plugins", "got 3"]),
    ],
)
def test_a_refusal_names_file_section_key_and_what_was_expected(override: str, parts: list[str]) -> None:
    message = refusal(override)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message


def test_every_fault_has_a_line_of_its_own() -> None:
    lines = refusal("encoder.sise=base", "noise.angel=3", "training.lr=-1").splitlines()
    assert len(lines) == 3


def test_a_malformed_override_is_refused() -> None:
    assert "expected section.key=value" in refusal("encoder.size")


def test_a_fault_in_a_file_names_the_file_it_stands_in(tmp_path: Path) -> None:
    base, child = tmp_path / "base.toml", tmp_path / "child.toml"
    base.write_text(DIGITS.read_text().replace("angle = 80", "angel = 80"))
    child.write_text('extends = "base.toml"\n[training]\nlr = "x"\n')
    with pytest.raises(RecipeError) as caught:
        Recipe.read(child)
    first, second = sorted(str(caught.value).splitlines())
    assert first.startswith(f"{base}: [noise] angel: unknown key")
    assert second.startswith(f"{child}: [training] lr:")


def test_missing_sections_and_broken_toml_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[encoder]\nuse = 'vit-mixer'\n")
    with pytest.raises(RecipeError) as caught:
        Recipe.read(path)
    assert "[data] section is missing" in str(caught.value)
    path.write_text("[encoder\n")
    with pytest.raises(RecipeError, match=r"r\.toml: not valid TOML: .*line 1"):
        Recipe.read(path)
    with pytest.raises(RecipeError, match=r"digts: no such recipe file.*did you mean 'digits'"):
        Recipe.read("digts")


def test_extends_changes_only_what_it_says(tmp_path: Path) -> None:
    child = tmp_path / "child.toml"
    child.write_text(f'extends = "{DIGITS}"\n[noise]\nangle = 70\n')
    base, changed = Recipe.read(DIGITS).as_dict(), Recipe.read(child).as_dict()
    assert changed.pop("name") == "child"
    assert base["noise"].pop("angle") == 80
    assert changed["noise"].pop("angle") == 70
    del base["name"], base["description"], changed["description"]
    assert base == changed


def test_a_section_that_names_another_component_starts_afresh(tmp_path: Path) -> None:
    child = tmp_path / "child.toml"
    child.write_text(f'extends = "{DIGITS}"\n[conditioner]\nuse = "unconditional"\n')
    assert Recipe.read(child).as_dict()["conditioner"] == {"use": "unconditional"}
    assert Recipe.read(child).shape.num_classes == 0


def test_of_alternatives_the_later_takes_the_place_of_the_earlier() -> None:
    recipe = Recipe.read("digits", ["training.epochs=3", "latent.compression=0.5"])
    assert recipe.training.images is None
    assert recipe.training.total_steps(1437) == round(3 * 1437 / recipe.training.batch_size)
    assert recipe.shape.latent_channels == 32  # 64 pixels / (4 tokens · 0.5)


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "b.toml"')
    (tmp_path / "b.toml").write_text('extends = "a.toml"')
    with pytest.raises(RecipeError, match="circle"):
        Recipe.read(tmp_path / "a.toml")


overrides = st.fixed_dictionaries(
    {
        "noise.angle": st.floats(1, 79),
        "training.lr": st.floats(1e-6, 1),
        "training.flip": st.floats(0, 1),
        "training.batch_size": st.integers(1, 4096),
        "conditioner.scale": st.floats(0, 10),
        "encoder.size": st.sampled_from(["tiny", "small", "base"]),
        "sampler.noise": st.sampled_from(["shared", "shared-prior", "independent"]),
        "seed": st.integers(0, 2**31),
        "description": st.text(st.characters(codec="utf-8", exclude_categories=["C"])),
    }
)


@settings(deadline=None, max_examples=50)
@given(overrides)
def test_what_is_written_reads_back_to_the_same(values: dict[str, Any]) -> None:
    raw = tomllib.loads(DIGITS.read_text())
    raw["name"] = "digits"
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (raw.setdefault(section, {}) if section else raw)[name] = value
    recipe = Recipe.parse(raw)
    again = Recipe.parse(tomllib.loads(recipe.to_toml()))
    assert again.as_dict() == recipe.as_dict()
    assert again.to_toml() == recipe.to_toml()


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if "sweep" not in read_raw(name)[0]])
def test_every_shipped_recipe_reads_and_resolves(name: str) -> None:
    recipe = Recipe.read(name)
    assert recipe.description
    assert Recipe.parse(tomllib.loads(recipe.to_toml())).as_dict() == recipe.as_dict()


def test_paper_recipes_have_the_papers_numbers() -> None:
    imagenet, cifar = Recipe.read("imagenet_l"), Recipe.read("cifar10_l")
    assert (imagenet.shape.grid, imagenet.shape.latent_channels) == (32, 64)
    assert (cifar.shape.grid, cifar.shape.latent_channels, cifar.shape.patch) == (16, 8, 2)
    flowers, faces = Recipe.read("oxford_flowers_l"), Recipe.read("animal_faces_l")
    assert flowers.shape.latent_channels == faces.shape.latent_channels == 128
    assert (flowers.shape.num_classes, faces.shape.num_classes) == (102, 0)
    assert imagenet.training.warmup_epochs == 5
    assert flowers.training.warmup_epochs == cifar.training.warmup_epochs == 10
    assert (imagenet.noise.angle, imagenet.noise.wide_angle) == (85, 89)
    assert (cifar.noise.angle, cifar.noise.wide_angle) == (80, 85)
    assert Recipe.read("cifar10_l_unconditional").training.epochs == 10_000
    assert flowers.objective.consistency_l1 == faces.objective.consistency_l1 == 1
    assert flowers.conditioner.options.scale == 1.6


def test_a_recipe_finds_a_plugin_beside_it(tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    (tmp_path / "recipe_plugin.py").write_text(
        "import spheregen\n"
        "class Plain(spheregen.Regularizer, name='plain-beside-recipe'):\n"
        "    pass\n"
        "@spheregen.hookimpl\n"
        "def spheregen_components():\n"
        "    return [Plain]\n"
    )
    child = tmp_path / "child.toml"
    child.write_text(
        f'extends = "{DIGITS}"\nplugins = ["./recipe_plugin.py"]\n[regularizer]\nuse = "plain-beside-recipe"\n'
    )
    assert Recipe.read(child).regularizer.component.name == "plain-beside-recipe"
