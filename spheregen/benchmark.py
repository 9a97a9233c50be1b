"""How fast a recipe trains and samples on this machine, where the time goes, and what share of the machine it uses.

With a baseline, the plain implementation of the paper (benchmarks/baseline.py) does the same work beside it: rounds of
one alternate with rounds of the other, and the ratio is the median over rounds, so that a machine that slows down slows
both.
"""

from __future__ import annotations

import copy
import datetime
import importlib.util
import itertools
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from spheregen.component import ImageSpec
from spheregen.errors import DataError, SpheregenError
from spheregen.flops import count_flops, matmul_peak, synchronize
from spheregen.generation import conditioner_for, network_passes, sample
from spheregen.interfaces import ImageSource
from spheregen.loader import StepDraws, to_network, training_batches
from spheregen.recipe import Recipe
from spheregen.training import Trainer

PARTS = ("data", "encoder", "decoder", "perceptual", "latent consistency", "backward", "optimizer")


class RandomImages(ImageSource):
    """Random images in memory, where a recipe's own cannot be had."""

    def __init__(self, image: ImageSpec, count: int = 1024) -> None:
        super().__init__(None)
        self.image = image
        shape = (count, image.channels, image.size, image.size)
        self.images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    @classmethod
    def describe(cls, options: Any) -> ImageSpec:
        raise NotImplementedError("the images are made for a recipe, not from options")

    @property
    def spec(self) -> ImageSpec:
        return self.image

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index % max(self.image.num_classes, 1)


def trainer_for(recipe: Recipe, folder: str | Path) -> Trainer:
    """A trainer of the recipe, on random images where its own are not there."""
    try:
        return Trainer(recipe, folder)
    except DataError:
        return Trainer(recipe, folder, source=RandomImages(recipe.image))


