"""Models that travel: ONNX, folders, and the Hugging Face Hub, for which a folder on this disk stands."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import huggingface_hub
import huggingface_hub.errors as hub_errors
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY, Invoke, scramble
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from torch import Tensor

import spheregen
from spheregen import Recipe, RunError, SpheregenError, SphereModel, cli, export
from spheregen.card import evaluations
from spheregen.checkpoint import RunFolder
from spheregen.evaluation import weights_of
from spheregen.generation import sample
from spheregen.rng import generators, normal

# -- ONNX --------------------------------------------------------------------------------------------------------------

WORDS = {"guided": ["--cfg", "1.7"], "unconditional": []}
SETTINGS = {
    "guided": ["decoder.mixer_depth=0"],
    "unconditional": ["conditioner.use=unconditional", "encoder.mixer_depth=0", "decoder.mixer_depth=0"],
}


class Exported(NamedTuple):
    model: SphereModel
    folder: Path
    output: str

    def run(self, part: str, **arguments: Tensor) -> Tensor:
        """One file's answer in onnxruntime."""
        session = onnxruntime.InferenceSession(self.folder / f"{part}.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in arguments.items()})
        return torch.from_numpy(found)

    def labels(self, *labels: int) -> Tensor | None:
        return torch.tensor(labels) if self.model.shape.num_classes else None


def new_run(path: Path, *overrides: str, about: dict[str, str] | None = None) -> RunFolder:
    """A run folder with a small model of random weights."""
    recipe = Recipe.read("digits", [*TINY, *overrides])
    torch.manual_seed(0)
    folder = RunFolder(path)
    folder.begin(recipe)
    folder.save_model(scramble(SphereModel.from_recipe(recipe)), about or {})
    return folder


@pytest.fixture(scope="module", params=WORDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model that the command exported, and what it printed."""
    folder = tmp_path_factory.mktemp(request.param)
    run = new_run(folder / "run", *SETTINGS[request.param])
    with redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit) as done:
        cli.main(["export", str(run.path), "--format", "onnx", "--out", str(folder / "onnx"), *WORDS[request.param]])
    assert not done.value.code
    return Exported(spheregen.load(run.path), folder / "onnx", output.getvalue())


@pytest.mark.parametrize("count", [1, 4])
def test_the_exported_generator_is_one_step_of_sampling(exported: Exported, count: int) -> None:
    """From the same noise as `spheregen.sample` draws, for any batch, every class and none."""
    labels = exported.labels(3, 10, 0, 9)
    noise = normal((4, 4), generators(5, "sample", range(count)))
    given = {"noise": 2 * noise}  # its length does not matter: the sphere is inside
    guidance = None
    if labels is not None:
        labels, guidance = labels[:count], 1.7
        given["label"] = labels
    expected = sample(exported.model, labels, count=count, steps=1, guidance=guidance, seed=5)
    found = exported.run("generator", **given)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert found.shape == (count, 1, 8, 8)
    assert 0 <= found.min() < found.max() <= 1
    if labels is not None:
        unguided = sample(exported.model, labels, steps=1, guidance=1, seed=5)
        assert (found[:1] - unguided[:1]).abs().max() > 1e-2  # guidance is in the file


@pytest.mark.parametrize("count", [1, 4])
def test_the_exported_encoder_goes_to_the_sphere(exported: Exported, count: int) -> None:
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    null = exported.labels(*[10] * count)
    found = exported.run("encoder", image=images, **({} if null is None else {"label": null}))
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.full((count,), math.sqrt(16)))
    with torch.no_grad():
        decoded = ((exported.model.decode(found, null) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(decoded, spheregen.reconstruct(exported.model, images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_networks_alone_are_algorithm_1s(settings: list[str], tmp_path: Path) -> None:
    """Neither the sphere nor guidance is in the files: they give what `model.decode` and `model.encode` give."""
    model = spheregen.load(new_run(tmp_path / "run", *settings).path)
    done = export.export_networks(model, tmp_path / "out")
    assert done.difference <= 1e-4
    assert sorted(path.name for path in done.folder.iterdir()) == ["decoder.onnx", "encoder.onnx", "export.json"]
    files = Exported(model, done.folder, "")
    labels = files.labels(3, 10)
    given = {} if labels is None else {"label": labels}
    latents = normal((4, 4), generators(5, "sample", range(2)))
    with torch.no_grad():
        images = model.decode(latents, labels)
        encoded = model.encode(images, labels)
    torch.testing.assert_close(files.run("decoder", latent=latents, **given), images, atol=1e-4, rtol=0)
    torch.testing.assert_close(files.run("encoder", image=images, **given), encoded, atol=1e-3, rtol=1e-4)
    assert images.min() < -0.1
    about = json.loads((done.folder / "export.json").read_text(encoding="utf-8"))
    assert about["decoder"]["inputs"]["latent"] == {"type": "float32", "shape": ["batch", 4, 4]}
    assert about["decoder"]["outputs"] == {"image": {"type": "float32", "shape": ["batch", 1, 8, 8]}}
    assert about["encoder"]["outputs"] == {"latent": {"type": "float32", "shape": ["batch", 4, 4]}}
    assert ("label" in about["encoder"]["inputs"]) == bool(given)


def test_the_files_tell_of_themselves(exported: Exported) -> None:
    assert sorted(path.name for path in exported.folder.iterdir()) == ["encoder.onnx", "export.json", "generator.onnx"]
    about = json.loads((exported.folder / "export.json").read_text(encoding="utf-8"))
    conditional = exported.model.shape.num_classes > 0
    assert about["recipe"] == "digits"
    assert about["L"] == 16
    assert about["image_size"] == 8
    assert about["class_names"] == (list("0123456789") if conditional else [])
    assert about["null_label"] == (10 if conditional else None)
    assert about["guidance"] == (1.7 if conditional else 1)
    assert about["guidance_position"] == ("combo" if conditional else "none")
    for part in ("generator", "encoder"):
        file = exported.folder / f"{part}.onnx"
        graph = onnx.load(file).graph
        for kind, values in (("inputs", graph.input), ("outputs", graph.output)):
            shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
            assert shapes == {name: told["shape"] for name, told in about[part][kind].items()}
        notes = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        assert notes["recipe"] == "digits"
        assert notes["L"] == "16"
        assert notes["image_size"] == "8"
        assert json.loads(notes["class_names"]) == about["class_names"]
        assert notes["version"] == spheregen.__version__
        assert about["largest_difference"][file.name] <= 1e-4
        assert f"{file.name} {about['largest_difference'][file.name]:.1e}" in exported.output


def test_no_path_of_this_machine_is_in_the_files(exported: Exported) -> None:
    for file in exported.folder.iterdir():
        content = file.read_bytes()
        for place in (Path(spheregen.__file__).parent.parent, Path(torch.__file__).parent, Path.home()):
            assert len(str(place)) < 2 or str(place).encode() not in content


def test_another_models_output_is_not_taken_for_this_ones(exported: Exported) -> None:
    other = scramble(spheregen.load(exported.folder.parent / "run"), seed=1)
    labels = exported.labels(0, 9, 10)
    arguments = {"image": torch.rand(3, 1, 8, 8), **({} if labels is None else {"label": labels})}
    file = exported.folder / "encoder.onnx"
    assert export._difference(export.LatentEncoder(exported.model), arguments, file) < 1e-4
    assert export._difference(export.LatentEncoder(other), arguments, file) > 1e-2
    with torch.no_grad():
        other.get_parameter("encoder.head.linear.weight").fill_(torch.nan)
    assert export._difference(export.LatentEncoder(other), arguments, file) == math.inf


@pytest.mark.parametrize("difference", [2e-4, math.inf])
def test_an_export_that_differs_is_not_written(
    difference: float, model: SphereModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def write(module: Any, arguments: Any, output: str, path: Path, about: Any) -> None:
        path.write_bytes(b"onnx")
        written.append(path)

    monkeypatch.setattr(export, "_write", write)
    monkeypatch.setattr(export, "_difference", lambda *_: difference)
    with pytest.raises(SpheregenError, match=r"generator.onnx: onnxruntime and PyTorch differ by"):
        export.export_onnx(model, tmp_path / "out")
    assert written
    assert not list(tmp_path.iterdir())


class FixedBatch(spheregen.Decoder, name="fixed-batch"):
    """A decoder that takes two images at a time."""

    def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        return latents.reshape(2, -1)[:, :1, None, None].expand(-1, 1, 8, 8)


def test_networks_that_cannot_be_exported_are_told(model: SphereModel, tmp_path: Path) -> None:
    class AnyNumber(FixedBatch):
        def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
            pixels = latents[:, :1, :1, None].expand(-1, 1, 8, 8)
            return pixels if latents.sum() > 0 else -pixels

    model.decoder = AnyNumber(AnyNumber.Options(), model.shape)
    with pytest.raises(SpheregenError, match=r"generator.onnx: these networks cannot be exported to ONNX: ") as refused:
        export.export_onnx(model, tmp_path / "out")
    assert len(str(refused.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_network_that_fixes_the_batch_is_refused(model: SphereModel, tmp_path: Path) -> None:
    module = export.Generator(model, None)
    model.decoder = FixedBatch(FixedBatch.Options(), model.shape)
    arguments = {"noise": torch.randn(3, 4, 4), "label": torch.tensor([1, 2, 3])}
    with pytest.raises(SpheregenError, match="cannot be exported"):
        export._write(module, arguments, "image", tmp_path / "generator.onnx", {})


@pytest.mark.parametrize("package", export.PACKAGES)
def test_missing_packages_are_told_with_the_extra(
    package: str, model: SphereModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(SpheregenError, match=rf"needs {package}: pip install 'spheregen\[export\]'$"):
        export.export_onnx(model, tmp_path / "out")


def test_guidance_that_one_step_cannot_have_is_refused(model: SphereModel, tmp_path: Path) -> None:
    with pytest.raises(SpheregenError, match="'latent' does not guide images"):
        export.export_onnx(model, tmp_path / "out", guidance=2, position="latent")
    recipe = Recipe.read("digits", [*TINY, "conditioner.use=unconditional"])
    with pytest.raises(SpheregenError, match="unconditional and cannot be guided"):
        export.export_onnx(SphereModel.from_recipe(recipe), tmp_path / "out", guidance=2)
    assert not list(tmp_path.iterdir())


# -- folders -----------------------------------------------------------------------------------------------------------


def front_matter(card: str) -> dict[str, Any]:
    return huggingface_hub.ModelCard(card).data.to_dict()


def test_an_exported_folder_is_read_anywhere(run: Path, tmp_path: Path, invoke: Invoke) -> None:
    code, _, err = invoke("export", str(run), "--format", "safetensors", "--out", str(tmp_path / "a" / "out"))
    assert code == 0, err
    moved = shutil.move(tmp_path / "a" / "out", tmp_path / "elsewhere")
    assert sorted(path.name for path in Path(moved).iterdir()) == [
        "README.md", "model.safetensors", "recipe.toml", "samples.png",
    ]  # fmt: skip
    ours, theirs = spheregen.load(run), spheregen.load(moved)
    assert theirs.class_names == ours.class_names
    assert torch.equal(sample(ours, [1, 2], seed=3), sample(theirs, [1, 2], seed=3))
    assert Image.open(tmp_path / "elsewhere" / "samples.png").width > 100


def test_nothing_is_written_over(run: Path, tmp_path: Path, invoke: Invoke, model: SphereModel) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "kept.txt").write_text("mine")
    for format in ("onnx", "safetensors"):
        code, _, err = invoke("export", str(run), "--format", format, "--out", str(out))
        assert code == 1
        assert f"{out}: exists already and is not an empty folder" in err
    assert [path.name for path in out.iterdir()] == ["kept.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--format", "safetensors", "--cfg", "2"], "--cfg: is built into ONNX files only"),
        (["--format", "onnx", "--license", "mit"], "--license: stands on the model card"),
    ],
)
def test_options_of_the_other_format_are_refused(arguments: list[str], told: str, run: Path, invoke: Invoke) -> None:
    code, _, err = invoke("export", str(run), *arguments)
    assert code == 1
    assert told in err
    assert not (run / "export").exists()


def test_the_card_tells_recipe_and_metrics(tmp_path: Path) -> None:
    about = {"weights": "ema", "images": "80000", "class_names": json.dumps([f"digit {i}" for i in range(10)])}
    run = new_run(tmp_path / "run", about=about)
    run.samples.mkdir()
    for seen in (100, 20_000):
        Image.new("L", (seen // 100, 9)).save(run.samples / f"images-{seen:09d}.png")
    settings = {
        "steps": 4, "guidance": 1.4, "position": "combo", "sampler": {"use": "decay"}, "network_passes": 14,
        "samples": 1797, "seed": 0, "extractor": "pixels", "reference": "digits", "reference_images": 1797,
        "reference_key": "abc123", "weights": weights_of(run),
    }  # fmt: skip
    row = {"settings": settings, "metrics": {"fid": 12.3456}, "titles": {"fid": "FD(pixels)-1797"}, "made": ["fid"]}
    stale = {**row, "settings": {**settings, "weights": {"hash": "0" * 16}}, "metrics": {"fid": 99.9}}
    (run.path / "evaluation").mkdir()
    for name, content in (("a", row), ("b", stale), ("c", {"rows": []}), ("d", [1])):
        (run.path / "evaluation" / f"{name}.json").write_text(json.dumps(content))
    (run.path / "evaluation" / "e.json").write_text("{")
    assert evaluations(run, run.model) == [row]

    folder = spheregen.export_folder(run.path, tmp_path / "out", license="cc-by-4.0", address="hf://me/digits")
    card = (folder / "README.md").read_text(encoding="utf-8")
    matter = front_matter(card)
    assert matter["library_name"] == "spheregen"
    assert matter["license"] == "cc-by-4.0"
    assert "sphere-encoder" in matter["tags"]
    assert 'spheregen.load("hf://me/digits")' in card
    assert "| FD(pixels)-1797 |" in card
    assert "| 4 | 14 | 1.4 combo | decay | 1,797 | 0 | 12.35 |" in card
    assert "99.9" not in card
    assert "abc123" in card
    assert "vit-mixer (size = tiny, width = 32" in card
    assert "| training | 80,000 images seen" in card
    assert "7 digit 7" in card
    assert Image.open(folder / "samples.png").size == (200, 9)  # the newest grid of the training
    assert spheregen.load(folder).class_names[7] == "digit 7"


def test_the_cards_example_runs(run: Path, tmp_path: Path) -> None:
    folder = spheregen.export_folder(run, tmp_path / "out")
    card = (folder / "README.md").read_text(encoding="utf-8")
    example = card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(folder))
    made: dict[str, Any] = {}
    exec(example, made)
    assert made["images"].shape == (1, 1, 8, 8)
    assert "license" not in front_matter(card)


# -- the hub -----------------------------------------------------------------------------------------------------------


class Hub:
    """Repositories as folders of this disk, and a cache laid out as huggingface_hub's: links to nameless files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[str] = []

    def repository(self, repo: str, revision: str | None) -> Path:
        return self.path / "repositories" / repo / (revision or "main")

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        self.repository(repo, None).mkdir(parents=True, exist_ok=exist_ok)

    def create_branch(self, repo: str, *, branch: str, exist_ok: bool) -> None:
        self.repository(repo, branch).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str | None, commit_message: str) -> None:
        target = self.repository(repo_id, revision)
        assert target.is_dir()
        shutil.copytree(folder_path, target, dirs_exist_ok=True)
        self.messages.append(commit_message)

    def snapshot_download(self, repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        source, cache = self.repository(repo, revision), self.path / "cache" / repo
        if not self.repository(repo, None).is_dir():
            raise hub_errors.RepositoryNotFoundError("404 Client Error.", response=MagicMock())
        if not source.is_dir():
            raise hub_errors.RevisionNotFoundError("404 Client Error.", response=MagicMock())
        names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        for number, name in enumerate(filter_repo_objects(names, allow_patterns=allow_patterns)):
            blob, link = cache / "blobs" / f"{number:040x}", cache / "snapshots" / (revision or "main") / name
            blob.parent.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, blob)
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        return str(cache / "snapshots" / (revision or "main"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(tmp_path / "hub")
    for name in ("create_repo", "create_branch", "upload_folder", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(stand_in, name))
    return stand_in


def test_a_model_goes_to_the_hub_and_comes_back(run: Path, hub: Hub, invoke: Invoke) -> None:
    code, out, err = invoke("push", str(run), "someone/digits", "--license", "apache-2.0", "--message", "First")
    assert code == 0, err
    assert 'spheregen.load("hf://someone/digits")' in out
    assert hub.messages == ["First"]
    there = hub.repository("someone/digits", None)
    assert front_matter((there / "README.md").read_text(encoding="utf-8"))["license"] == "apache-2.0"
    (there / "pytorch_model.bin").write_bytes(b"a pickle")
    (there / "setup.py").write_text("raise SystemExit")
    model = spheregen.load("hf://someone/digits")
    assert torch.equal(sample(model, [4], seed=1), sample(spheregen.load(run), [4], seed=1))
    fetched = [path.name for path in (hub.path / "cache").rglob("*") if path.is_symlink()]
    assert sorted(fetched) == ["model.safetensors", "recipe.toml"]


def test_pictures_of_a_model_on_the_hub_go_beside_the_other_runs(
    run: Path, hub: Hub, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    spheregen.push(run, "someone/digits", revision="new/look")
    monkeypatch.chdir(tmp_path)
    address = "hf://someone/digits@new/look"
    for command, *arguments in (
        ("sample", address, "--count", "1", "--class", "3"), ("reconstruct", address, "--count", "1"),
        ("interpolate", address, "--animation", "none", "--rows", "1"),
        ("restyle", "test:0", "--run", address), ("crossover", "test:0", "test:1", "--run", address),
    ):  # fmt: skip
        code, out, err = invoke(command, *arguments)
        assert code == 0, err
        assert "→ runs/someone--digits@new-look/samples/" in out
    assert not list(tmp_path.glob("hf*"))


def test_commands_and_revisions_name_models_on_the_hub(run: Path, hub: Hub, tmp_path: Path, invoke: Invoke) -> None:
    assert spheregen.push(run, "someone/digits", revision="v2") == "hf://someone/digits@v2"
    code, _, err = invoke("sample", "hf://someone/digits@v2", "--count", "1", "--out", str(tmp_path / "pictures"))
    assert code == 0, err
    assert (tmp_path / "pictures" / "grid.png").is_file()
    code, _, err = invoke("evaluate", "hf://someone/digits@v2")
    assert code == 1
    assert "spheregen export" in err
    code, _, err = invoke(
        "export", "hf://someone/digits@v2", "--format", "safetensors", "--out", str(tmp_path / "pulled")
    )
    assert code == 0, err
    assert spheregen.load(tmp_path / "pulled").shape.num_classes == 10
    code, _, err = invoke("export", "hf://someone/digits@v2")
    assert code == 1
    assert "--out" in err
    code, _, err = invoke("sample", "hf://someone/digits")  # main is empty
    assert code == 1
    assert "not a model of spheregen: the repository has no recipe.toml and no model.safetensors" in err


PLUGIN = """
from pathlib import Path
import spheregen

Path({marker!r}).touch()

class Quiet(spheregen.Sampler, name="quiet"):
    def strength(self, step, steps):
        return 0.0

    def noise(self, shape, generators, previous, first):
        return spheregen.rng.normal(shape, generators)

@spheregen.hookimpl
def spheregen_components():
    return [Quiet]
"""


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the plugins that a test loads: a registry that had them would trust them."""
    from spheregen.registry import registry

    before = dict(registry.plugins())
    components, origins = dict(registry._components), dict(registry._origins)
    yield
    for name, plugin in registry.plugins().items():
        if name not in before:
            registry.manager.unregister(plugin)
    registry._components, registry._origins = components, origins


def test_a_model_from_the_hub_runs_no_code_until_it_is_trusted(
    hub: Hub, run: Path, tmp_path: Path, forgetful: None
) -> None:
    marker = tmp_path / "ran"
    hub.create_repo("someone/coded", private=False, exist_ok=True)
    there = hub.repository("someone/coded", None)
    (there / "plugins").mkdir()
    (there / "plugins" / "quiet.py").write_text(PLUGIN.format(marker=str(marker)))
    shutil.copy(run / "model.safetensors", there)
    recipe = (run / "recipe.toml").read_text(encoding="utf-8").replace("plugins = []", 'plugins = ["plugins/quiet.py"]')
    head, _, tail = recipe.partition("[sampler]\n")
    recipe = f'{head}[sampler]\nuse = "quiet"\n\n[{tail.partition("[")[2]}'
    (there / "recipe.toml").write_text(recipe, encoding="utf-8")

    with pytest.raises(RunError, match=r"needs the plugins plugins/quiet.py, which are code"):
        spheregen.load("hf://someone/coded")
    assert not marker.exists()
    model = spheregen.load("hf://someone/coded", trust_plugins=True)
    assert marker.exists()
    assert sample(model, [1], steps=2).shape == (1, 1, 8, 8)

    folder = spheregen.export_folder("hf://someone/coded", tmp_path / "out", trust_plugins=True)
    assert (folder / "plugins" / "quiet.py").read_text() == PLUGIN.format(marker=str(marker))
    assert "trust_plugins=True" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (lambda: hub_errors.RepositoryNotFoundError("404 Client Error.", response=MagicMock()), "no such repository"),
        (lambda: hub_errors.GatedRepoError("403 Client Error.", response=MagicMock()), "access has to be asked for"),
        (lambda: hub_errors.RevisionNotFoundError("404.", response=MagicMock()), "no such revision"),
        (lambda: hub_errors.LocalTokenNotFoundError("Token is required"), "log in with `hf auth login`"),
        (lambda: hub_errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (lambda: hub_errors.LocalEntryNotFoundError("cannot find it"), "not in the cache on this disk"),
        (lambda: hub_errors.HFValidationError("no '..'"), "not a repository's name"),
        (lambda: ConnectionError("Connection\nrefused"), "Connection refused"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    error: Callable[[], Exception], told: str, run: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    with pytest.raises(RunError, match=r"^hf://someone/digits: ") as refused:
        spheregen.load("hf://someone/digits")
    assert told in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    code, _, err = invoke("push", str(run), "someone/digits")
    assert code == 1
    assert told in err
    assert len(err.splitlines()) == 1


def test_without_a_network_the_real_hub_is_one_line() -> None:
    with pytest.raises(
        RunError, match=r"^hf://nobody/nothing: not in the cache on this disk, and HF_HUB_OFFLINE is set$"
    ):
        spheregen.load("hf://nobody/nothing")


@pytest.mark.parametrize("address", ["hf://digits", "hf://a/b/c", "hf://", "hf://a/b@"])
def test_addresses_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(RunError, match="expected hf://owner/name"):
        spheregen.load(address)


@pytest.mark.parametrize("repo", ["digits", "a/b/c", "a/b@v1"])
def test_names_to_push_to_that_are_none_are_refused(repo: str, run: Path) -> None:
    with pytest.raises(SpheregenError, match="expected owner/name"):
        spheregen.push(run, repo)


def test_the_pictures_are_the_models(run: Path, tmp_path: Path) -> None:
    """Without a grid from training, the card's picture is sampled, and the same for the same model."""
    one, two = (spheregen.export_folder(run, tmp_path / name) for name in "ab")
    first, second = (np.asarray(Image.open(folder / "samples.png")) for folder in (one, two))
    assert np.array_equal(first, second)
    assert first.std() > 1
