"""The training loop: resuming, processes, checkpoints, signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from conftest import TINY, scramble, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor

import spheregen
from spheregen import Recipe, RunError, Trainer, hookimpl, registry
from spheregen.checkpoint import RunFolder
from spheregen.loader import Slices, StepDraws, TrainingOrder, to_network
from spheregen.recipe_files import shipped_recipes

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name].nan_to_num(-1), b[name].nan_to_num(-1)) for name in a
    )


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# -- the order of images and draws -------------------------------------------------------------------------------------


def take(order: TrainingOrder, passes: int) -> list[int]:
    iterator = iter(order)
    return [index for _ in range(passes) for index in next(iterator)]


@settings(max_examples=40)
@given(st.integers(3, 50), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.integers(0, 5))
def test_processes_and_passes_share_one_order(dataset: int, processes: int, accumulate: int, step: int) -> None:
    batch = 8
    whole = take(TrainingOrder(dataset, 1, Slices(batch), 0), step + 2)
    rows: dict[int, list[int]] = {}
    for process in range(processes):
        slices = Slices(batch, accumulate, processes, process)
        iterator = iter(TrainingOrder(dataset, 1, slices, step))
        for part in range(accumulate):
            rows[slices.of(part).start] = next(iterator)
    assert [i for start in sorted(rows) for i in rows[start]] == whole[step * batch : (step + 1) * batch]


def test_an_epoch_sees_every_image_once_and_epochs_differ() -> None:
    seen = take(TrainingOrder(12, 0, Slices(4)), 6)
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]


def test_draws_do_not_depend_on_how_the_batch_is_cut(tiny: Callable[..., Recipe]) -> None:
    shape, noise = tiny().shape, tiny().noise.range()
    draws = StepDraws.of(3, 5, 8, noise)
    whole = draws.take(slice(0, 8), shape, torch.device("cpu"))
    part = draws.take(slice(2, 6), shape, torch.device("cpu"))
    assert torch.equal(whole.e[2:6], part.e)
    assert torch.equal(whole.r[2:6], part.r)
    assert set(draws.r.tolist()) >= {0.0} or (draws.r > 1).any()


def test_flips_mirror_the_images_they_name() -> None:
    images = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2)
    x = to_network(images, torch.tensor([False, True]), torch.device("cpu"))
    expected = images.float() / 127.5 - 1
    assert torch.equal(x[0], expected[0])
    assert torch.equal(x[1], expected[1].flip(-1))


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(spheregen.SpheregenError, match=r"training\.batch_size: 10 is not divisible by 4 processes"):
        Slices(10, 1, 4)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line_or_a_count(tiny: Callable[..., Recipe], tmp_path: Path, workers: int) -> None:
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.new("L", (8, 8), 99).save(tmp_path / "photos" / label / "whole.png")
        (tmp_path / "photos" / label / "broken.png").write_bytes(b"no image")
    recipe = [
        "data.use=image-folder", f"data.root={str(tmp_path / 'photos')!r}", "data.image_size=8", "data.channels=1",
        "data.classes=2", f"training.workers={workers}",
    ]  # fmt: skip
    with pytest.raises(spheregen.DataError) as refusal:
        spheregen.train(tiny(*recipe), tmp_path / "refused")
    assert str(refusal.value).count("\n") == 0
    assert str(refusal.value).startswith(str(tmp_path / "photos"))
    folder = spheregen.train(tiny(*recipe, "data.on_error=skip"), tmp_path / "skipped")
    assert metrics_of(folder.path)[-1]["skipped_images"] == 2


# -- training and resuming ---------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_leaves_a_whole_run(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny("training.images=4800", "training.lr=3e-3", "training.lr_batch=16", "training.checkpoint_images=1600")
    folder = spheregen.train(recipe, tmp_path / "run")
    lines = metrics_of(folder.path)
    assert lines[-1]["reconstruction_l1"] < 0.75 * lines[0]["reconstruction_l1"]
    assert lines[-1]["images"] == 4800
    assert [path.name for path in folder.checkpoints()] == ["step-00000300", "step-00000200"]
    assert sorted(folder.samples.glob("*.png"))
    assert Recipe.read(folder.recipe).as_dict() == recipe.as_dict()
    model = spheregen.load(folder.path)
    assert not model.training
    assert same(dict(model.state_dict()), state_of(folder.path))
    assert not list(folder.path.rglob(".*"))  # nothing half-written is left


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def spheregen_step_end(self, trainer: Trainer) -> None:
        trainer.stop = trainer.stop or trainer.step == self.step


@pytest.mark.parametrize("overrides", [(), ("training.accumulate=2", "regularizer.use=batchnorm")])
def test_a_stop_and_a_resumption_change_nothing(
    tiny: Callable[..., Recipe], tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    recipe = tiny("training.flip=0.5", *overrides)
    spheregen.train(recipe, tmp_path / "whole")

    for step in (3, 4, 9):
        hook = StopAt(step)
        registry.register(hook)
        assert not Trainer(recipe, tmp_path / "parts").fit()
        registry.unregister(hook)
    assert Trainer(recipe, tmp_path / "parts").fit()
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    newest = [RunFolder(tmp_path / name).checkpoints()[0] for name in ("whole", "parts")]
    assert newest[0].name == newest[1].name
    for file in ("model", "ema", "optimizer", "guard"):
        assert same(*(load_file(path / f"{file}.safetensors") for path in newest))
    losses = [
        [(m["images"], m["gradient_norm"]) for m in metrics_of(tmp_path / name)][-1] for name in ("whole", "parts")
    ]
    assert losses[0][0] == losses[1][0]


def command(run: Path, *more: str) -> list[str]:
    sets = [word for setting in TINY for word in ("--set", setting)]
    return [sys.executable, "-m", "spheregen", "train", "digits", "--run", str(run), *sets, *more]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, how: signal.Signals) -> None:
    longer = ["--set", "training.images=3200", "--set", "training.checkpoint_images=320"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, *longer), check=True, capture_output=True, env=ENVIRONMENT)
    process = subprocess.Popen(
        command(killed, *longer), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 120
    while not list(killed.glob("checkpoints/step-*")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert not (killed / "model.safetensors").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on from there" in output
    else:
        assert process.returncode == -signal.SIGKILL
    done = subprocess.run(command(killed, *longer), check=True, capture_output=True, text=True, env=ENVIRONMENT)
    assert "resumed at" in done.stdout
    assert same(state_of(whole), state_of(killed))
    assert [m["step"] for m in metrics_of(killed)] == sorted({m["step"] for m in metrics_of(killed)})


@pytest.mark.parametrize("damage", ["truncate", "empty", "state", "delete"])
def test_a_damaged_checkpoint_is_passed_over_and_told(tiny: Callable[..., Recipe], tmp_path: Path, damage: str) -> None:
    recipe = tiny()
    spheregen.train(recipe, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    whole = state_of(folder.path)
    folder.model.unlink()
    newest, older = folder.checkpoints()
    file = newest / "optimizer.safetensors"
    match damage:
        case "truncate":
            file.write_bytes(file.read_bytes()[:-100])
        case "empty":
            file.write_bytes(b"")
        case "state":
            (newest / "state.json").write_text("{")
        case "delete":
            file.unlink()
    trainer = Trainer(recipe, tmp_path / "run")
    assert trainer.fit()
    assert newest.name in trainer.notes[0]
    assert same(state_of(folder.path), whole)
    assert older.name == "step-00000008"


def test_a_finished_model_is_not_lost(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny()
    folder = spheregen.train(recipe, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.is_file()}
    assert Trainer(recipe, folder.path).fit()  # finished: there is nothing to do
    assert {path: path.stat().st_mtime_ns for path in before if path != folder.recipe} == {
        path: time for path, time in before.items() if path != folder.recipe
    }
    shutil.rmtree(folder.path / "checkpoints")
    with pytest.raises(RunError, match="holds a finished model and no checkpoint to go on from"):
        Trainer(recipe, folder.path).fit()
    assert state_of(folder.path)


def test_another_recipe_does_not_take_a_runs_place(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    spheregen.train(tiny(), tmp_path / "run")
    before = (tmp_path / "run" / "recipe.toml").read_bytes()
    with pytest.raises(RunError, match=r"encoder\.depth was 1 and is 2.*--run"):
        spheregen.train(tiny("encoder.depth=2"), tmp_path / "run")
    assert (tmp_path / "run" / "recipe.toml").read_bytes() == before
    spheregen.train(tiny("training.log_images=64", "sampling.steps=3"), tmp_path / "run")  # these may differ


def test_saving_in_the_middle_does_not_change_what_is_logged(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    often = spheregen.train(tiny("training.log_images=48", "training.checkpoint_images=16"), tmp_path / "often")
    never = spheregen.train(tiny("training.log_images=48", "training.checkpoint_images=9999"), tmp_path / "never")
    lines = [[{**line, "images_per_second": 0} for line in metrics_of(run.path)] for run in (often, never)]
    assert lines[0] == lines[1]
    assert same(state_of(often.path), state_of(never.path))


def test_sampling_in_the_middle_does_not_change_training(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    often = spheregen.train(tiny("training.sample_images=16"), tmp_path / "often")
    never = spheregen.train(tiny("training.sample_images=100000"), tmp_path / "never")
    assert len(list(often.samples.glob("*.png"))) > len(list(never.samples.glob("*.png")))
    assert same(state_of(often.path), state_of(never.path))


def test_accumulated_passes_make_the_gradient_of_the_whole_batch(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    gradients = []
    for accumulate in (1, 4):
        trainer = Trainer(tiny(f"training.accumulate={accumulate}", "training.clip=1e9"), tmp_path / str(accumulate))
        gradients.append(first_gradients(trainer))
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("setting", ["activation_checkpointing", "compile"])
def test_compiled_and_recomputed_blocks_make_the_same_gradients(
    tiny: Callable[..., Recipe], tmp_path: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = nn.Module.compile
    compiled: list[nn.Module] = []

    def compile_(self: nn.Module) -> None:  # traced, but not built by a C++ compiler, which takes minutes
        compiled.append(self)
        whole(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_)
    overrides = ["training.clip=1e9", "encoder.depth=2"]
    plain = Trainer(tiny(*overrides), tmp_path / "plain")
    changed = Trainer(tiny(*overrides, f"training.{setting}=true"), tmp_path / "changed")
    assert len(compiled) == (3 if setting == "compile" else 0)
    assert plain.model.state_dict().keys() == changed.model.state_dict().keys()
    gradients = first_gradients(plain), first_gradients(changed)
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-6, rtol=1e-4)
    # The average is a model of its own: its blocks are not the trained ones in disguise.
    assert changed.ema is not None
    x = torch.zeros(2, 1, 8, 8)
    before = changed.ema.module.encode(x, torch.zeros(2, dtype=torch.int64))
    scramble(changed.model, seed=9)
    assert torch.equal(before, changed.ema.module.encode(x, torch.zeros(2, dtype=torch.int64)))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def first_gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The gradients of a trainer's first step, from weights without zeros."""
    from spheregen.loader import training_batches

    scramble(trainer.model)
    found: dict[str, torch.Tensor] = {}

    def keep(norm: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        found.update({n: whole(p.grad).clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
        return torch.tensor(True)

    trainer._apply = keep  # type: ignore[method-assign]
    trainer._train_step(training_batches(trainer.source, 0, trainer.slices, 0, 0, False))
    return found


def test_schedule_and_rates_are_the_papers(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    """Linear warm-up, cosine to lr_min, linear scaling with the batch, the encoder at a tenth."""
    recipe = tiny("training.images=1600", "training.warmup_images=320", "training.lr=1e-3", "training.lr_batch=256")
    trainer = Trainer(recipe, tmp_path / "run")
    peak = 1e-3 * 16 / 256
    rates = []
    for step in range(100):
        trainer.schedule.step_update(step)
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
    assert rates[20] == pytest.approx([peak * 0.1, peak])
    assert rates[10][1] == pytest.approx(peak / 2, rel=0.01)
    assert rates[60][1] == pytest.approx((peak + 1e-6) / 2, rel=0.01)
    assert rates[99][1] == pytest.approx(1e-6, rel=0.2)


def test_a_frozen_encoder_does_not_move(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    trainer = Trainer(tiny("training.encoder_lr_scale=0"), tmp_path / "run")
    before = {name: p.detach().clone() for name, p in trainer.model.encoder.named_parameters()}
    moving = trainer.model.decoder.head.linear.weight.detach().clone()
    trainer.fit()
    assert all(torch.equal(before[name], p) for name, p in trainer.model.encoder.named_parameters())
    assert not torch.equal(moving, trainer.model.decoder.head.linear.weight)


def test_events_reach_plugins_in_order(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    seen: list[str] = []

    class Listener:
        @hookimpl
        def spheregen_train_start(self, trainer: Trainer) -> None:
            seen.append("start")

        @hookimpl
        def spheregen_metrics(self, trainer: Trainer, metrics: dict[str, float]) -> None:
            assert metrics["images"] == trainer.images_seen
            seen.append("metrics")

        @hookimpl
        def spheregen_checkpoint_saved(self, trainer: Trainer, path: Path) -> None:
            assert (path / "state.json").is_file()
            seen.append("checkpoint")

        @hookimpl
        def spheregen_samples_saved(self, trainer: Trainer, path: Path) -> None:
            assert path.is_file()
            seen.append("samples")

        @hookimpl
        def spheregen_train_end(self, trainer: Trainer) -> None:
            assert trainer.run.model.is_file()
            seen.append("end")

    listener = Listener()
    registry.register(listener)
    spheregen.train(tiny(), tmp_path / "run")
    registry.unregister(listener)
    assert seen[0] == "start"
    assert seen[-1] == "end"
    assert seen.count("metrics") == 5
    assert seen.count("checkpoint") == 3
    assert seen.count("samples") == 2


def test_tensorboard_writes_its_events(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recipe = tiny("plugins=['spheregen_tensorboard']")
    import spheregen_tensorboard

    try:
        spheregen.train(recipe, tmp_path / "run")
    finally:
        registry.unregister(spheregen_tensorboard)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


# -- every recipe, one step --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos in class folders, and random weights of small networks for perceptual distances."""
    folder = tmp_path_factory.mktemp("stand-ins")
    torch.manual_seed(0)
    for i in range(8):
        (folder / "photos" / f"class{i % 4}").mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (80, 70, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / "photos" / f"class{i % 4}" / f"{i}.png")
    torch.save(torchvision.models.squeezenet1_1().state_dict(), folder / "squeeze.pth")
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "resnet.pth")
    return folder


def reduced(name: str, stand_ins: Path) -> list[str]:
    """Overrides that leave a recipe its patch size, compression, heads and losses, but small networks and images that
    need no download."""
    recipe = Recipe.read(name)
    overrides = [
        *(o for o in TINY if not o.startswith("latent")), "encoder.size=tiny", "decoder.size=tiny",
        "training.images=32", "training.accumulate=2", "training.warmup_images=0", "training.workers=0",
        "sampling.classes=2",
        "training.precision=fp32",  # in bf16 images that are nearly alike have no distance at all
    ]  # fmt: skip
    if recipe.data.component.name != "digits":
        grid = min(recipe.shape.grid, 16 if recipe.image.size <= 32 else 8)
        overrides += [
            "data.use=image-folder", f"data.root={str(stand_ins / 'photos')!r}",
            f"data.image_size={grid * recipe.shape.patch}", f"data.channels={recipe.image.channels}", "data.classes=4",
            f"latent.grid={grid}",
        ]  # fmt: skip
    if recipe.perceptual and recipe.perceptual.component.name == "mean":
        lpips, logits = (part.model_extra for part in recipe.perceptual.options.parts)
        parts = [
            {**lpips, "use": "lpips", "net": "squeeze", "weights": str(stand_ins / "squeeze.pth")},
            {**logits, "use": "timm", "weight": 0.1, "model": "test_resnet", "weights": str(stand_ins / "resnet.pth")},
        ]
        overrides.append(f"perceptual.parts={toml_list(parts)}")
    return overrides


def toml_list(tables: list[dict[str, Any]]) -> str:
    return f"[{', '.join('{' + ', '.join(f'{k} = {json.dumps(v)}' for k, v in t.items()) + '}' for t in tables)}]"


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if not name.startswith("ablations/")])
def test_every_recipe_builds_and_takes_a_step(name: str, stand_ins: Path, tmp_path: Path) -> None:
    with torch.device("meta"):  # at its full size
        model = spheregen.SphereModel.from_recipe(Recipe.read(name))
    assert sum(p.numel() for p in model.parameters()) > 0
    recipe = Recipe.read(name, reduced(name, stand_ins))
    weights = {k: v for k, v in recipe.objective.model_dump().items() if v}
    folder = spheregen.train(recipe, tmp_path)
    line = metrics_of(folder.path)[-1]  # of the second step: the first begins with heads of zeros
    assert line["images"] == 32
    assert line["skipped_steps"] == 0
    assert all(line[term] > 0 for term in weights)
    assert len(list(folder.samples.glob("*.png"))) == 1


# -- loading -----------------------------------------------------------------------------------------------------------


def test_loading_refuses_what_is_missing_damaged_or_does_not_fit(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere: not a run folder: it has no recipe\.toml"):
        spheregen.load(tmp_path / "nowhere")
    weights = run / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(RunError, match=r"model\.safetensors: not a readable safetensors file"):
        spheregen.load(run)
    weights.write_bytes(whole)
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("channels = 4", "channels = 5"))
    with pytest.raises(RunError, match=r"does not fit the recipe: .*expected .* and \d+ more"):
        spheregen.load(run)
    weights.unlink()
    with pytest.raises(RunError, match=r"neither model\.safetensors nor a checkpoint"):
        spheregen.load(run)


def test_no_pickle_is_ever_loaded(run: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (run / "pwned",))

    (run / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RunError):
        spheregen.load(run)
    assert not (run / "pwned").exists()


def test_a_models_plugins_run_only_when_trusted(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    plugin = tmp_path / "traveller.py"
    plugin.write_text(
        "import pathlib, spheregen\n"
        "pathlib.Path(__file__).with_suffix('.ran').touch()\n"
        "class Plain(spheregen.Regularizer, name='traveller'):\n    pass\n"
        "@spheregen.hookimpl\ndef spheregen_components():\n    return [Plain]\n"
    )
    program = (
        "import spheregen, sys\n"
        f"r = spheregen.Recipe.read('digits', {[*TINY, 'regularizer.use=traveller', f'plugins=[{str(plugin)!r}]']!r})\n"
        f"spheregen.train(r, {str(tmp_path / 'run')!r}); spheregen.load({str(tmp_path / 'run')!r})"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=ENVIRONMENT)
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "run", moved)
    plugin.unlink()
    with pytest.raises(RunError, match=r"needs the plugins plugins/traveller\.py, which are code.*trust_plugins=True"):
        spheregen.load(moved)
    assert not list(moved.rglob("*.ran"))
    assert spheregen.load(moved, trust_plugins=True).recipe is not None
    assert list(moved.rglob("*.ran"))


def test_a_run_under_way_can_be_sampled(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    spheregen.train(tiny(), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.model.unlink()
    model = spheregen.load(folder.path)
    saved = load_file(folder.checkpoints()[0] / "ema.safetensors")
    assert same({f"ema.{name}": tensor for name, tensor in model.state_dict().items()}, saved)
    assert model.class_names == [str(digit) for digit in range(10)]