def benchmark(
    recipe: Recipe,
    *,
    rounds: int = 5,
    steps_a_round: int = 3,
    sampling: Sequence[tuple[int, float]] = ((1, 1.0), (4, 1.0), (4, 1.4)),
    samples: int = 64,
    baseline: bool = False,
    share: bool = False,
    on_progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Measure a recipe. Nothing else should run on the machine.

    sampling: pairs of steps and guidance scale, in the precision that the recipe trains in. baseline: run the plain
    implementation beside it; share: let its losses share their decodings. Rates are images a second, times seconds a
    training step, memory bytes of the process (of the GPU's allocator where there is one), None where there was too
    little of it.
    """
    plain = baseline_module() if baseline else None
    on_progress("memory")  # first, while this process holds no networks of its own
    memory = peak_memory(recipe)
    plain_memory = peak_memory(recipe, plain=True, share=share) if plain else None
    report = _rates(recipe, rounds, steps_a_round, sampling, samples, plain, share, on_progress)
    report["training"]["peak_memory"] = memory
    if plain:
        report["training"]["baseline"]["peak_memory"] = plain_memory
    return report


def _rates(
    recipe: Recipe,
    rounds: int,
    steps_a_round: int,
    sampling: Sequence[tuple[int, float]],
    samples: int,
    plain: ModuleType | None,
    share: bool,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(recipe, folder)
        device = trainer.accelerator.device
        on_progress("matrix products")
        dtypes = {torch.float32, torch.bfloat16, trainer.dtype}
        peaks = {str(dtype).removeprefix("torch."): matmul_peak(device, dtype) for dtype in dtypes}
        precision = str(trainer.dtype).removeprefix("torch.")
        report: dict[str, Any] = {
            "recipe": recipe.name,
            **machine(device),
            "precision": precision,
        }
        report["matmul_peak_flops"] = peaks
        report["compiled"] = recipe.training.compile
        report["batch_size"] = recipe.training.batch_size
        report["images"] = "random" if isinstance(trainer.source, RandomImages) else recipe.data.component.name
        report["training"] = _training(trainer, rounds, steps_a_round, peaks[precision], plain, share, on_progress)
        report["sampling"] = [
            _sampling(trainer, steps, scale, samples, rounds, plain, on_progress) for steps, scale in sampling
        ]
    return report


def _training(
    trainer: Trainer,
    rounds: int,
    steps: int,
    peak: float,
    plain: ModuleType | None,
    share: bool,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    batch, device = trainer.recipe.training.batch_size, trainer.accelerator.device
    batches = training_batches(trainer.source, trainer.recipe.seed, trainer.slices, 0, trainer.recipe.training.workers,
                               device.type == "cuda")  # fmt: skip

    def ours() -> None:
        trainer._train_step(batches)
        trainer.step += 1

    on_progress("warming up")
    first = _timed(ours, 1, device)  # compiles what is to be compiled
    flops = count_flops(ours)
    other = plain_step(trainer, plain, share) if plain else None
    if other:
        other()
    times: list[float] = []
    ratios: list[float] = []
    for number in range(rounds):
        on_progress(f"training, round {number + 1} of {rounds}")
        times.append(_timed(ours, steps, device))
        if other:
            ratios.append(_timed(other, steps, device) / times[-1])
    seconds = statistics.median(times)
    result: dict[str, Any] = {
        "images_per_second": batch / seconds,
        "seconds_per_step": seconds,
        "seconds_of_first_step": first,
        "flops_per_image": flops / batch,
        "share_of_peak": flops / seconds / peak,
        "seconds_by_part": _parts(trainer, batches, ours, steps),
    }
    if ratios:
        result["baseline"] = {"ratio": statistics.median(ratios), "ratios": ratios, "shares_decodings": share}
    return result


def _parts(trainer: Trainer, batches: Iterator[Any], step: Callable[[], None], steps: int) -> dict[str, float]:
    """Seconds of each part of a training step. Waiting for the device at each border costs a little in itself."""
    watch = Stopwatch(trainer.accelerator.device)
    model, objective, accelerator = trainer.model, trainer.objective, trainer.accelerator
    with watch.watching():
        # The encoder's second pass of a step is that of Eq. 9.
        passes = itertools.cycle(
            ["encoder", "latent consistency"] if objective.weights.latent_consistency else ["encoder"]
        )

        watch.wrap(model.encoder, "forward", lambda: next(passes))
        watch.wrap(model.decoder, "forward", "decoder")
        if objective.perceptual is not None:
            watch.wrap(objective.perceptual, "features", "perceptual")
            watch.wrap(objective.perceptual, "distance", "perceptual")
        watch.wrap(accelerator, "backward", "backward")
        watch.wrap(accelerator, "clip_grad_norm_", "optimizer")
        watch.wrap(trainer, "_apply", "optimizer")
        watch.wrap(trainer, "_next", "data")
        total = _timed(step, steps, trainer.accelerator.device)
    parts = {part: watch.seconds.get(part, 0.0) / steps for part in PARTS}
    return {**parts, "other": total - sum(parts.values())}


class Stopwatch:
    """Seconds by part, of functions that are wrapped for the time being."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._wrapped: list[tuple[Any, str]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        try:
            yield
        finally:
            for owner, name in self._wrapped:
                delattr(owner, name)  # the class's own shows again

    def wrap(self, owner: Any, name: str, part: str | Callable[[], str]) -> None:
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronize(self.device)
            start = time.perf_counter()
            result = function(*args, **kwargs)
            synchronize(self.device)
            key = part if isinstance(part, str) else part()
            self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - start
            return result

        setattr(owner, name, timed)
        self._wrapped.append((owner, name))


def _sampling(
    trainer: Trainer,
    steps: int,
    scale: float,
    samples: int,
    rounds: int,
    plain: ModuleType | None,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    model, device = trainer.model, trainer.accelerator.device
    conditional = model.shape.num_classes > 0
    labels = torch.arange(samples) % model.shape.num_classes if conditional else None
    guidance = scale if conditional else None
    precision: Literal["fp32", "bf16"] = "bf16" if trainer.dtype == torch.bfloat16 else "fp32"

    def ours() -> None:
        sample(model, labels, count=samples, steps=steps, guidance=guidance, position="combo" if conditional else None,
               batch_size=samples, precision=precision)  # fmt: skip

    other: Callable[[], object] | None = None
    if plain and labels is not None:
        network = plain_model(trainer, plain).eval()
        shape = (model.shape.tokens, model.shape.latent_channels)
        y = labels.to(device)

        def theirs() -> None:
            first, noise = (torch.randn(samples, *shape, device=device) for _ in range(2))
            plain.sample(network, y, first, noise, model.noise.sigma_max, steps, scale).cpu()

        other = theirs
        theirs()
    ours()
    times, ratios = [], []
    for number in range(rounds):
        on_progress(f"sampling, {steps} steps, guidance {scale:g}, round {number + 1} of {rounds}")
        times.append(_timed(ours, 1, device))
        if other:
            ratios.append(_timed(other, 1, device) / times[-1])
    conditioner = conditioner_for(model, guidance, "combo" if conditional else None)
    row: dict[str, Any] = {
        "steps": steps,
        "guidance": scale,
        "precision": precision,
        "network_passes": network_passes(steps, conditioner),
        "images_per_second": samples / statistics.median(times),
    }
    if ratios:
        row["baseline"] = {"ratio": statistics.median(ratios), "ratios": ratios}
    return row


def _timed(function: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds a call."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / times


# -- the baseline ------------------------------------------------------------------------------------------------------


def baseline_module() -> ModuleType:
    """benchmarks/baseline.py: in the installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    for path in (here / "benchmarks" / "baseline.py", here.parent / "benchmarks" / "baseline.py"):
        if path.is_file():
            spec = importlib.util.spec_from_file_location("baseline", path)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise SpheregenError("--baseline: benchmarks/baseline.py is not there")


def plain_model(trainer: Trainer, plain: ModuleType) -> Any:
    """The plain networks, with the trainer's weights."""
    try:
        model = plain.Model(plain.sizes_of(trainer.recipe))
    except ValueError as error:
        raise SpheregenError(f"--baseline: {error}") from None
    model.load_state_dict(trainer.model.state_dict())
    return model.to(trainer.accelerator.device)


def plain_step(trainer: Trainer, plain: ModuleType, share: bool) -> Callable[[], object]:
    """A training step of the plain implementation on one batch of the recipe; reading and drawing it cost nothing."""
    recipe, device = trainer.recipe, trainer.accelerator.device
    perceptual = trainer.objective.perceptual
    if perceptual is not None:  # networks as they come: channels first
        perceptual = copy.deepcopy(perceptual).to(memory_format=torch.contiguous_format)
        if hasattr(perceptual, "memory_format"):
            setattr(perceptual, "memory_format", torch.contiguous_format)  # noqa: B010  # of some distances only
    training = plain.Training(plain_model(trainer, plain), recipe.objective, perceptual, share)
    size = recipe.training.batch_size
    images, labels = next(training_batches(trainer.source, 0, trainer.slices, 0, 0, False))
    draws = StepDraws.of(recipe.seed, 0, size, trainer.model.noise)
    taken = draws.take(slice(0, len(images)), trainer.model.shape, device)
    x = to_network(images, draws.flip[: len(images)] < recipe.training.flip, device)
    y = labels.to(device)
    null = trainer.model.shape.null_label
    conditioner = trainer.objective.conditioner
    pair = (conditioner.drop(y, taken.drop_encoder, null), conditioner.drop(y, taken.drop_decoder, null))
    sigma = trainer.model.noise.sigma_max
    noise = (taken.r * sigma, taken.r_sub * sigma, taken.e)
    return lambda: training.step(x, pair, noise)


# -- memory ------------------------------------------------------------------------------------------------------------


def peak_memory(recipe: Recipe, plain: bool = False, share: bool = False) -> int | None:
    """Bytes at the height of a training step, above those of a process that has only imported everything: measured in a
    process of its own (on a GPU, of its allocator). None where the system ended that process, for want of memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure_memory, recipe.as_dict(), plain, share).result()
        except BrokenProcessPool:
            return None


def _measure_memory(tables: dict[str, Any], plain: bool, share: bool) -> int:
    recipe = Recipe.parse(tables)
    with tempfile.TemporaryDirectory() as folder:
        before = resident()
        trainer = trainer_for(recipe, folder)
        if plain:
            step = plain_step(trainer, baseline_module(), share)
        else:
            batches = training_batches(trainer.source, 0, trainer.slices, 0, 0, False)
            step = lambda: trainer._train_step(batches)  # noqa: E731
        for _ in range(2):
            step()
        if trainer.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resident("VmHWM") - before


def resident(what: str = "VmRSS") -> int:
    """Resident bytes of this process, now or (VmHWM) at its height. Linux only."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        raise SpheregenError("memory can be measured on Linux only") from None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure must be read with: processor or GPU, threads, torch, date."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": f"{device.type}: {name}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


__all__ = ["RandomImages", "benchmark", "peak_memory"]
