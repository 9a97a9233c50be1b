"""The optimizer and its learning rates (Appendix D): AdamW with a slower encoder, warm-up and cosine."""

from __future__ import annotations

import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from spheregen.model import SphereModel
from spheregen.recipe import TrainingSection


def trainable(model: nn.Module, part: str, scale: float) -> list[nn.Parameter]:
    """A part's parameters to optimise; a part whose rate is 0 is frozen."""
    parameters = list(model.get_submodule(part).parameters())
    if scale == 0:
        for parameter in parameters:
            parameter.requires_grad_(False)
    return [parameter for parameter in parameters if parameter.requires_grad]


def rates(options: TrainingSection) -> dict[str, float]:
    """Each part's learning rate as a share of the decoder's; 0 freezes it."""
    return {"encoder": options.encoder_lr_scale, "decoder": 1.0, "regularizer": 1.0}


def adamw(model: SphereModel, options: TrainingSection) -> torch.optim.AdamW:
    """The optimizer, its state there from the start, so that it can be saved and read before the first step."""
    lr = options.lr * options.batch_size / options.lr_batch
    groups = [
        {"params": parameters, "lr": lr * scale}
        for part, scale in rates(options).items()
        if (parameters := trainable(model, part, scale))
    ]
    optimizer = torch.optim.AdamW(groups, betas=options.betas, weight_decay=options.weight_decay, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:  # as AdamW begins; under FSDP these are shards
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
    return optimizer


def state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state by `{parameter's name}.{name}`: the tensors themselves, to be saved or filled."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }


def cosine(optimizer: torch.optim.Optimizer, options: TrainingSection, dataset: int) -> CosineLRScheduler:
    """Linear warm-up, then a cosine to `lr_min`, on a data set of so many images; stepped once an optimizer step."""
    warmup = options.warmup_steps(dataset)
    return CosineLRScheduler(
        optimizer, options.total_steps(dataset) - warmup, lr_min=options.lr_min, warmup_t=warmup, warmup_prefix=True,
        t_in_epochs=False,
    )  # fmt: skip
