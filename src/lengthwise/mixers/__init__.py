"""Modules that move information along the length, each a thin file over `lengthwise.ops`."""

from lengthwise.contract import SequenceModule
from lengthwise.mixers.attention import Attention
from lengthwise.mixers.block_recurrent import BlockRecurrent
from lengthwise.mixers.chunked_attention import ChunkedAttention
from lengthwise.mixers.coca_attention import CoCAAttention
from lengthwise.mixers.combiner import Combiner
from lengthwise.mixers.deltanet import DeltaNet
from lengthwise.mixers.dilated_attention import DilatedAttention
from lengthwise.mixers.falcon_mamba import FalconMamba
from lengthwise.mixers.hyena import Hyena
from lengthwise.mixers.linear_attention import LinearAttention
from lengthwise.mixers.longformer import Longformer
from lengthwise.mixers.mamba import Mamba
from lengthwise.mixers.mamba2 import Mamba2
from lengthwise.mixers.mega import TCNCA, Mega
from lengthwise.mixers.megalodon import Megalodon
from lengthwise.mixers.min_rnn import MinGRU, MinLSTM
from lengthwise.mixers.moving_average import ComplexEMA, DampedEMA
from lengthwise.mixers.relative_attention import RelativeAttention
from lengthwise.mixers.rnn import GRU, LSTM
from lengthwise.mixers.routing_attention import RoutingAttention
from lengthwise.mixers.rrwkv import RRWKV
from lengthwise.mixers.rwkv import RWKV
from lengthwise.mixers.s5 import S5
from lengthwise.mixers.tcn import TCN

MIXERS: dict[str, type[SequenceModule]] = {
    "attention": Attention,
    "chunked_attention": ChunkedAttention,
    "relative_attention": RelativeAttention,
    "coca_attention": CoCAAttention,
    "block_recurrent": BlockRecurrent,
    "dilated_attention": DilatedAttention,
    "combiner": Combiner,
    "routing_attention": RoutingAttention,
    "longformer": Longformer,
    "linear_attention": LinearAttention,
    "deltanet": DeltaNet,
    "mamba": Mamba,
    "falcon_mamba": FalconMamba,
    "mamba2": Mamba2,
    "hyena": Hyena,
    "tcn": TCN,
    "ema": DampedEMA,
    "complex_ema": ComplexEMA,
    "mega": Mega,
    "tcnca": TCNCA,
    "megalodon": Megalodon,
    "rwkv": RWKV,
    "rrwkv": RRWKV,
    "s5": S5,
    "min_gru": MinGRU,
    "min_lstm": MinLSTM,
    "gru": GRU,
    "lstm": LSTM,
}
"""The mixers by the names that expressions use."""
