"""Modules that act on each token alone."""

from lengthwise.channels.geglu import GeGLU
from lengthwise.channels.mlp import MLP
from lengthwise.channels.norm import LayerNorm, RMSNorm
from lengthwise.channels.rrwkv import RRWKVChannels
from lengthwise.channels.rwkv import RWKVChannels
from lengthwise.channels.spiking import IntegrateAndFire, Spikes
from lengthwise.channels.swiglu import SwiGLU
from lengthwise.channels.timestep_norm import TimestepNorm
from lengthwise.contract import SequenceModule

CHANNELS: dict[str, type[SequenceModule]] = {
    "mlp": MLP,
    "swiglu": SwiGLU,
    "geglu": GeGLU,
    "layernorm": LayerNorm,
    "rmsnorm": RMSNorm,
    "timestep_norm": TimestepNorm,
    "rwkv_channels": RWKVChannels,
    "rrwkv_channels": RRWKVChannels,
    "integrate_and_fire": IntegrateAndFire,
    "spikes": Spikes,
}
"""The channel mixers by the names that expressions use."""
