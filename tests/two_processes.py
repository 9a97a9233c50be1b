"""Run by test_training under `accelerate launch`: writes the gradients of the first step of a tiny recipe."""

from __future__ import annotations

import sys

from conftest import TINY
from safetensors.torch import save_file
from test_training import first_gradients

from spheregen import Recipe, Trainer

out, *overrides = sys.argv[1:]
trainer = Trainer(Recipe.read("digits", [*TINY, *overrides]), out)
assert trainer.slices.processes == 2
gradients = first_gradients(trainer)
if trainer.is_main:
    save_file(gradients, f"{out}.safetensors")
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
