"""How training is spread over processes: replicas (DDP), shards (FSDP2), or one process that needs neither.

The strategy decides where tensors live, not what is computed: weights, averages and checkpoints are the same within
float error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from spheregen.model import SphereModel
from spheregen.objective import Objective


def is_sharded(module: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def shard(accelerator: Accelerator, objective: Objective, average: SphereModel | None, dtype: torch.dtype) -> None:
    """FSDP2, in place: each repeated block of the networks and what is left is cut over all processes, and so will be
    its gradients and its optimizer's state. The moving average is cut alike; it is never run.

    A block is whole while it computes, as `dtype`, which is bf16 where training autocasts to it. A perceptual distance,
    which is frozen, stays whole. Call it with weights on the CPU: they go to the device a block at a time.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    options: dict[str, Any] = {"mesh": mesh}
    if dtype != torch.float32:
        # Autocast alone would keep a bf16 copy of every whole weight until the backward pass. Activations are left to
        # autocast, so that they have the precision that they have in replicas.
        options["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    frozen = set(objective.perceptual.parameters()) if objective.perceptual is not None else set()
    for model, root in ((objective.model, objective), (average, average)):
        if model is None or root is None:
            continue
        for block in (*model.encoder.repeated_blocks(), *model.decoder.repeated_blocks()):
            fully_shard(block, **options)
        fully_shard(root, ignored_params=frozen, **options)


def clip(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients so that their norm, over all parameters and shards, is at most `largest`. Returns the norm as it
    was before, a scalar."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(parameters, largest, norm, foreach=True)
    return norm


@torch.no_grad()
def update_average(average: ModelEmaV3, model: nn.Module, step: int) -> None:
    """ModelEmaV3.update, on this process's shards: torch's foreach functions do not take shards and whole buffers in
    one list. step: counted from 1."""
    averages, values = [], []
    for a, value in zip(average.module.state_dict().values(), model.state_dict().values(), strict=True):
        if a.is_floating_point():
            averages.append(_local(a))
            values.append(_local(value))
        else:
            a.copy_(value)
    torch._foreach_lerp_(averages, values, weight=1 - average.get_decay(step))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state put together from all shards, on the CPU of the main process; {} on the others. All processes
    must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(module, options=options))
