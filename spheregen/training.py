"""Training (Section 2.3 and Appendix D): one loop, on one processor, one GPU or many through `accelerate launch`."""

from __future__ import annotations

import functools
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spheregen import pictures
from spheregen.checkpoint import RunFolder, load_weights, replacing
from spheregen.errors import RunError, SpheregenError
from spheregen.generation import sample
from spheregen.interfaces import ImageSource
from spheregen.loader import Slices, StepDraws, to_network, training_batches
from spheregen.model import SphereModel
from spheregen.objective import Objective
from spheregen.recipe import Recipe
from spheregen.registry import Registry, registry


class Trainer:
    """A recipe being trained into a run folder.

    Running the same recipe into the same folder again takes up its newest good checkpoint; on the CPU the result is
    then, bit for bit, that of a run that was never interrupted. Hooks see this object: `step`, `images_seen`,
    `total_steps`, `run`, `recipe`, `model` and `ema` are theirs to read; setting `stop` ends the run after this step.

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
        self.accelerator = Accelerator(mixed_precision="bf16" if _bf16(options.precision) else "no")
        device = self.accelerator.device
        self.slices = Slices(
            options.batch_size, options.accumulate, self.accelerator.num_processes, self.accelerator.process_index
        )

        self.source: ImageSource = source or recipe.data.build()
        self.total_steps = options.total_steps(len(self.source))
        torch.manual_seed(recipe.seed)  # weights are made on the CPU, so that every device starts from the same
        self.model = SphereModel.from_recipe(recipe, self.source.class_names).to(device)
        perceptual = recipe.perceptual.build(recipe.image).to(device) if recipe.perceptual else None
        self.objective = Objective(self.model, recipe.conditioner.build(), recipe.objective, perceptual)

        groups = {"encoder": options.encoder_lr_scale, "decoder": 1.0, "regularizer": 1.0}
        lr = options.lr * options.batch_size / options.lr_batch
        self.optimizer = torch.optim.AdamW(
            [{"params": p, "lr": lr * scale} for n, scale in groups.items() if (p := trainable(self.model, n, scale))],
            betas=options.betas,
            weight_decay=options.weight_decay,
            fused=True,
        )
        warmup = options.warmup_steps(len(self.source))
        self.schedule = CosineLRScheduler(
            self.optimizer, self.total_steps - warmup, lr_min=options.lr_min, warmup_t=warmup, warmup_prefix=True,
            t_in_epochs=False,
        )  # fmt: skip
        self.ema = ModelEmaV3(self.model, options.ema, use_warmup=True) if options.ema else None
        prepare_blocks(self.model, options.compile, options.activation_checkpointing)  # after the average was copied
        self.wrapped = self.accelerator.prepare(self.objective)
        self.step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0

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
        """The weights that the recipe publishes: the moving average, or the raw ones."""
        return self.ema.module if self.ema and self.recipe.training.final_weights == "ema" else self.model

    # -- the loop --------------------------------------------------------------------------------------------------

    def fit(self) -> bool:
        """Train to the end, or until `stop` is set. Returns whether the end was reached."""
        if self.is_main:
            self.run.begin(self.recipe)
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
        log_every, sample_every, checkpoint_every = (
            max(1, round(images / options.batch_size))
            for images in (options.log_images, options.sample_images, options.checkpoint_images)
        )
        batches = training_batches(
            self.source,
            self.recipe.seed,
            self.slices,
            self.step,
            options.workers,
            self.accelerator.device.type == "cuda",
        )
        sums: dict[str, Tensor] = {}
        logged, clock = self.step, time.perf_counter()
        with stopping_on_signals(self):
            while self.step < self.total_steps and not self.stop:
                for name, value in self._train_step(batches).items():
                    sums[name] = sums.get(name, 0) + value
                self.step += 1
                self._event("step_end")
                if self.step % log_every == 0 or self.step == self.total_steps:
                    steps, seconds = self.step - logged, time.perf_counter() - clock
                    self._log({name: value.item() / steps for name, value in sums.items()}, steps, seconds)
                    sums, logged = {}, self.step
                    clock = time.perf_counter()
                if self.step % sample_every == 0 and self.step < self.total_steps:
                    self._sample_grid()
                if self.step % checkpoint_every == 0 and self.step < self.total_steps:
                    self.save()
                self._agree_on_stopping()
        self.save()
        if self.step < self.total_steps:
            return False
        self._sample_grid()
        if self.is_main:
            self.run.save_model(self.final_model, self._about(self.recipe.training.final_weights))
        self._event("train_end")
        return True

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
            last = part == options.accumulate - 1
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                loss, terms = self.wrapped(x, labels.to(device), draws.take(rows, self.model.shape, device))
                accelerator.backward(loss / options.accumulate)
            for name, term in terms.items():
                metrics[name] = metrics.get(name, 0) + term / options.accumulate
        norm = accelerator.clip_grad_norm_(self.model.parameters(), options.clip)
        metrics["gradient_norm"] = norm
        self._apply(norm)
        return metrics

    @staticmethod
    def _next(batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The next images; a place of its own for the clock of `spheregen bench`."""
        return next(batches)

    def _apply(self, norm: Tensor) -> None:
        """Take the step, unless the gradient is not finite: then it is skipped and counted."""
        if not torch.isfinite(norm):
            self.skipped += 1
            self.skipped_in_a_row += 1
            self.optimizer.zero_grad()
            if self.skipped_in_a_row > self.recipe.training.max_skipped:
                raise RunError(
                    f"{self.run.path}: the gradient was not finite {self.skipped_in_a_row} steps in a row (at step "
                    f"{self.step}); lower training.lr or noise.wide_angle, and start from the last checkpoint again"
                )
            return
        self.skipped_in_a_row = 0
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.model, self.step + 1)

    def _agree_on_stopping(self) -> None:
        """All processes stop at one step, or none does."""
        if self.slices.processes > 1:
            if self.stop:
                self.accelerator.set_trigger()
            self.stop = self.accelerator.check_trigger()

    # -- what it leaves behind -------------------------------------------------------------------------------------

    def _log(self, means: Mapping[str, float], steps: int, seconds: float) -> None:
        if self.slices.processes > 1:
            names = sorted(means)
            own = torch.tensor([means[name] for name in names], device=self.accelerator.device)
            means = dict(zip(names, self.accelerator.reduce(own, "mean").tolist(), strict=True))
        images = self.images_seen
        metrics = {
            "step": self.step,
            "images": images,
            **means,
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

    def _sample_grid(self) -> None:
        """A grid with fixed noise, so that grids of one run can be compared; its random state is its own."""
        if not self.is_main:
            return
        path = self.run.samples / f"images-{self.images_seen:09d}.png"
        grid = pictures.class_grid(self.final_model, sample)
        with replacing(path) as aside:
            grid.save(aside, format="PNG")
        self._event("samples_saved", path=path)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        if self.is_main:
            tensors = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
            if self.ema:
                tensors["ema"] = self.ema.module.state_dict()
            state = {"images": self.images_seen, "skipped": self.skipped, "seed": self.recipe.seed}
            abouts = {"model": self._about("raw"), "ema": self._about("ema")}
            path = self.run.save_checkpoint(self.step, tensors, abouts, state, self.recipe.training.keep)
            self._event("checkpoint_saved", path=path)
        self.accelerator.wait_for_everyone()

    def _about(self, weights: str) -> dict[str, str]:
        """What a weights file tells of itself in its header."""
        names = json.dumps(self.model.class_names)
        return {"images": str(self.images_seen), "weights": weights, "class_names": names}

    def _resume(self) -> None:
        """Take up the newest checkpoint that can be read; tell of those that cannot."""
        for path in self.run.checkpoints():
            try:
                tensors, state = self.run.read_checkpoint(path)
                load_weights(self.model, tensors["model"], path)
                if self.ema:
                    load_weights(self.ema.module, tensors["ema"], path)
                load_optimizer(self.optimizer, tensors["optimizer"])
            except (RunError, KeyError) as error:
                self.notes.append(f"passed over a damaged checkpoint, {path.name}: {error}")
                continue
            self.step, self.skipped = state["step"], state["skipped"]
            break
        if self.is_main and self.run.metrics.is_file():
            _trim(self.run.metrics, self.step)

    def _event(self, name: str, **details: Any) -> None:
        if self.is_main:
            getattr(self.hooks, f"spheregen_{name}")(trainer=self, **details)


def train(recipe: Recipe, run: str | Path | None = None) -> RunFolder:
    """Train a recipe to its end; runs/<name> is its folder where none is given. Returns the run folder."""
    trainer = Trainer(recipe, run or Path("runs") / recipe.name)
    trainer.fit()
    return trainer.run


# -- parts -------------------------------------------------------------------------------------------------------------


def trainable(model: nn.Module, part: str, scale: float) -> list[nn.Parameter]:
    """A part's parameters to optimise; a part whose rate is 0 is frozen."""
    parameters = list(model.get_submodule(part).parameters())
    if scale == 0:
        for parameter in parameters:
            parameter.requires_grad_(False)
    return [parameter for parameter in parameters if parameter.requires_grad]


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


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, `{parameter number}.{name}`."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value.clone() for i, entry in state.items() for name, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took out."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _trim(metrics: Path, step: int) -> None:
    """Drop the lines that an interrupted run logged after its last checkpoint: they are about to be made again."""
    lines = metrics.read_text(encoding="utf-8").splitlines()
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):  # the line that a kill cut short
            continue
    if kept != lines:
        with replacing(metrics) as aside:
            aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


@contextmanager
def stopping_on_signals(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after the step under way; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        if trainer.stop:
            raise KeyboardInterrupt
        trainer.stop = True

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


__all__ = ["SpheregenError", "Trainer", "train"]
