"""A recipe: everything that decides what a training run makes, as TOML, checked before anything is built.

recipe = Recipe.read("recipes/digits.toml", overrides=["encoder.size=base"])
recipe.data.build()          # a component from its section
recipe.to_toml()             # resolved: every setting there is, extends and overrides applied
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import tomli_w
from pydantic import Field

from spheregen.component import Component, ImageSpec, ModelShape, Options
from spheregen.errors import PluginError, RecipeError, suggest
from spheregen.objective import LossWeights
from spheregen.recipe_files import Origins, read_raw
from spheregen.registry import Registry, registry
from spheregen.sphere import NoiseRange


@dataclass(frozen=True)
class Section:
    """A section that builds a component: the class that `use` names, and its validated options."""

    component: type[Any]
    options: Any

    def build(self, *context: Any) -> Any:
        """The component: its class called with its options and what its interface asks for besides."""
        return self.component(self.options, *context)

    def as_dict(self) -> dict[str, Any]:
        return {"use": self.component.name, **self.options.model_dump(mode="json", exclude_none=True)}


class LatentSection(Options):
    """The latent's sizes (Appendix D): exactly one of `channels` and `compression` is given."""

    grid: int = Field(gt=0)
    """Height and width in tokens, h = w = H / P."""
    channels: int | None = Field(None, gt=0)
    """d, the channels of a token."""
    compression: float | None = Field(None, gt=0)
    """The volume compression ratio C·H·W / (h·w·d), from which the channels follow."""

    @pydantic.model_validator(mode="after")
    def _one_of(self) -> LatentSection:
        if (self.channels is None) == (self.compression is None):
            raise ValueError("give exactly one of channels and compression")
        return self

    def channels_for(self, image: ImageSpec) -> int:
        """d for an image of this size. Raises ValueError where the ratio does not give a whole number."""
        if self.channels is not None:
            return self.channels
        assert self.compression is not None
        channels = image.channels * image.size**2 / self.grid**2 / self.compression
        if abs(channels - round(channels)) > 1e-6 or round(channels) < 1:
            raise ValueError(f"compression: {self.compression} gives {channels:g} channels a token, not a whole number")
        return round(channels)


class NoiseSection(Options):
    """How far training perturbs latents (Eq. 5, Eq. 6, Appendix C.2)."""

    angle: float = Field(80.0, gt=0, lt=90)
    """α in degrees: σ_max = tan α."""
    wide_angle: float | None = Field(None, gt=0, lt=90)
    """Far end of the band of larger angles, in degrees; unset, noise is never widened."""
    wide_probability: float = Field(0.1, ge=0, le=1)
    """How often an image's noise comes from that band."""
    sub: float = Field(0.5, ge=0, le=1)
    """The largest s of σ_sub = s·σ."""
    draw: Literal["sigma", "angle"] = "sigma"
    """What is uniform: σ (Eq. 5) or the angle (Table 10)."""
    wide_draw: Literal["band", "first-tenth"] = "band"
    """Where in the band: all of it, as the paper says, or its first tenth, as the authors' program does."""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> NoiseSection:
        if self.wide_angle is not None and self.wide_angle <= self.angle:
            raise ValueError(f"wide_angle: {self.wide_angle} must be larger than angle, {self.angle}")
        return self

    def range(self) -> NoiseRange:
        return NoiseRange(**self.model_dump())


