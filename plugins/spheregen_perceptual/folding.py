"""Batch norms of frozen networks, multiplied into the convolutions before them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


@torch.no_grad()
def without_batch_norms(net: nn.Module, example: Tensor) -> nn.Module:
    """A network in eval mode with its batch norms multiplied into the convolutions before them, what they do besides
    (timm's apply the activation) left in place. example: images to find out which is before which.

    The network itself where it has no such norms, or where its output would change by more than rounding.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        return net
    folded = copy.deepcopy(net)
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # with the tensors, so that no other takes their ids
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module, output

    def before(module: nn.Module, args: Any) -> None:
        if isinstance(module, nn.BatchNorm2d) and id(args[0]) in made:
            pairs.append((made.pop(id(args[0]))[0], module))

    handles = [m.register_forward_hook(after) for m in folded.modules()]
    handles += [m.register_forward_pre_hook(before) for m in folded.modules()]
    expected = folded(example)
    for handle in handles:
        handle.remove()
    names = {module: name for name, module in folded.named_modules()}
    for conv, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.requires_grad_(False)
        folded.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))
    outputs, originals = (o if isinstance(o, list) else [o] for o in (folded(example), expected))
    together = zip(outputs, originals, strict=True)
    same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max())) for a, b in together)
    return folded if same else net
