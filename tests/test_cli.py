"""The command line, as a person uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Invoke
from PIL import Image

from spheregen import cli


def test_train_then_sample_then_reconstruct(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sets = [word for setting in TINY for word in ("--set", setting)]
    code, out, err = invoke("train", "digits", *sets)
    assert code == 0, err
    assert "160 images" in out
    assert "runs/digits/model.safetensors" in out
    code, out, err = invoke("train", "digits", *sets)  # finished already: nothing to do, and it says so
    assert code == 0, err
    assert out.startswith("done: runs/digits/model.safetensors")

    code, out, err = invoke("sample", "--class", "3", "--class", "7-8", "--count", "2", "--steps", "3", "--cfg", "1.4")
    assert code == 0, err
    assert "3 steps (10 network passes)" in out
    folder = tmp_path / "runs/digits/samples/steps3-cfg1.4-seed0"
    assert len(list(folder.glob("0*.png"))) == 6
    assert Image.open(folder / "00000-3.png").size == (8, 8)
    assert Image.open(folder / "grid.png").size[0] > 2 * 64
    code, out, err = invoke("reconstruct", "--count", "4")
    assert code == 0, err
    assert "PSNR" in out
    assert (tmp_path / "runs/digits/samples/reconstructions.png").is_file()


def test_samples_are_the_seeds(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    def pixels(name: str, *more: str) -> np.ndarray:
        code, _, err = invoke("sample", str(run), "--count", "1", "--out", str(tmp_path / name), *more)
        assert code == 0, err
        return np.asarray(Image.open(tmp_path / name / "grid.png"))

    a = pixels("a", "--seed", "1")
    assert np.array_equal(a, pixels("b", "--seed", "1", "--batch-size", "3"))
    assert not np.array_equal(a, pixels("c", "--seed", "2"))
    assert not np.array_equal(a, pixels("d", "--seed", "1", "--sampler", "fixed", "--sampler-set", "r=0.7"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digts"], "no such recipe file"),
        (["train", "digits", "--set", "encoder.sise=3"], "did you mean 'size'?"),
        (["sample", "nowhere"], "nowhere: not a run folder"),
        (["sample", "RUN", "--class", "12"], "--class 12: this model knows 0 to 9"),
        (["sample", "RUN", "--sampler", "fixd"], "did you mean 'fixed'?"),
        (["sample", "RUN", "--sampler-set", "gama=1"], "--sampler-set gama=1: expected key=value"),
        (["sample", "RUN", "--sampler-set", "r=-1"], "--sampler-set r: "),
        (["sample", "RUN", "--cfg-position", "pixle", "--cfg", "2"], "did you mean 'pixel'?"),
        (["sample", "RUN", "--device", "warp"], "--device warp"),
        (["reconstruct", "RUN", "--image", "nothing.png"], "nothing.png"),
        (["plugins", "show", "vit-mixr"], "did you mean 'vit-mixer'?"),
        (["plugins", "list", "encodr"], "did you mean 'encoder'?"),
        (["recipes", "show", "digit"], "did you mean 'digits'?"),
        (["--plugin", "nope.py", "recipes", "list"], "plugin nope.py"),
    ],
)
def test_errors_are_one_readable_line(invoke: Invoke, run: Path, arguments: list[str], message: str) -> None:
    code, out, err = invoke(*[str(run) if word == "RUN" else word for word in arguments])
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in out + err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    from spheregen import RecipeError

    with pytest.raises(RecipeError):
        cli.main(["train", "digts", "--debug"])


def test_dry_run_prints_a_recipe_that_reads_back(invoke: Invoke, tmp_path: Path) -> None:
    code, out, _ = invoke("train", "imagenet_l", "--dry-run", "--set", "training.lr=3e-4")
    assert code == 0
    (tmp_path / "again.toml").write_text(out)
    assert invoke("train", str(tmp_path / "again.toml"), "--dry-run")[1] == out
    assert "lr = 0.0003" in out


def test_plugins_are_listed_with_their_origin(invoke: Invoke) -> None:
    code, out, _ = invoke("plugins", "list")
    assert code == 0
    for word in ("vit-mixer", "spheregen_vit", "combo", "decay", "batchnorm", "image-folder", "lpips"):
        assert word in out
    report = json.loads(invoke("plugins", "list", "sampler", "--json")[1])
    assert {"kind": "sampler", "name": "decay", "plugin": "spheregen_samplers"} in report["components"]
    assert {c["kind"] for c in report["components"]} == {"sampler"}
    assert report["failures"] == {}
    code, out, _ = invoke("plugins", "show", "decay")
    assert "gamma" in out
    assert "Eq. 13" in out


def test_recipes_are_listed_and_shown(invoke: Invoke) -> None:
    out = invoke("recipes", "list")[1]
    for name in ("digits", "fashion_mnist", "cifar10_b", "cifar10_l", "cifar10_l_unconditional", "animal_faces_l",
                 "oxford_flowers_l", "imagenet_l", "imagenet_xl"):  # fmt: skip
        assert name in out
    assert 'extends = "imagenet_l.toml"' in invoke("recipes", "show", "imagenet_xl")[1]
    assert 'size = "xlarge"' in invoke("recipes", "show", "imagenet_xl", "--resolved")[1]


def test_a_plugin_brings_a_command(tmp_path: Path) -> None:
    plugin = tmp_path / "greeting.py"
    plugin.write_text(
        "import spheregen\n"
        "@spheregen.hookimpl\n"
        "def spheregen_commands(app):\n"
        "    @app.command()\n"
        "    def greet(name: str = 'you'):\n"
        "        print('hello', name)\n"
    )
    for arguments, environment in (
        (["greet", "--plugin", str(plugin), "--name", "there"], {}),
        (["greet", "--name", "there"], {"SPHEREGEN_PLUGINS": str(plugin)}),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "spheregen", *arguments], capture_output=True, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        assert done.stdout == "hello there\n", done.stderr


def test_a_broken_plugin_in_the_environment_is_told_and_commands_work(tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text("import no_such_thing")
    done = subprocess.run(
        [sys.executable, "-m", "spheregen", "recipes", "list"], capture_output=True, text=True,
        env={**os.environ, "SPHEREGEN_PLUGINS": str(plugin)},
    )  # fmt: skip
    assert done.returncode == 0
    assert "digits" in done.stdout
    assert "no_such_thing" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_run_it_says_how_to_make_one(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = invoke("sample")
    assert code == 1
    assert "spheregen train digits" in err


def test_any_image_can_be_reconstructed(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    Image.new("CMYK", (40, 23), (10, 200, 30, 0)).save(tmp_path / "a.jpg")
    Image.new("RGBA", (9, 31), (250, 20, 30, 128)).save(tmp_path / "b.png")
    out = tmp_path / "out.png"
    code, text, err = invoke(
        "reconstruct",
        str(run),
        "--image",
        str(tmp_path / "a.jpg"),
        "--image",
        str(tmp_path / "b.png"),
        "--out",
        str(out),
    )
    assert code == 0, err
    assert "2 images" in text
    (tmp_path / "c.png").write_text("not an image")
    out.unlink()
    code, _, err = invoke("reconstruct", str(run), "--image", str(tmp_path / "c.png"), "--out", str(out))
    assert code == 1
    assert "c.png" in err
    assert not out.exists()