class TrainingSection(Options):
    """Optimisation (Appendix D). Lengths are in epochs or in images; one of each pair is given."""

    batch_size: int = Field(256, gt=0)
    """Images an optimizer step, over all processes and accumulation steps."""
    accumulate: int = Field(1, gt=0)
    """Gradient accumulation: forward and backward passes an optimizer step."""
    epochs: float | None = Field(None, gt=0)
    """Length of training in passes over the data."""
    images: int | None = Field(None, gt=0)
    """Length of training in images seen."""
    warmup_epochs: float | None = Field(None, ge=0)
    """Linear warm-up of the learning rate, in epochs."""
    warmup_images: int | None = Field(None, ge=0)
    """Linear warm-up of the learning rate, in images."""
    lr: float = Field(1e-4, gt=0)
    """The decoder's learning rate at a batch of `lr_batch`; scaled linearly with the batch."""
    lr_batch: int = Field(256, gt=0)
    """The batch size that `lr` is meant for."""
    lr_min: float = Field(1e-6, ge=0)
    """Where the cosine ends."""
    encoder_lr_scale: float = Field(0.1, ge=0)
    """The encoder's learning rate is this times the decoder's; 0 freezes the encoder."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    ema: float = Field(0.9997, ge=0, lt=1)
    """Decay of the weights' moving average, a step; it warms up. 0 keeps none."""
    final_weights: Literal["ema", "raw"] = "ema"
    """Which weights become model.safetensors and draw the sample grids."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Autocast of the forward pass; auto is bf16 where the device computes it natively."""
    compile: bool = False
    """Compile the networks' blocks with torch.compile: faster steps after a first one that takes minutes."""
    activation_checkpointing: bool = False
    """Keep no activations inside the networks' blocks and compute them again in the backward pass: less memory, a
    third more time."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    workers: int = Field(0, ge=0)
    """Processes that decode images, beside each training process; no more are started than there are cores."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What several processes hold: ddp, the whole model each; fsdp, a share each of weights, gradients, optimizer and
    average, for models that do not fit otherwise."""
    spike_factor: float = Field(10.0, ge=0)
    """A step is skipped whose gradient norm or loss is above this times its median over the last `spike_window` steps;
    0 skips only those that are not finite."""
    spike_window: int = Field(100, gt=0)
    """Steps of which the median is taken; until there were so many, only those that are not finite are skipped."""
    max_skipped: int = Field(10, ge=0)
    """Steps skipped in a row before training stops. Looked at when metrics are logged and checkpoints saved."""
    log_images: int = Field(5_000, gt=0)
    """Images between two lines of metrics.jsonl."""
    sample_images: int = Field(100_000, gt=0)
    """Images between two sample grids."""
    checkpoint_images: int = Field(100_000, gt=0)
    """Images between two checkpoints."""
    keep: int = Field(2, gt=0)
    """Checkpoints kept; older ones are removed."""

    @pydantic.model_validator(mode="after")
    def _lengths(self) -> TrainingSection:
        if (self.epochs is None) == (self.images is None):
            raise ValueError("give exactly one of epochs and images")
        if self.warmup_epochs is not None and self.warmup_images is not None:
            raise ValueError("give at most one of warmup_epochs and warmup_images")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} does not divide batch_size {self.batch_size}")
        if self.final_weights == "ema" and self.ema == 0:
            raise ValueError("final_weights: 'ema' needs ema > 0")
        if 0 < self.spike_factor <= 1:
            raise ValueError(f"spike_factor: {self.spike_factor} would skip half of all steps; give more than 1, or 0")
        return self

    def total_steps(self, dataset: int) -> int:
        """Optimizer steps of the whole training on a data set of so many images."""
        images = self.images if self.images is not None else (self.epochs or 0) * dataset
        return max(1, round(images / self.batch_size))

    def warmup_steps(self, dataset: int) -> int:
        images = self.warmup_images if self.warmup_images is not None else (self.warmup_epochs or 0) * dataset
        return min(round(images / self.batch_size), self.total_steps(dataset) - 1)


class SamplingSection(Options):
    """What `spheregen sample` and the grids of training do where they are not told otherwise."""

    steps: int = Field(4, gt=0)
    """T of Algorithm 1."""
    per_class: int = Field(8, gt=0)
    """Images a class in a grid."""
    classes: int = Field(10, gt=0)
    """The most classes in a grid."""


class EvaluationSection(Options):
    """What `spheregen evaluate` does where it is not told otherwise: a row for each combination of the lists."""

    samples: int = Field(50_000, gt=1)
    """Samples of each row, classes in turn."""
    steps: tuple[Annotated[int, Field(gt=0)], ...] = (1, 2, 4, 6)
    """T of Algorithm 1."""
    guidance: tuple[Annotated[float, Field(ge=0)], ...] = (1.0,)
    """Guidance scales; 1 is none."""
    positions: tuple[str, ...] = ()
    """Where to guide: conditioners by name; none named, the recipe's."""
    samplers: tuple[dict[str, Any], ...] = ()
    """Samplers as tables, { use = "fixed", noise = "independent" }; none given, the recipe's."""
    recalibrations: tuple[Literal["trained", "none", "reference", "generated"], ...] = ("trained",)
    """Batch statistics to sample with, where the regularizer keeps some: those of training, each batch's own, or
    gathered anew from reference or from generated images."""
    metrics: tuple[Literal["fid", "is", "kid", "prc", "coverage", "rfid"], ...] = ("fid", "is", "prc", "rfid")
    """What to measure."""


