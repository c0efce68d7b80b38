"""What stays in float32 in a network of narrow numbers: the tokens between its parts. Needs PyTorch."""

from typing import Any

from torch import Tensor, nn

from cosmos_ref.blocks.attention import CrossAttention, SelfAttention
from cosmos_ref.blocks.mlp import MLP
from cosmos_ref.blocks.modulation import AdaLNLoRA
from cosmos_ref.model.dit import CosmosDiT


def keep_tokens_wide(network: CosmosDiT) -> None:
    """Let every part of a block take its own type and give float32, so that tokens are summed up and normed in it.

    Trained networks carry a few channels whose values grow from block to block: with the trained tiny they reach 73000
    behind the second MLP at the highest noise level, which float16 does not have, and a sampling ends in NaN. In
    bfloat16 they are rounded once a part, which is most of that type's error.
    """

    def narrow(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (arguments[0].to(next(module.parameters()).dtype), *arguments[1:])

    def widen(module: nn.Module, arguments: Any, out: Any) -> Any:
        return out.float() if isinstance(out, Tensor) else tuple(part.float() for part in out)

    for module in network.modules():
        if isinstance(module, SelfAttention | CrossAttention | MLP):
            module.register_forward_pre_hook(narrow)
            module.register_forward_hook(widen)
        elif isinstance(module, AdaLNLoRA):
            module.register_forward_hook(widen)
    network.patch_embedding.register_forward_hook(widen)
    network.final_layer.linear.register_forward_pre_hook(narrow)
