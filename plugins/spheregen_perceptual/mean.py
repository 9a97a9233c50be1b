"""The weighted mean of several distances."""

from __future__ import annotations

from typing import Any

import pydantic
from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, PrivateAttr, ValidationInfo, model_validator
from torch import Tensor, nn

import spheregen


class Part(spheregen.Options):
    """One of the distances: its name, its weight, and its own options beside them."""

    model_config = ConfigDict(extra="allow")

    use: str
    """The distance's name."""
    weight: float = Field(1.0, gt=0)
    """Its weight in the mean."""

    _component: type[spheregen.PerceptualDistance] = PrivateAttr()
    _options: spheregen.Options = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _resolve(cls, table: Any, handler: ModelWrapValidatorHandler[Part], info: ValidationInfo) -> Part:
        """Find the component where the recipe's are found, check the options as it does, and fill in its defaults."""
        if not isinstance(table, dict) or not isinstance(table.get("use"), str):
            raise ValueError('expected a table { use = "name", weight = 1.0, … }')
        try:
            component = (info.context or {}).get("registry", spheregen.registry).get("perceptual", table["use"])
        except spheregen.PluginError as error:
            raise ValueError(str(error)) from None
        own = {key: value for key, value in table.items() if key not in ("use", "weight")}
        try:
            options = component.Options.model_validate(own, context=info.context)
        except pydantic.ValidationError as error:
            known = [*component.Options.model_fields, "use", "weight"]
            raise ValueError("; ".join(_explain(dict(e), known) for e in error.errors())) from None
        rest = {key: table[key] for key in table if key not in own}
        part = handler({**options.model_dump(mode="json", exclude_none=True), **rest})
        part._component, part._options = component, options
        return part

    def resolve(self) -> tuple[type[spheregen.PerceptualDistance], spheregen.Options]:
        """The distance and its options."""
        return self._component, self._options


class MeanDistance(spheregen.PerceptualDistance, name="mean"):
    """The weighted mean of several distances: Σ weight·distance / Σ weight.

    The paper's is 1.0 × lpips and 0.1 × timm's ConvNeXt-Small logits at 224.
    """

    class Options(spheregen.Options):
        parts: list[Part] = Field(min_length=1)
        """Tables { use = "name", weight = 1.0, … }, with the options of the distance they name."""

    def __init__(self, options: Options, image: spheregen.ImageSpec, pretrained: bool = True) -> None:
        super().__init__(options, image)
        resolved = [part.resolve() for part in options.parts]
        distances = [(c if pretrained else c.untrained)(own, image) for c, own in resolved]
        self.parts = nn.ModuleList(distances)
        total = sum(part.weight for part in options.parts)
        self.weights = [part.weight / total for part in options.parts]
        self.counts: list[int] = []  # how many features each part makes, known once it has made some

    @classmethod
    def untrained(cls, options: Options, image: spheregen.ImageSpec) -> MeanDistance:
        return cls(options, image, pretrained=False)

    @classmethod
    def check(cls, options: Options, image: spheregen.ImageSpec) -> None:
        for part in options.parts:
            component, own = part.resolve()
            try:
                component.check(own, image)
            except ValueError as error:
                raise ValueError(f"parts: {part.use}: {error}") from None

    def features(self, images: Tensor) -> list[Tensor]:
        """The features of all parts, one after the other."""
        features = [part.features(images) for part in self.parts]  # type: ignore[operator]
        self.counts = [len(own) for own in features]
        return [feature for own in features for feature in own]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        mean, start = a[0].new_zeros(()), 0
        for part, weight, count in zip(self.parts, self.weights, self.counts, strict=True):
            own = slice(start, start + count)
            mean = mean + weight * part.distance(a[own], b[own])  # type: ignore[operator]
            start += count
        return mean


def _explain(error: dict[str, Any], known: list[str]) -> str:
    """One of pydantic's findings about a part's options."""
    place = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = f"unknown key; {spheregen.suggest(place, known)}"
    return f"{place}: {message}" if place else message