class Recipe(pydantic.BaseModel):
    """A recipe, resolved and checked. Make one with `read` or `parse`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    # Sections that build components; those with a default may be left out.
    COMPONENTS: ClassVar[dict[str, str | None]] = {
        "data": None,
        "encoder": None,
        "decoder": None,
        "regularizer": "none",
        "perceptual": "",
        "conditioner": "none",
        "sampler": "fixed",
        "features": "inception",
    }

    name: str
    description: str = ""
    seed: int = 0
    plugins: list[str] = []
    data: Section
    latent: LatentSection
    encoder: Section
    decoder: Section
    regularizer: Section
    noise: NoiseSection = NoiseSection()
    perceptual: Section | None = None
    objective: LossWeights = LossWeights()
    conditioner: Section
    sampler: Section
    sampling: SamplingSection = SamplingSection()
    features: Section
    evaluation: EvaluationSection = EvaluationSection()
    training: TrainingSection

    # -- reading ---------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = (), registry: Registry = registry) -> Recipe:
        """A recipe from a file or the name of a shipped one, with `a.b=value` overrides.

        Raises RecipeError, a line a fault, each naming file, section, key and what was expected.
        """
        raw, origins = read_raw(path, overrides)
        return cls.parse(raw, origins, registry)

    @classmethod
    def parse(cls, raw: dict[str, Any], origins: Origins | None = None, registry: Registry = registry) -> Recipe:
        """A recipe from its tables as TOML gives them. Loads the plugins that it names."""
        origins = origins or Origins("recipe")
        if "sweep" in raw:
            raise RecipeError(origins.fault(("sweep",), "this is a sweep; run it with spheregen sweep"))
        values = dict(raw)
        values["plugins"] = [_plugin(name, origins) for name in values.get("plugins", [])]
        for plugin in values["plugins"]:
            registry.load(plugin)
        faults: list[str] = []
        for kind, default in cls.COMPONENTS.items():
            try:
                values[kind] = _section(kind, values.get(kind), default, origins, registry)
            except RecipeError as error:
                # A section at fault gives way to an empty one, so that the faults of all are found together.
                values[kind] = Section(Component, None)
                faults.append(str(error))
        try:
            recipe = cls.model_validate(values)
        except pydantic.ValidationError as error:
            faults += [_explain(e["loc"], dict(e), cls, origins) for e in error.errors()]
        if faults:
            raise RecipeError("\n".join(faults))
        recipe._check(origins, registry)
        return recipe

    def _check(self, origins: Origins, registry: Registry) -> None:
        """Refuse sizes that do not fit each other."""
        checks: list[tuple[str, Callable[[], object]]] = [
            ("latent", lambda: self.shape.patch),
            ("encoder", lambda: self.encoder.component.check(self.encoder.options, self.shape)),
            ("decoder", lambda: self.decoder.component.check(self.decoder.options, self.shape)),
        ]
        if perceptual := self.perceptual:
            checks.append(("perceptual", lambda: perceptual.component.check(perceptual.options, self.image)))
        for table in self.evaluation.samplers:
            checks.append(("evaluation", lambda table=table: section_of("sampler", table, registry)))  # type: ignore[misc]
        for section, check in checks:
            try:
                check()
            except (ValueError, PluginError) as error:
                raise RecipeError(origins.fault((section,), " ".join(str(error).split()))) from None
        wanted = [k for k in ("reconstruction_perceptual", "consistency_perceptual") if getattr(self.objective, k)]
        if wanted and self.perceptual is None:
            message = "needs a [perceptual] section; add one or set it to 0"
            raise RecipeError("\n".join(origins.fault(("objective", key), message) for key in wanted))

    # -- what follows from it --------------------------------------------------------------------------------------

    @cached_property
    def image(self) -> ImageSpec:
        return self.data.component.describe(self.data.options)

    @cached_property
    def shape(self) -> ModelShape:
        """The sizes on which the parts of the model agree."""
        classes = self.image.num_classes if self.conditioner.component.conditional else 0
        return ModelShape(self.image, self.latent.grid, self.latent.channels_for(self.image), classes)

    def held_out(self) -> Any:
        """The source of images that training does not see: the data's test split. Raises RecipeError without one."""
        component, options = self.data.component, self.data.options
        try:
            return component(component.held_out(options))
        except ValueError as error:
            raise RecipeError(f"[data] {component.name}: {error}") from None

    # -- writing ---------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Every setting, as tables that `parse` reads back to the same recipe."""
        tables: dict[str, Any] = {}
        for key in type(self).model_fields:
            value = getattr(self, key)
            if isinstance(value, Section):
                tables[key] = value.as_dict()
            elif isinstance(value, Options):
                tables[key] = value.model_dump(mode="json", exclude_none=True)
            elif value is not None:
                tables[key] = value
        return tables

    def to_toml(self) -> str:
        """The resolved recipe as TOML: trains again to the same result."""
        return tomli_w.dumps(self.as_dict())


