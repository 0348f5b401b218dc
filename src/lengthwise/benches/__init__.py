"""Benchmarks: each fast op against its reference, a named peer where installed, and the machine's limits.

`BENCHES` names, for each op, the function that measures it, as "module:function". It is imported when it runs, so that
listing the benchmarks costs nothing. The function takes no argument and yields a `Row` for each thing measured.
"""

from __future__ import annotations

BENCHES = {
    "scan": "lengthwise.benches.scan:scan",
    "selective_scan": "lengthwise.benches.scan:selective_scan",
    "wkv": "lengthwise.benches.scan:wkv",
    "ema": "lengthwise.benches.scan:ema",
    "integrate_and_fire": "lengthwise.benches.scan:integrate_and_fire",
    "short_convolution": "lengthwise.benches.scan:short_convolution",
    "long_convolution": "lengthwise.benches.convolution:long_convolution",
    "dilated_convolution": "lengthwise.benches.convolution:dilated_convolution",
    "mixers": "lengthwise.benches.mixers:mixers",
    "decoding": "lengthwise.benches.mixers:decoding",
    "autocast": "lengthwise.benches.mixers:autocast",
    "mamba": "lengthwise.benches.recurrent_models:mamba",
    "mamba2": "lengthwise.benches.recurrent_models:mamba2",
    "rwkv": "lengthwise.benches.recurrent_models:rwkv",
    "linear": "lengthwise.benches.one_token:linear",
    "rms_norm": "lengthwise.benches.one_token:rms_norm",
    "step_attention": "lengthwise.benches.one_token:attention",
    "smollm2": "lengthwise.benches.llama:smollm2",
    "megalodon": "lengthwise.benches.megalodon:megalodon",
    "longnet": "lengthwise.benches.longnet:longnet",
    "segments": "lengthwise.benches.segments:segments",
    "attention": "lengthwise.benches.attention:attention",
    "flash_attention": "lengthwise.benches.attention:flash_attention",
    "positions": "lengthwise.benches.positions:positions",
    "relative_attention": "lengthwise.benches.positions:relative_attention",
    "patterns": "lengthwise.benches.patterns:patterns",
    "longformer": "lengthwise.benches.patterns:longformer",
    "linear_attention": "lengthwise.benches.matrix_state:linear_attention",
    "delta_rule": "lengthwise.benches.matrix_state:delta_rule",
    "content": "lengthwise.benches.content:content",
}
