"""The gallery: each picture of the page is made by a command that stands there, and comparing settings."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Invoke
from PIL import Image

import spheregen
from spheregen import pictures

GALLERY = Path(__file__).parent.parent / "docs" / "gallery"
PAGE = (GALLERY / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make", GALLERY / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_its_commands_make(make: ModuleType) -> None:
    shown = set(re.findall(r"!\[[^]]+\]\((.+?)\)", PAGE))
    made = set()
    for words in make.commands(PAGE):
        out = Path(words[words.index("--out") + 1]).relative_to("docs/gallery")
        made.add(str(out))
        if words[0] == "interpolate" and "--animation" not in words:
            made.add(str(out.with_suffix(".webp")))
    assert shown == made
    for name in shown:
        path = GALLERY / name
        assert not path.is_file() or path.stat().st_size <= make.LARGEST


def test_the_pages_commands_run(
    make: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make.inputs(tmp_path)
    page = PAGE.replace("docs/gallery/letter.png", str(tmp_path / "letter.png"))
    monkeypatch.setattr(make, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    make.make({"runs/digits": str(run)}, page)
    made = {path.name for path in (tmp_path / "docs/gallery/digits").iterdir()}
    assert made == {Path(name).name for name in re.findall(r"\((digits/.+?)\)", PAGE)}
    assert not (tmp_path / "docs/gallery/fashion_mnist").exists()  # no run was given for it
    assert Image.open(tmp_path / "docs/gallery/digits/steps.png").mode == "L"
    assert Image.open(tmp_path / "docs/gallery/digits/restyle.png").mode == "RGB"  # it has coloured frames
    with pytest.raises(SystemExit, match="runs/digits: that command failed"):
        make.make({"runs/digits": str(tmp_path)}, page)


def cell(picture: Image.Image, x: int, y: int) -> np.ndarray:
    return np.asarray(picture.convert("L"))[y : y + 64, x : x + 64]


def drawn(image: torch.Tensor) -> np.ndarray:
    return cell(pictures.grid(image[None], 1), 2, 2)


def test_compare_shows_the_same_noise_under_each_setting(
    invoke: Invoke, run: Path, model: spheregen.SphereModel, tmp_path: Path
) -> None:
    out = tmp_path / "a.png"
    code, text, err = invoke("compare", run, "--class", "3", "--class", "8", "--count", "2", "--steps", "1,3",
                             "--cfg", "1,2", "--seed", "5", "--out", out)  # fmt: skip
    assert code == 0, err
    assert "16 images, 4 settings, seed 5" in text
    picture = Image.open(out)
    step, between = 66, 16
    left = picture.width - (2 * (2 * step + 2) + between)  # the classes' names
    title = (picture.height - between - 2 * (2 * step + 2)) // 2
    for row, scale in enumerate([1.0, 2.0]):
        for column, steps in enumerate([1, 3]):
            images = spheregen.sample(model, [3, 3, 8, 8], steps=steps, guidance=scale, seed=5)
            for i, image in enumerate(images):
                x = left + column * (2 * step + 2 + between) + 2 + i % 2 * step
                y = title + row * (2 * step + 2 + between + title) + 2 + i // 2 * step
                assert np.array_equal(cell(picture, x, y), drawn(image)), (steps, scale, i)


def test_compare_by_sample_has_a_column_a_number_of_steps(
    invoke: Invoke, run: Path, model: spheregen.SphereModel, tmp_path: Path
) -> None:
    out = tmp_path / "b.png"
    samplers = ["--sampler", "fixed:noise=independent", "--sampler", "decay:gamma=2"]
    code, text, err = invoke("compare", run, "--class", "4", "--count", "1", "--steps", "1,2,5", "--by", "sample",
                             *samplers, "--out", out)  # fmt: skip
    assert code == 0, err
    assert "6 images, 6 settings" in text
    picture = Image.open(out)
    left, top = picture.width - 3 * 66 - 2, picture.height - 2 * 66 - 2
    ways: list[tuple[str, dict[str, Any]]] = [("fixed", {"noise": "independent"}), ("decay", {"gamma": 2})]
    for row, (name, options) in enumerate(ways):
        component = spheregen.registry.get("sampler", name)
        sampler = component(component.Options(**options))
        for column, steps in enumerate([1, 2, 5]):
            (image,) = spheregen.sample(model, [4], steps=steps, sampler=sampler, guidance=1.0)
            x, y = left + 2 + column * 66, top + 2 + row * 66
            assert np.array_equal(cell(picture, x, y), drawn(image)), (name, steps)


def test_compare_takes_unconditional_models_and_refuses_their_classes(
    invoke: Invoke, tiny: Callable[..., spheregen.Recipe], tmp_path: Path
) -> None:
    from spheregen.checkpoint import RunFolder

    recipe = tiny("conditioner.use=unconditional")
    folder = RunFolder(tmp_path / "run")
    folder.begin(recipe)
    folder.save_model(spheregen.SphereModel.from_recipe(recipe), {})
    for by in ("setting", "sample"):
        code, text, err = invoke("compare", folder.path, "--steps", "1,2", "--by", by)
        assert code == 0, err
        assert "8 images, 2 settings" in text
    code, _, err = invoke("compare", folder.path, "--class", "3")
    assert code == 1
    assert "unconditional" in err


def test_pictures_beside_each_other_keep_to_lines() -> None:
    red, blue = Image.new("RGB", (10, 20), "red"), Image.new("RGB", (30, 5), "blue")
    both = pictures.beside([[red, blue], [blue]])
    assert both.size == (30 + 16 + 30, 20 + 16 + 5)
    assert both.getpixel((25, 10)) == (255, 0, 0)  # right-aligned in its column, as wide as the lower one
    assert both.getpixel((10, 10)) == (255, 255, 255)
    assert both.getpixel((60, 19)) == (0, 0, 255)
    assert both.getpixel((60, 10)) == (255, 255, 255)