def _plugin(name: Any, origins: Origins) -> str:
    """A plugin as the registry takes it: a module's name, or a file's path made absolute."""
    if not isinstance(name, str):
        raise RecipeError(origins.fault(("plugins",), f"expected names of modules or .py files, got {name!r}"))
    if not name.endswith(".py"):
        return name
    # Not resolve(): in the Hugging Face cache, files are links to others whose names are hashes.
    return os.path.abspath(origins.folder("plugins") / Path(name).expanduser())


def _names(registry: Registry, kind: str) -> list[str]:
    return [str(component.name) for component in registry.components(kind)]


def _section(kind: str, table: Any, default: str | None, origins: Origins, registry: Registry) -> Section | None:
    """A component's section; without a table the default's, "" being none. Raises RecipeError, a line a fault."""
    if table is None and default is None:
        raise RecipeError(origins.fault((kind,), f"section is missing; use = one of {_names(registry, kind)}"))
    if table is None and not default:
        return None
    return read_section(kind, {"use": default} if table is None else table, origins, registry)


def section_of(kind: str, table: Any, registry: Registry = registry) -> Section:
    """A component of a kind and its options from a table. Raises PluginError or ValueError.

    Options that name components themselves find the registry in pydantic's validation context.
    """
    if not isinstance(table, dict) or not isinstance(table.get("use"), str):
        raise ValueError(f'expected use = "name" {suggest("", _names(registry, kind))}')
    component: type[Component] = registry.get(kind, table["use"])
    options = {key: value for key, value in table.items() if key != "use"}
    return Section(component, component.Options.model_validate(options, context={"registry": registry}))


def read_section(kind: str, table: Any, origins: Origins, registry: Registry = registry) -> Section:
    """A component of a kind and its options from a table. Raises RecipeError, a line a fault."""
    try:
        return section_of(kind, table, registry)
    except pydantic.ValidationError as error:
        options = registry.get(kind, table["use"]).Options
        lines = [_explain((kind, *e["loc"]), dict(e), options, origins) for e in error.errors()]
        raise RecipeError("\n".join(lines)) from None
    except (PluginError, ValueError) as error:
        raise RecipeError(origins.fault((kind, "use"), str(error))) from None


def _explain(loc: tuple[Any, ...], error: dict[str, Any], model: type[pydantic.BaseModel], origins: Origins) -> str:
    """One of pydantic's findings as one line: where, what was expected, the nearest known name."""
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        section: Any = model
        if model is Recipe and len(loc) > 1:
            section = Recipe.model_fields[loc[0]].annotation
        what = "unknown section" if len(loc) == 1 and isinstance(value, dict) else "unknown key"
        return origins.fault(loc, f"{what}; {suggest(str(loc[-1]), section.model_fields)}")
    if kind == "missing":
        return origins.fault(loc, "is missing")
    if kind == "literal_error":
        expected = error["ctx"]["expected"]
        names = [name.strip().strip("'") for name in expected.replace(" or ", ", ").split(",")]
        return origins.fault(loc, f"unknown value {value!r}; {suggest(str(value), names)}")
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if kind == "value_error" else f", got {value!r}"
    return origins.fault(loc, f"{message[0].lower()}{message[1:]}{shown}")
