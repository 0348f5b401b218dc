"""The catalogue: 119 published systems, and for those that are built the file that shows what they claim.

    import lengthwise as lw
    lw.systems["mamba"].claim
    for figure in lw.systems["mamba"].reproduce(): ...

This module is itself the mapping from keys to systems. Nothing of it imports torch before a system is asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, KeysView
from types import ModuleType

from lengthwise.errors import InputError, unknown
from lengthwise.systems.catalogue import CATALOGUE, Entry
from lengthwise.systems.system import System

SYSTEMS = {
    "attention-alignment": "lengthwise.systems.attention_alignment",
    "babylm-length": "lengthwise.systems.babylm_length",
    "block-recurrent": "lengthwise.systems.block_recurrent",
    "cable": "lengthwise.systems.cable",
    "coca": "lengthwise.systems.coca",
    "combiner": "lengthwise.systems.combiner",
    "deltanet": "lengthwise.systems.deltanet",
    "fire": "lengthwise.systems.fire",
    "flash-attention-2": "lengthwise.systems.flash_attention_2",
    "hyena": "lengthwise.systems.hyena",
    "length-generalization": "lengthwise.systems.length_generalization",
    "linear-transformer": "lengthwise.systems.linear_transformer",
    "longformer": "lengthwise.systems.longformer",
    "longnet": "lengthwise.systems.longnet",
    "mamba": "lengthwise.systems.mamba",
    "masformer": "lengthwise.systems.masformer",
    "megalodon": "lengthwise.systems.megalodon",
    "min-rnn": "lengthwise.systems.min_rnn",
    "multi-query-attention": "lengthwise.systems.multi_query_attention",
    "nope": "lengthwise.systems.nope",
    "packmamba": "lengthwise.systems.packmamba",
    "recurrent-memory-transformer": "lengthwise.systems.recurrent_memory_transformer",
    "repeat-after-me": "lengthwise.systems.repeat_after_me",
    "roformer": "lengthwise.systems.roformer",
    "routing-transformer": "lengthwise.systems.routing_transformer",
    "rrwkv": "lengthwise.systems.rrwkv",
    "rwkv": "lengthwise.systems.rwkv",
    "rwkv-temporal-perspectives": "lengthwise.systems.rwkv_temporal_perspectives",
    "s5-reinforcement": "lengthwise.systems.s5_reinforcement",
    "seqpe": "lengthwise.systems.seqpe",
    "sparse-transformer": "lengthwise.systems.sparse_transformer",
    "spikegpt": "lengthwise.systems.spikegpt",
    "stuffed-mamba": "lengthwise.systems.stuffed_mamba",
    "swan-gpt": "lengthwise.systems.swan_gpt",
    "tcnca": "lengthwise.systems.tcnca",
    "vcc": "lengthwise.systems.vcc",
}
"""The systems that are built, by key, and the module of each."""


class Systems(ModuleType):
    """A mapping from the keys of the systems that are built to what they are."""

    def __getitem__(self, key: str) -> System:
        return find_system(key)

    def __iter__(self) -> Iterator[str]:
        return iter(SYSTEMS)

    def __len__(self) -> int:
        return len(SYSTEMS)

    def __contains__(self, key: object) -> bool:
        return key in SYSTEMS

    def keys(self) -> KeysView[str]:
        """The keys of the systems that are built."""
        return SYSTEMS.keys()

    def values(self) -> list[System]:
        """The systems that are built."""
        return [find_system(key) for key in SYSTEMS]

    def items(self) -> list[tuple[str, System]]:
        """Keys and systems, of those that are built."""
        return list(zip(SYSTEMS, self.values(), strict=True))


def find_entry(key: str) -> Entry:
    """What the catalogue says of a system, built or not."""
    if key not in CATALOGUE:
        raise unknown("system", key, CATALOGUE)
    return CATALOGUE[key]


def find_system(key: str) -> System:
    """A system that is built."""
    entry = find_entry(key)
    if key not in SYSTEMS:
        raise InputError(
            f"system {key!r} ({entry.title}) is in the catalogue but isn't built yet; built: {', '.join(SYSTEMS)}"
        )
    return importlib.import_module(SYSTEMS[key]).SYSTEM


sys.modules[__name__].__class__ = Systems
systems: Systems = sys.modules[__name__]  # type: ignore[assignment]
