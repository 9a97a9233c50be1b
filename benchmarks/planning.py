"""What `spheregen plan` says of a training step, beside what a step on this machine takes.

    python benchmarks/planning.py [CASE …]

Memory: the plan's weights, gradients, optimizer state, moving average, perceptual networks and activations, against the
height of the process's resident memory over two steps, less what it held before the networks were made; glibc is told
to give freed tensors back at once, where it would else keep up to a GiB of them for later. FLOPs: of the step on
tensors without values, against those counted while a real one runs. Each memory figure comes from a process of its own.
Ends with status 1 where one is off by more than 15%.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass

from spheregen import Recipe
from spheregen.benchmark import peak_memory, trainer_for
from spheregen.flops import count_flops
from spheregen.loader import training_batches
from spheregen.planning import fake_objective, measure, parameters

TOLERANCE = 0.15
CIFAR = ["perceptual.parts=[{use='timm', model='tf_efficientnet_lite0', weights='package'}]"]
SMALL = ["latent.grid=8", *(f"{n}.{s}" for n in ("encoder", "decoder") for s in ("size='small'", "depth=8"))]


@dataclass
class Case:
    recipe: str
    sets: list[str]
    batch: int
    bf16: bool
    checkpointing: bool


CASES = {
    "fashion": Case("fashion_mnist", [], 256, False, False),
    "small": Case("digits", SMALL, 64, False, False),
    "small, bf16": Case("digits", SMALL, 64, True, False),
    "small, recomputed": Case("digits", SMALL, 64, False, True),
    "base": Case("cifar10_b", CIFAR, 4, False, False),
    "base, recomputed, bf16": Case("cifar10_b", CIFAR, 4, True, True),
}


def main() -> None:
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(64 * 1024)  # of the processes that measure memory
    names = sys.argv[1:] or list(CASES)
    print(f"{'case':26}{'batch':>6}{'plan MiB':>10}{'here MiB':>10}{'':>7}{'plan GFLOP':>12}{'here GFLOP':>12}")
    worst = 0.0
    for name in names:
        case = CASES[name]
        settings = [f"training.batch_size={case.batch}", f"training.precision='{'bf16' if case.bf16 else 'fp32'}'",
                    f"training.activation_checkpointing={str(case.checkpointing).lower()}"]  # fmt: skip
        recipe = Recipe.read(case.recipe, [*case.sets, *settings])
        planned, flops = plan_of(recipe, case)
        measured, counted = peak_memory(recipe), flops_here(recipe)
        if measured is None:
            raise SystemExit(f"{name}: too little memory here for a batch of {case.batch}")
        memory_off, flops_off = planned / measured - 1, flops / counted - 1
        worst = max(worst, abs(memory_off), abs(flops_off))
        print(f"{name:26}{case.batch:6}{planned / 2**20:10.0f}{measured / 2**20:10.0f}{memory_off:+7.0%}"
              f"{flops / 1e9:12.1f}{counted / 1e9:12.1f}", flush=True)  # fmt: skip
    sys.exit(worst > TOLERANCE)


def plan_of(recipe: Recipe, case: Case) -> tuple[float, int]:
    """Bytes and FLOPs of a step."""
    objective, mode = fake_objective(recipe, case.checkpointing)
    step = measure(objective, mode, case.batch, case.bf16, fused=False)
    counts = parameters(objective)
    whole = counts["encoder"] + counts["decoder"]
    kept = 4 * whole * (2 if recipe.training.ema else 1) + 4 * counts["perceptual"]
    return kept + 12 * counts["trained"] + step.activations, step.flops


def flops_here(recipe: Recipe) -> int:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)  # cases differ in precision, which it would hold on to
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(recipe, folder)
        batches = training_batches(trainer.source, 0, trainer.slices, 0, 0, False)
        return count_flops(lambda: trainer._train_step(batches))


if __name__ == "__main__":
    main()
