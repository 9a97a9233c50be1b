"""Steps that would harm a model are skipped, counted, and end training where there are too many."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import state_of
from safetensors.torch import load_file
from test_training import StopAt, metrics_of, same
from torch import nn

from spheregen import Recipe, RunError, SpheregenError, Trainer, registry
from spheregen.guard import StepGuard, statistics_of

CPU = torch.device("cpu")


def judge(guard: StepGuard, norm: float, loss: float = 1.0) -> bool:
    return bool(guard.judge(torch.tensor(norm), torch.tensor(loss)))


def test_a_spike_is_above_the_factor_times_the_median_of_the_window() -> None:
    guard = StepGuard(factor=3, window=5, device=CPU)
    assert all(judge(guard, norm) for norm in (1, 100, 2, 3, 2))  # nothing is usual yet
    assert judge(guard, 6.0)  # not above 3 × 2; takes the place of 1, so that the median is 3
    assert not judge(guard, 9.1)
    assert judge(guard, 9.0)
    assert not judge(guard, 1.0, loss=3.1)
    assert judge(guard, 1.0, loss=3.0)
    assert guard.read(limit=1, where="") == (8, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_always_skipped_and_never_usual(bad: float) -> None:
    guard = StepGuard(factor=0, window=2, device=CPU)
    assert judge(guard, 1e9)
    assert not judge(guard, bad)
    assert not judge(guard, 1.0, loss=bad)
    assert judge(guard, 1.0)
    assert guard.recent.isfinite().all()
    assert guard.read(limit=2, where="") == (2, 2)


def test_a_median_below_zero_judges_nothing() -> None:
    guard = StepGuard(factor=2, window=3, device=CPU)
    assert all(judge(guard, 1.0, loss=loss) for loss in (-1.0, -1.0, -1.0, 5.0))


def test_too_many_in_a_row_are_told_with_what_was_usual() -> None:
    guard = StepGuard(factor=10, window=2, device=CPU)
    for norm in (1.0, 2.0, 50.0, 50.0, 1.0, 60.0, 70.0, 80.0):
        judge(guard, norm)
    assert guard.read(limit=3, where="runs/x: step 8") == (3, 5)
    told = (
        r"^runs/x: step 8: 3 steps in a row were skipped, the last with gradient norm 80 and loss 1 "
        r"\(usual: 1 and 1\); .*training\.spike_factor$"
    )
    with pytest.raises(RunError, match=told):
        guard.read(limit=2, where="runs/x: step 8")


def test_statistics_of_a_skipped_step_are_put_back() -> None:
    norm = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    buffers = list(statistics_of(norm))
    assert len(buffers) == 3
    guard = StepGuard(factor=0, window=2, device=CPU, buffers=buffers)
    norm(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    assert judge(guard, 1.0)
    before = [buffer.clone() for buffer in buffers]
    norm(torch.full((4, 2), math.nan))
    assert norm[1].running_mean.isnan().all()  # type: ignore[union-attr, operator]
    assert not judge(guard, math.nan)
    assert all(torch.equal(a, b) for a, b in zip(before, buffers, strict=True))


class Poisoned(Trainer):
    """A trainer whose gradients are multiplied at some steps, as an explosion would."""

    poison: dict[int, float]

    def __init__(self, recipe: Recipe, run: Path, poison: dict[int, float]) -> None:
        super().__init__(recipe, run)
        self.poison = poison
        for parameter in self.model.decoder.parameters():
            parameter.register_hook(lambda gradient: gradient * self.poison.get(self.step, 1.0))


@pytest.mark.parametrize("regularizer", ["none", "batchnorm"])
def test_training_skips_spikes_and_nan_and_resumes_to_the_same(
    tiny: Callable[..., Recipe], tmp_path: Path, regularizer: str
) -> None:
    recipe = tiny("training.images=320", "training.spike_factor=50", "training.spike_window=3",
                  f"regularizer.use={regularizer}", "training.encoder_lr_scale=0")  # fmt: skip
    poison = {4: math.nan, 9: 1e6, 10: 1e6, 14: math.inf}
    whole = Poisoned(recipe, tmp_path / "whole", poison)
    assert whole.fit()
    assert (whole.taken, whole.skipped) == (16, 4)
    lines = metrics_of(whole.run.path)
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 1, 2, 3, 3, 4, 4, 4]
    assert all(math.isfinite(line["loss"]) and line["gradient_norm"] < 1e4 for line in lines)  # means of steps taken
    for path in whole.run.checkpoints():
        for part in ("model", "ema", "optimizer"):
            assert all(tensor.isfinite().all() for tensor in load_file(path / f"{part}.safetensors").values())
    steps = load_file(whole.run.checkpoints()[0] / "optimizer.safetensors")["optimizer.decoder.stem.weight.step"]
    assert steps == 16

    for stop in (8, 10):  # before a spike, whose window is then from the checkpoint, and between two
        hook = StopAt(stop)
        registry.register(hook)
        assert not Poisoned(recipe, tmp_path / "parts", poison).fit()
        registry.unregister(hook)
    assert Poisoned(recipe, tmp_path / "parts", poison).fit()
    assert same(state_of(whole.run.path), state_of(tmp_path / "parts"))
    assert metrics_of(tmp_path / "parts")[-1]["skipped_steps"] == 4


def test_a_skipped_step_changes_no_weight(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    trainer = Poisoned(tiny("training.max_skipped=2"), tmp_path / "run", dict.fromkeys(range(99), math.nan))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    # Counted when metrics are logged: after the fourth step.
    with pytest.raises(RunError, match="run: step 4: 4 steps in a row were skipped, the last with gradient norm nan"):
        trainer.fit()
    assert same(before, dict(trainer.model.state_dict()))
    assert trainer.ema is not None
    assert same(before, dict(trainer.ema.module.state_dict()))
    assert not trainer.run.checkpoints()
    assert math.isnan(metrics_of(trainer.run.path)[0]["loss"])  # no step was taken


def test_training_that_stops_keeps_its_last_checkpoint(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    poison = dict.fromkeys(range(5, 99), math.nan)
    trainer = Poisoned(tiny("training.max_skipped=1"), tmp_path / "run", poison)
    with pytest.raises(RunError, match="steps in a row were skipped"):
        trainer.fit()
    assert [path.name for path in trainer.run.checkpoints()] == ["step-00000004"]
    assert Trainer(tiny("training.max_skipped=2"), tmp_path / "run").fit()  # the cause is gone: it goes on from there


def test_thresholds_do_not_touch_healthy_training(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    healthy = tiny("training.images=480", "training.spike_window=8")
    guarded = Trainer(healthy, tmp_path / "guarded")
    assert guarded.fit()
    assert guarded.skipped == 0
    Trainer(tiny("training.images=480", "training.spike_factor=0"), tmp_path / "free").fit()
    assert same(state_of(tmp_path / "guarded"), state_of(tmp_path / "free"))


def test_a_factor_that_would_skip_half_is_refused(tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(SpheregenError, match=r"spike_factor: 0\.5 would skip half of all steps"):
        tiny("training.spike_factor=0.5")
