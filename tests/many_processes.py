"""Run by test_processes under torchrun: trainings one after another on the same processes, as a JSON file lists them.

They begin with random weights in place of zeros, to which batch statistics would be ill-conditioned.
Each is {"run": folder, "overrides": [...]} and may have "stop": n, which the main process alone wishes at step n, and
"gradients": true, which only takes the first step's gradients and puts them into the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from conftest import TINY, scramble
from safetensors.torch import save_file
from test_training import StopAt, first_gradients

from spheregen import Recipe, Trainer, registry


def do(job: dict[str, Any]) -> None:
    trainer = Trainer(Recipe.read("digits", [*TINY, *job["overrides"]]), job["run"])
    if job.get("gradients"):
        gradients = first_gradients(trainer)
        if trainer.is_main:
            Path(job["run"]).mkdir()
            save_file(gradients, Path(job["run"]) / "gradients.safetensors")
        return
    scramble(trainer.model)
    hook = StopAt(job.get("stop", -1))
    registry.register(hook)
    finished = trainer.fit()
    registry.unregister(hook)
    assert finished == ("stop" not in job)
    trainer.accelerator.wait_for_everyone()


for job in json.loads(Path(sys.argv[1]).read_text()):
    do(job)
    AcceleratorState._reset_state()  # it remembers the precision
