"""LPIPS (Zhang et al., 2018): unit-normalised feature maps, compared under learned channel weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

import spheregen
from spheregen_perceptual.frozen import FrozenDistance, FrozenOptions, unit

weights = spheregen.pretrained.weights

# lpips's name of its backbone, and torchvision's of its ImageNet weights.
BACKBONES = {
    "vgg": ("vgg16", "VGG16_Weights"),
    "alex": ("alexnet", "AlexNet_Weights"),
    "squeeze": ("squeezenet", "SqueezeNet1_1_Weights"),
}
# LPIPS takes (2x − 1 − shift) / scale, which is ImageNet's normalisation.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class LPIPSDistance(FrozenDistance, name="lpips"):
    """LPIPS with VGG16 (the paper's), AlexNet or SqueezeNet.

    Equal to lpips.LPIPS(net)(a, b, normalize=True). The channel weights come with the package lpips, the backbone's
    from torchvision. Images need at least 16 pixels a side (AlexNet 31, SqueezeNet 17), or image_size.
    """

    class Options(FrozenOptions):
        net: Literal["vgg", "alex", "squeeze"] = "vgg"
        """The backbone."""
        weights: str | None = None
        """A torchvision state dict of the backbone, .pth or .safetensors; unset, torch.hub's cache or a download."""

    def __init__(self, options: Options, image: spheregen.ImageSpec, pretrained: bool = True) -> None:
        super().__init__(options, image, pretrained)
        self.backbone = self._pretrained() if pretrained else self.network(options)
        self.channel_weights = nn.ParameterList(_channel_weights(options.net))
        self.freeze(MEAN, STD)

    def _pretrained(self) -> nn.Module:
        net, file = self.options.net, self.options.weights
        path = Path(file).expanduser() if file else weights.torch_file(published(net))
        with torch.device("meta"):  # so that no time goes into random weights
            backbone = self.network(self.options).to_empty(device="cpu")
        tensors = weights.read(path)
        # slice2.4.weight here is features.4.weight there; what torchvision has besides is the classifier's.
        renamed = {name: f"features.{name.split('.', 1)[1]}" for name in backbone.state_dict()}
        found = {name: tensors[theirs] for name, theirs in renamed.items() if theirs in tensors}
        weights.load(backbone, found, path, BACKBONES[net][0])
        return backbone

    @staticmethod
    def network(options: Options) -> nn.Module:
        from lpips import pretrained_networks

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # lpips passes `pretrained`, which torchvision deprecates
            return getattr(pretrained_networks, BACKBONES[options.net][0])(pretrained=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """images [B, C, H, W] in [0, 1] -> unit-normalised maps [B, C', H', W'] after each stage of the backbone."""
        return [unit(f) for f in self.backbone(self.prepare(images))]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """The sum over stages of the mean over places of the weighted squared differences: [B]."""
        parts = zip(self.channel_weights, a, b, strict=True)
        return sum(((fa - fb).square() * w).sum(1).mean((1, 2)) for w, fa, fb in parts)  # type: ignore[return-value]


def published(net: str) -> str:
    """Where torchvision publishes a backbone's ImageNet weights."""
    import torchvision  # slow to import

    return getattr(torchvision.models, BACKBONES[net][1]).IMAGENET1K_V1.url


def _channel_weights(net: str) -> list[Tensor]:
    """The learned weights [1, C, 1, 1] of each stage, version 0.1."""
    import lpips

    tensors = weights.read(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth")
    return [tensors[f"lin{i}.model.1.weight"] for i in range(len(tensors))]
