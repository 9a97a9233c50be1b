"""Training on several processes: replicas and shards learn what one process learns, and take up each other's runs.

Starting processes takes longer than what they compute here, so that all trainings on two are one launch, and all on
four another.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, scramble, state_of
from safetensors.torch import load_file
from test_training import ENVIRONMENT, HERE, StopAt, first_gradients, metrics_of, same

import spheregen
from spheregen import Recipe, Trainer, registry
from spheregen.checkpoint import RunFolder

Overrides = tuple[str, ...]
# Statistics over the whole batch, flips, and more blocks than one to a network.
FULL: Overrides = ("regularizer.use=batchnorm", "training.flip=0.5", "encoder.depth=2", "noise.wide_probability=0.5")
GRADIENTS: dict[str, Overrides] = {
    "plain": ("training.clip=1e9",),
    "full": (*FULL, "training.clip=1e9", "training.accumulate=2"),
    "swd": ("regularizer.use=swd", "regularizer.cache=8", "training.clip=1e9"),
    "frozen": ("training.encoder_lr_scale=0", "training.clip=1e9"),
    "recomputed": ("training.clip=1e9", "training.activation_checkpointing=true"),
}
CPU = {
    **ENVIRONMENT,
    "ACCELERATE_USE_CPU": "true",
    "PYTHONPATH": os.pathsep.join(sys.path),
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # for restarts; see docs/scaling.md
}


def torchrun(*words: str | Path, processes: int) -> subprocess.CompletedProcess[str]:
    # accelerate's own launcher wants mpirun for processors; torchrun, which it uses for GPUs, does without.
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
         *map(str, words)], capture_output=True, text=True, env=CPU,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def tiny_recipe(*overrides: str) -> Recipe:
    return Recipe.read("digits", [*TINY, *overrides])


def alone(run: Path, *overrides: str, stop: int | None = None) -> None:
    """Train on this one process, which may be stopped after a step."""
    hook = StopAt(stop or -1)
    registry.register(hook)
    trainer = Trainer(tiny_recipe(*overrides), run)
    scramble(trainer.model)
    assert trainer.fit() == (stop is None)
    registry.unregister(hook)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs on one, two and four processes, and of runs that changed between them."""
    folder = tmp_path_factory.mktemp("processes")
    fsdp = "training.strategy=fsdp"

    def launch(processes: int, *jobs: dict[str, Any]) -> None:
        more = [
            {"run": f"{name}-{strategy}-{processes}", "overrides": [*overrides, f"training.strategy={strategy}"],
             "gradients": True}
            for name, overrides in GRADIENTS.items() for strategy in ("ddp", "fsdp")
            if processes == 2 or name == "full"
        ]  # fmt: skip
        whole = [
            {"run": f"{strategy}-{processes}", "overrides": [*FULL, f"training.strategy={strategy}"]}
            for strategy in ("ddp", "fsdp")
        ]
        listed = [{**job, "run": str(folder / job["run"])} for job in (*jobs, *whole, *more)]
        (folder / "jobs.json").write_text(json.dumps(listed))
        torchrun(HERE / "many_processes.py", folder / "jobs.json", processes=processes)

    alone(folder / "alone", *FULL)
    alone(folder / "changing", *FULL, stop=4)
    launch(
        2,
        # With several processes, all hear the wish to stop a step later.
        {"run": "changing", "overrides": [*FULL, fsdp], "stop": 5},
        {"run": "sharded", "overrides": [*FULL, fsdp], "stop": 3},
        {"run": "bf16-ddp", "overrides": [*FULL, "training.precision=bf16", "training.images=64"]},
        {"run": "bf16-fsdp", "overrides": [*FULL, "training.precision=bf16", "training.images=64", fsdp]},
    )
    assert [path.name for path in RunFolder(folder / "changing").checkpoints()] == ["step-00000006", "step-00000004"]
    alone(folder / "changing", *FULL, stop=8)
    launch(
        4,
        {"run": "changing", "overrides": [*FULL]},
        {"run": "sharded", "overrides": [*FULL, fsdp, "training.sample_images=64"]},
    )
    return folder


@pytest.mark.parametrize(
    ("name", "strategy", "processes"),
    [(name, s, 2) for name in GRADIENTS for s in ("ddp", "fsdp")] + [("full", s, 4) for s in ("ddp", "fsdp")],
)
def test_processes_make_the_gradient_of_one(
    runs: Path, tmp_path: Path, name: str, strategy: str, processes: int
) -> None:
    """Radii stratified over all, statistics over all, the same noise for the same image."""
    expected = first_gradients(Trainer(tiny_recipe(*GRADIENTS[name]), tmp_path / "alone"))
    if "training.accumulate=2" in GRADIENTS[name]:
        # Statistics are those of a pass on all processes, as they are of a pass on one.
        assert all(gradient.isfinite().all() for gradient in expected.values())
    found = load_file(runs / f"{name}-{strategy}-{processes}" / "gradients.safetensors")
    assert found.keys() == expected.keys()
    assert len(expected) > 20
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, atol=5e-6, rtol=1e-3)


