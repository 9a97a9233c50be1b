"""Training (Section 2.3 and Appendix D): one loop, on one processor, one GPU or many through `accelerate launch`."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spheregen import optimization, pictures, processes, saving
from spheregen.checkpoint import CHECKPOINTS, RunFolder, replacing
from spheregen.errors import RunError, SpheregenError
from spheregen.generation import sample
from spheregen.guard import StepGuard, statistics_of
from spheregen.interfaces import ImageSource
from spheregen.loader import Slices, StepDraws, to_network, training_batches
from spheregen.model import SphereModel
from spheregen.objective import Objective
from spheregen.recipe import Recipe
from spheregen.registry import Registry, registry
from spheregen.stopping import Agreement, stopping_on_signals


class Trainer:
    """A recipe being trained into a run folder.

    Running the same recipe into the same folder again takes up its newest good checkpoint; on the CPU the result is
    then, bit for bit, that of a run that was never interrupted. Hooks see this object: `step`, `images_seen`,
    `total_steps`, `run`, `recipe`, `model` and `ema` are theirs to read; setting `stop` ends the run after this step
    or, on several processes, the next.

    source: images to train on in place of the recipe's own, of the same sizes.
    """

    def __init__(
        self, recipe: Recipe, run: str | Path, registry: Registry = registry, source: ImageSource | None = None
    ) -> None:
        self.recipe = recipe
        self.run = RunFolder(run)
        self.hooks = registry.manager.hook
        self.notes: list[str] = []
        self.stop = False
        options = recipe.training
        self.dtype = torch.bfloat16 if _bf16(options.precision) else torch.float32  # of the forward pass
        # accelerate has one precision a process, where recipes that are trained one after the other may differ.
        self.accelerator = Accelerator(mixed_precision="no")
        device = self.accelerator.device
        self.slices = Slices(
            options.batch_size, options.accumulate, self.accelerator.num_processes, self.accelerator.process_index
        )

        self.source: ImageSource = source or recipe.data.build()
        self.total_steps = options.total_steps(len(self.source))
        torch.manual_seed(recipe.seed)  # weights are made on the CPU, so that every device starts from the same
        self.model = SphereModel.from_recipe(recipe, self.source.class_names)
        perceptual = recipe.perceptual.build(recipe.image).to(device) if recipe.perceptual else None
        self.objective = Objective(self.model, recipe.conditioner.build(), recipe.objective, perceptual)
        self.sharded = options.strategy == "fsdp" and self.slices.processes > 1
        if not self.sharded:
            self.model.to(device)
        self.ema = ModelEmaV3(self.model, options.ema, use_warmup=True) if options.ema else None
        prepare_blocks(self.model, options.compile, options.activation_checkpointing)  # after the average was copied
        if self.sharded:
            processes.shard(self.accelerator, self.objective, self.ema.module if self.ema else None, self.dtype)
        self.optimizer = optimization.adamw(self.model, options)
        self.schedule = optimization.cosine(self.optimizer, options, len(self.source))
        self.wrapped = self.objective if self.sharded else self.accelerator.prepare_model(self.objective)
        self.guard = StepGuard(options.spike_factor, options.spike_window, device, statistics_of(self.model))
        self.writer = saving.CheckpointWriter(
            self.run.path / CHECKPOINTS, device, self.slices.processes, self.accelerator.is_main_process
        )
        self.agreement = Agreement(self.slices.processes)
        self.step = self.saved = 0  # steps that this run has seen, and those that its newest checkpoint has
        self.taken = self.skipped = 0  # of them, as last read from the device

    # -- what others ask of it -------------------------------------------------------------------------------------

    @property
    def images_seen(self) -> int:
        return self.step * self.recipe.training.batch_size

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.accelerator.is_main_process

    @property
    def final_model(self) -> SphereModel:
        """The weights that the recipe publishes: the moving average, or the raw ones. Under FSDP they are shards, and
        the model cannot be run."""
        return self.ema.module if self.ema and self.recipe.training.final_weights == "ema" else self.model

    # -- the loop --------------------------------------------------------------------------------------------------

    def fit(self) -> bool:
        """Train to the end, or until `stop` is set. Returns whether the end was reached."""
        if self.is_main:
            self.run.begin(self.recipe)
            self.writer.clear()
        self.accelerator.wait_for_everyone()
        self._resume()
        if self.run.model.is_file():
            if self.step >= self.total_steps:
                return True
            if not self.step:
                raise RunError(f"{self.run.path}: holds a finished model and no checkpoint to go on from; "
                               "name another folder with --run")  # fmt: skip
        self._event("train_start")
        options = self.recipe.training
        with stopping_on_signals(self):
            try:
                self._loop()
                if self.saved != self.step:
                    self.save()
            except SpheregenError:  # too many steps skipped, bad images: what is being written is from before them
                self._saved(self.writer.wait(options.keep))
                raise
            self._saved(self.writer.wait(options.keep))
        if self.step < self.total_steps:
            return False
        final = self._whole(self.final_model)
        self._sample_grid(final)
        if self.is_main:
            self.run.save_model(final, self._about(options.final_weights))
        self.accelerator.wait_for_everyone()
        self._event("train_end")
        return True

    def _loop(self) -> None:
        """Steps, and what is logged, drawn and saved on the way. The host waits for the device only for these."""
        options, device = self.recipe.training, self.accelerator.device
        log_every, sample_every, checkpoint_every = (
            max(1, round(images / options.batch_size))
            for images in (options.log_images, options.sample_images, options.checkpoint_images)
        )
        batches = training_batches(
            self.source, self.recipe.seed, self.slices, self.step, options.workers, device.type == "cuda"
        )
        sums: dict[str, Tensor] = {}
        logged, taken, clock = self.step, self.taken, time.perf_counter()
        stopping = self.agreement.any(self.stop)
        while self.step < self.total_steps and not stopping:
            for name, value in self._train_step(batches).items():
                sums[name] = sums.get(name, 0) + value
            self.step += 1
            self._event("step_end")
            if self.step % log_every == 0 or self.step == self.total_steps:
                self._read_guard()
                self._log(sums, self.taken - taken, self.step - logged, clock)
                sums, logged, taken, clock = {}, self.step, self.taken, time.perf_counter()
            if self.step % sample_every == 0 and self.step < self.total_steps:
                self._sample_grid(self._whole(self.final_model))
            if self.step % checkpoint_every == 0 and self.step < self.total_steps:
                self.save()
            self._saved(self.writer.poll(options.keep))
            stopping = self.agreement.any(self.stop)
        self.agreement.settle()

    def _train_step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """One optimizer step: Eq. 10 on a whole batch, in as many passes as the recipe accumulates."""
        options, accelerator = self.recipe.training, self.accelerator
        device = accelerator.device
        # Nothing in the core draws from the global state; a plugin may, and still resumes to the same numbers.
        torch.manual_seed(self.recipe.seed + self.step * self.slices.processes + self.slices.process)
        draws = StepDraws.of(self.recipe.seed, self.step, options.batch_size, self.model.noise)
        metrics: dict[str, Tensor] = {}
        self.schedule.step_update(self.step)
        self.wrapped.train()
        for part in range(options.accumulate):
            images, labels = self._next(batches)
            rows = self.slices.of(part)
            x = to_network(images, draws.flip[rows] < options.flip, device)
            # Shards are reduced after each pass: whole gradients kept for the next would be what does not fit.
            last = part == options.accumulate - 1
            with nullcontext() if last or self.sharded else accelerator.no_sync(self.wrapped):
                y = labels.to(device, non_blocking=True)
                with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
                    loss, terms = self.wrapped(x, y, draws.take(rows, self.model.shape, device))
                accelerator.backward(loss / options.accumulate)
            for name, term in terms.items():
                metrics[name] = metrics.get(name, 0) + term / options.accumulate
        metrics["gradient_norm"] = processes.clip(self.model.parameters(), options.clip)
        good = self._apply(metrics["gradient_norm"], metrics["loss"])
        return {name: torch.where(good, value, 0) for name, value in metrics.items()}

    @staticmethod
    def _next(batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The next images; a place of its own for the clock of `spheregen bench`."""
        return next(batches)

    def _apply(self, norm: Tensor, loss: Tensor) -> Tensor:
        """Take the step, unless the guard finds that it would do harm. Returns whether it was taken, a bool scalar on
        the device: a skipped step is one that changes nothing, and the host does not ask."""
        good = self.guard.judge(norm, loss)
        self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]  # what fused optimizers look at
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            processes.update_average(self.ema, self.model, self.step + 1)
        return good

    # -- what it leaves behind -------------------------------------------------------------------------------------

    def _log(self, sums: Mapping[str, Tensor], taken: int, steps: int, clock: float) -> None:
        """A line of metrics: means over the steps that were taken of the last `steps`, which began at `clock`."""
        names = sorted(sums)
        # Without a step taken, means are NaN.
        means = torch.stack([sums[name].float() for name in names]) / (taken or float("nan"))
        if self.slices.processes > 1:
            means = self.accelerator.reduce(means, "mean")
        values = dict(zip(names, means.tolist(), strict=True))
        seconds = time.perf_counter() - clock
        images = self.images_seen
        metrics = {
            "step": self.step,
            "images": images,
            **values,
            "lr": self.optimizer.param_groups[-1]["lr"],
            "skipped_steps": self.skipped,
            "skipped_images": self.source.skipped,
            "images_per_second": steps * self.recipe.training.batch_size / seconds,
        }
        if self.accelerator.device.type == "cuda":
            metrics["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if self.is_main:
            with open(self.run.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        self._event("metrics", metrics=metrics)

    def _read_guard(self) -> None:
        """Bring the counts of steps to the host. Raises RunError after too many skipped in a row."""
        self.taken, self.skipped = self.guard.read(
            self.recipe.training.max_skipped, f"{self.run.path}: step {self.step}"
        )

    def _sample_grid(self, model: SphereModel) -> None:
        """A grid with fixed noise, so that grids of one run can be compared; its random state is its own."""
        if not self.is_main:
            return
        path = self.run.samples / f"images-{self.images_seen:09d}.png"
        grid = pictures.class_grid(model, sample)
        with replacing(path) as aside:
            grid.save(aside, format="PNG")
        self._event("samples_saved", path=path)

    def _whole(self, model: SphereModel) -> SphereModel:
        """On the main process, a model that can be run and saved: itself or, of shards, a copy put together."""
        if not self.sharded:
            return model
        state = processes.whole_state(model)
        if not self.is_main:
            return model
        with torch.random.fork_rng(devices=[]):
            whole = SphereModel.from_recipe(self.recipe, self.model.class_names)
        whole.load_state_dict(state)
        return whole.to(self.accelerator.device).eval()

    def save(self) -> None:
        """Begin to write a checkpoint of this step; it is written while training goes on."""
        self._saved(self.writer.wait(self.recipe.training.keep))
        self._read_guard()
        state = {"images": self.images_seen, "seed": self.recipe.seed, "class_names": self.model.class_names}
        self.writer.begin(self.step, self._parts(), state)
        self.saved = self.step

    def _saved(self, path: Path | None) -> None:
        if path is not None:
            self._event("checkpoint_saved", path=path)

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        """All tensors of a checkpoint: those in use, to be saved or filled."""
        parts = {"model": self.model.state_dict()}
        if self.ema:
            parts["ema"] = self.ema.module.state_dict()
        parts["optimizer"] = optimization.state_tensors(self.optimizer, self.model)
        parts["guard"] = self.guard.state()
        return parts

    def _about(self, weights: str) -> dict[str, str]:
        """What a weights file tells of itself in its header."""
        names = json.dumps(self.model.class_names)
        return {"images": str(self.images_seen), "weights": weights, "class_names": names}

    def _resume(self) -> None:
        """Take up the newest checkpoint that can be read; tell of those that cannot."""
        parts = self._parts()
        found: list[Any] = [None, None]
        if self.is_main:
            for path in self.run.checkpoints():
                try:
                    found = [path.name, saving.check(path, parts)["step"]]
                    break
                except (RunError, KeyError) as error:
                    self.notes.append(f"passed over a damaged checkpoint, {path.name}: {error}")
        name, step = broadcast_object_list(found)  # files may look different from another machine for a while
        if name is not None:
            path = self.run.path / CHECKPOINTS / name
            try:
                saving.read_into(path, parts)
            except Exception as error:
                raise RunError(f"{path}: could not be read on every process ({error}); a run folder must be one that "
                               "all machines share") from error  # fmt: skip
            self.step = self.saved = step
            self.guard.settle()
        self._read_guard()
        if self.is_main and self.run.metrics.is_file():
            self.run.trim_metrics(self.step)

    def _event(self, name: str, **details: Any) -> None:
        if self.is_main:
            getattr(self.hooks, f"spheregen_{name}")(trainer=self, **details)


def train(recipe: Recipe, run: str | Path | None = None) -> RunFolder:
    """Train a recipe to its end; runs/<name> is its folder where none is given. Returns the run folder."""
    trainer = Trainer(recipe, run or Path("runs") / recipe.name)
    trainer.fit()
    return trainer.run


# -- parts -------------------------------------------------------------------------------------------------------------


def prepare_blocks(model: SphereModel, compiled: bool, checkpointed: bool) -> None:
    """Compile the repeated blocks of both networks, or have them compute their activations again, in place."""
    for block in (*model.encoder.repeated_blocks(), *model.decoder.repeated_blocks()):
        if checkpointed:
            again = functools.partial(checkpoint, block.forward, use_reentrant=False)
            block.forward = again  # type: ignore[method-assign]
        if compiled:
            block.compile()


def _bf16(precision: str) -> bool:
    """Whether to autocast to bf16: where asked for, or where the device multiplies bf16 matrices natively."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


__all__ = ["SpheregenError", "Trainer", "train"]
