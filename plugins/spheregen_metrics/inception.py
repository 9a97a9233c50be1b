"""The Inception network of FID, as torch-fidelity has it."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import spheregen

weights = spheregen.pretrained.weights


class InceptionFeatures(spheregen.FeatureExtractor, name="inception"):
    """torch-fidelity's InceptionV3, the network that FID, KID and the Inception Score are defined by.

    Images are scaled to 299 as the original TensorFlow graph does it.
    """

    class Options(spheregen.Options):
        weights: str | None = None
        """The file weights-inception-2015-12-05-6726825d.pth of torch-fidelity; unset, torch.hub's cache or a
        download."""

    def __init__(self, options: Options) -> None:
        """Raises WeightsError where the weights cannot be had."""
        super().__init__(options)
        from torch_fidelity import feature_extractor_inceptionv3 as theirs  # slow to import

        path = Path(options.weights).expanduser() if options.weights else weights.torch_file(theirs.URL_INCEPTION_V3)
        tensors = weights.read(path)
        # Its constructor insists on loading weights itself, and would unpickle them.
        with mock.patch.object(theirs, "load_state_dict_from_url", return_value=tensors):
            try:
                self.net = theirs.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"])
            except RuntimeError as error:
                line = weights.one_line(error)
                raise spheregen.WeightsError(f"{path}: does not fit Inception: {line[:200]}") from None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """images [B, C, H, W] in [0, 1] -> pooled features [B, 2048], logits [B, 1008]."""
        pixels = (images * 255).round().to(torch.uint8)
        return self.net(pixels.expand(-1, 3, -1, -1))