def alike(one: Path, other: Path) -> None:
    """Two runs have the same loss curve and weights within float error."""
    ours, theirs = metrics_of(one), metrics_of(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, same_line in zip(ours, theirs, strict=True):
        for term in ("loss", "reconstruction_l1", "consistency_l1", "latent_consistency", "gradient_norm", "lr"):
            assert same_line[term] == pytest.approx(line[term], rel=1e-5, abs=1e-6), (line["step"], term)
        assert same_line["skipped_steps"] == 0
    expected, found = state_of(one), state_of(other)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("other", ["ddp-2", "fsdp-2", "ddp-4", "fsdp-4"])
def test_processes_learn_what_one_learns(runs: Path, other: str) -> None:
    alike(runs / "alone", runs / other)
    assert sorted(path.name for path in (runs / other / "samples").iterdir()) == [
        "images-000000096.png", "images-000000160.png",
    ]  # fmt: skip
    assert spheregen.load(runs / other).class_names == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("other", ["changing", "sharded"])
def test_a_run_goes_on_with_other_processes_and_another_strategy(runs: Path, other: str) -> None:
    """changing: one process, two with shards, one, four with replicas. sharded: two with shards, four with shards."""
    alike(runs / "alone", runs / other)


def test_shards_compute_in_bf16_as_replicas_do(runs: Path) -> None:
    replicas, shards = (metrics_of(runs / f"bf16-{strategy}") for strategy in ("ddp", "fsdp"))
    assert [line["loss"] for line in shards] == pytest.approx([line["loss"] for line in replicas], rel=1e-2)


def test_a_sharded_checkpoint_is_safetensors_and_can_be_sampled(runs: Path, tmp_path: Path) -> None:
    folder = RunFolder(runs / "fsdp-2")
    newest = folder.checkpoints()[0]
    names = {path.name for path in newest.iterdir()}
    assert {f"{part}-{i}-of-2.safetensors" for part in ("model", "ema", "optimizer") for i in (1, 2)} < names
    assert all(name.endswith((".safetensors", ".json")) for name in names)  # no pickle
    under_way = tmp_path / "under-way"
    under_way.mkdir()
    (under_way / "recipe.toml").write_bytes(folder.recipe.read_bytes())
    (under_way / "checkpoints").symlink_to(runs / "fsdp-2" / "checkpoints")
    model = spheregen.load(under_way)
    assert same(dict(model.state_dict()), state_of(folder.path))  # the last checkpoint has the final weights
    (under_way / "checkpoints").unlink()
    (under_way / "checkpoints" / newest.name).mkdir(parents=True)
    for path in newest.iterdir():
        if path.name != "ema-2-of-2.safetensors":
            (under_way / "checkpoints" / newest.name / path.name).write_bytes(path.read_bytes())
    with pytest.raises(
        spheregen.RunError, match=r"step-00000010: not a readable checkpoint: ema-2-of-2\.safetensors is missing"
    ):
        spheregen.load(under_way)


@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_a_sharded_checkpoint_that_is_damaged_is_passed_over(runs: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(runs / "fsdp-2", tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.model.unlink()
    file = folder.checkpoints()[0] / "optimizer-2-of-2.safetensors"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        file.unlink()
    trainer = Trainer(tiny_recipe(*FULL), folder.path)
    assert trainer.fit()
    assert trainer.notes[0].startswith("passed over a damaged checkpoint, step-00000010: ")
    alike(runs / "alone", folder.path)


def test_a_killed_process_is_started_again_and_training_goes_on(tmp_path: Path) -> None:
    """torchrun's elasticity: the main process is killed after its first checkpoints."""
    plugin = tmp_path / "fate.py"
    plugin.write_text(
        "import os, pathlib, signal, spheregen\n"
        "killed = pathlib.Path(__file__).with_name('killed')\n"
        "@spheregen.hookimpl\n"
        "def spheregen_step_end(trainer):\n"
        "    if trainer.step == 7 and not killed.exists():\n"
        "        killed.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    sets = [f"--set={setting}" for setting in (*TINY, *FULL, f"plugins=[{str(plugin)!r}]")]
    done = torchrun("--max-restarts=1", "-m", "--", "spheregen", "train", "digits", "--run", tmp_path / "run", *sets,
                    processes=2)  # fmt: skip
    assert (tmp_path / "killed").exists()
    assert "resumed at 64 images" in done.stdout
    undisturbed = tmp_path / "undisturbed"
    torchrun("-m", "--", "spheregen", "train", "digits", "--run", undisturbed, *sets, processes=2)
    assert same(state_of(tmp_path / "run"), state_of(undisturbed))
    assert metrics_of(tmp_path / "run")[-1]["loss"] == metrics_of(undisturbed)[-1]["loss"]


def test_what_one_process_ignores(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    trainer = Trainer(tiny("training.strategy=fsdp"), tmp_path / "run")
    assert not trainer.sharded
