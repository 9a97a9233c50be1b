"""Plans: what is counted without being built."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from conftest import TINY

from spheregen import Recipe, SpheregenError, SphereModel, cli
from spheregen.flops import count_flops
from spheregen.live_memory import LiveMemory
from spheregen.planning import DEVICES, fake_objective, gradients_dropped, measure_step, parameters, plan
from spheregen.training import Trainer


def test_flops_are_those_of_a_real_step(tiny: Callable[..., Recipe], tmp_path: object) -> None:
    from spheregen.loader import training_batches

    recipe = tiny()
    trainer = Trainer(recipe, str(tmp_path))
    batches = training_batches(trainer.source, 0, trainer.slices, 0, 0, False)
    real = count_flops(lambda: trainer._train_step(batches))
    assert measure_step(recipe, 16, False, False).flops == pytest.approx(real, rel=0.01)


def test_activations_grow_with_images_and_shrink_with_checkpointing(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("encoder.depth=3", "decoder.depth=3", "encoder.width=64", "decoder.width=64")
    one, two, four = (measure_step(recipe, n, False, False) for n in (64, 128, 256))
    assert four.activations - two.activations == pytest.approx(2 * (two.activations - one.activations), rel=0.01)
    assert four.flops == pytest.approx(4 * one.flops, rel=0.05)
    less = measure_step(recipe, 256, False, True)
    assert less.activations < 0.6 * four.activations
    assert 1.1 * four.flops < less.flops < 1.4 * four.flops
    # bf16 keeps the weights' casts as well, however few the images.
    half = [measure_step(recipe, n, True, False).activations for n in (128, 256)]
    assert half[1] - half[0] < 0.8 * (four.activations - two.activations)


def test_live_memory_is_what_lives() -> None:
    with LiveMemory() as memory:
        a = torch.ones(1000)
        b = a * 2
        assert memory.live == memory.peak == 8000
        c = b.view(10, 100)[:5]  # a view counts once, and keeps the whole
        del b
        assert memory.live == 8000
        a.add_(1)
        del c
        assert (memory.live, memory.peak) == (4000, 8000)
    weight = torch.nn.Parameter(torch.ones(1000))
    with LiveMemory() as memory:
        loss = (weight * 2).sin().exp().sum()  # sin keeps its input, exp its output; the gradient comes on top
        kept = memory.live
        loss.backward()
        del loss
    assert kept == 2 * 4000 + 4
    assert memory.live == 4000
    assert memory.peak > 3 * 4000


def test_activations_are_those_that_a_real_step_holds(tiny: Callable[..., Recipe]) -> None:
    """The same tensors, counted while a real step runs."""
    from spheregen.loader import StepDraws
    from spheregen.objective import Objective

    recipe = tiny()
    model = SphereModel.from_recipe(recipe).train()
    objective = Objective(model, recipe.conditioner.build(), recipe.objective)
    draws = StepDraws.of(0, 0, 8, model.noise).take(slice(0, 8), model.shape, torch.device("cpu"))
    x = torch.rand(8, 1, 8, 8)
    with gradients_dropped(objective), LiveMemory() as memory:
        objective(x, torch.zeros(8, dtype=torch.int64), draws)[0].backward()
    assert measure_step(recipe, 8, False, False, fused=False).activations == pytest.approx(memory.peak, rel=0.05)


def test_parameters_are_counted_without_memory() -> None:
    counts = parameters(fake_objective(Recipe.read("digits"))[0])
    model = SphereModel.from_recipe(Recipe.read("digits"))
    assert counts["encoder"] == sum(p.numel() for p in model.encoder.parameters())
    assert counts["trained"] == sum(p.numel() for p in model.parameters())
    assert counts["perceptual"] == 0
    frozen = parameters(fake_objective(Recipe.read("digits", ["training.encoder_lr_scale=0"]))[0])
    assert frozen["trained"] == frozen["decoder"]


def test_a_plan_adds_up(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("training.images=1000000", "training.batch_size=64")
    found = plan(recipe, device="a100", count=4, utilisation=0.5)
    total = found["parameters"]["trained"]
    plain, sharded = (next(v for v in found["variants"] if v["sharded"] is s and not v["checkpointing"])
                      for s in (False, True))  # fmt: skip
    assert plain["memory"]["weights"] == plain["memory"]["gradients"] == 4 * total
    assert plain["memory"]["optimizer"] == 8 * total
    assert sharded["memory"]["optimizer"] == 2 * total
    assert plain["total"] == sum(plain["memory"].values())
    assert found["batch_per_device"] == 16
    seconds = 1e6 * found["flops_per_image"] / (4 * DEVICES["a100"].flops * 0.5)
    assert found["days"] == pytest.approx(seconds / 86400)
    # The largest batch fits, and one image more a device does not.
    for more, fits in ((0, True), (1, False)):
        batch = 4 * (plain["largest_batch"] + more)
        changed = tiny("training.images=1000000000", f"training.batch_size={batch}")
        assert plan(changed, device="a100", count=4)["variants"][0]["fits"] is fits


def test_unknown_devices_are_refused_and_the_command_prints(
    capsys: pytest.CaptureFixture[str], tiny: Callable[..., Recipe]
) -> None:
    with pytest.raises(SpheregenError, match=r"--device h10: did you mean 'h100'\?"):
        plan(tiny(), device="h10")
    sets = [word for setting in TINY for word in ("--set", setting)]
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "digits", "--count", "8", *sets])
    out = " ".join(capsys.readouterr().out.split())
    assert not stop.value.code
    for word in ("8 × h100", "0.1M parameters", "plain sharded recomputed both", "moving average", "most that fit"):
        assert word in out
    with pytest.raises(SystemExit):
        cli.main(["plan", "digits", "--json", *sets])
    assert json.loads(capsys.readouterr().out)["count"] == 1
