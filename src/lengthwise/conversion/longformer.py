"""Longformer, as allenai/longformer-base-4096, and what it shares with LED."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, cat, nn

from lengthwise.channels.mlp import MLP
from lengthwise.conversion.family import EPS, Family, Reader
from lengthwise.errors import InputError
from lengthwise.mixers.longformer import Longformer
from lengthwise.models.encoder import Encoder
from lengthwise.models.masked_language_model import MaskedLanguageModel

PAD = 1
"""The token that transformers pads with, unless a file says another. Rows of the position table up to it are of no
position."""

ATTENTION = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "global_q_proj": "query_global",
    "global_k_proj": "key_global",
    "global_v_proj": "value_global",
}
"""The projections of Longformer and their names in transformers."""


class LongformerFamily(Family):
    """Longformer: global tokens are those that the layout marks. The pooler, which LongformerForMaskedLM doesn't have
    either, is left out, and transformers' rows of no position are zeros when they are written."""

    model_type = "longformer"
    architectures: ClassVar = {"LongformerForMaskedLM": MaskedLanguageModel, "LongformerModel": Encoder}
    part = Longformer
    only: ClassVar = {"hidden_act": "gelu", "tie_word_embeddings": True}
    surplus: ClassVar = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias", "lm_head.decoder.bias")

    def translate(self, read: Reader) -> dict[str, Any]:
        """The arguments of the model."""
        if read.number("layer_norm_eps", 1e-12) != EPS:
            raise InputError(
                f"{read.source} has layer_norm_eps = {read.number('layer_norm_eps', 1e-12)}; lengthwise has {EPS} alone"
            )
        heads, hidden = read.size("num_attention_heads", 12), read.size("intermediate_size", 3072)
        reserved = read.size("pad_token_id", PAD, least=0) + 1
        return {
            "vocab_size": read.size("vocab_size", 30522),
            "dim": read.size("hidden_size", 768),
            "layers": encoder_layers(windows(read, read.size("num_hidden_layers", 12)), heads, hidden),
            "position": f"learned(length={read.size('max_position_embeddings', 512) - reserved})",
            "norm": "layernorm",
            "types": read.size("type_vocab_size", 2),
        }

    def settings(self, model: Encoder) -> dict[str, Any]:
        """The settings of a model that has this family's mixer."""
        return {
            "vocab_size": model.vocab_size,
            "hidden_size": model.dim,
            "max_position_embeddings": rows_of_positions(model) + PAD + 1,
            "pad_token_id": PAD,
            "type_vocab_size": 0 if model.types is None else model.types.num_embeddings,
            "layer_norm_eps": EPS,
            **layer_settings(model, "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        }

    def prefixes(self, model: Encoder) -> Sequence[tuple[str, str]]:
        """Pairs of beginnings of names, ours and theirs."""
        body = "longformer." if isinstance(model, MaskedLanguageModel) else ""
        found = [
            ("embedding", f"{body}embeddings.word_embeddings"),
            ("position", f"{body}embeddings.position_embeddings"),
            ("types", f"{body}embeddings.token_type_embeddings"),
            ("stack.layers.0.norm", f"{body}embeddings.LayerNorm"),
            ("head_map", "lm_head.dense"),
            ("head_norm", "lm_head.layer_norm"),
            ("head.weight", "lm_head.decoder.weight"),
            ("head.bias", "lm_head.bias"),
        ]
        for n in range(len(model.stack.layers[1].layers) // 2):  # type: ignore[union-attr, arg-type]
            attention, channels = (f"stack.layers.1.layers.{2 * n + place}" for place in (0, 1))
            theirs = f"{body}encoder.layer.{n}"
            found += [
                (f"{attention}.part.{ours}", f"{theirs}.attention.self.{name}") for ours, name in ATTENTION.items()
            ]
            found += [
                (f"{attention}.part.o_proj", f"{theirs}.attention.output.dense"),
                (f"{attention}.norm", f"{theirs}.attention.output.LayerNorm"),
                (f"{channels}.part.up", f"{theirs}.intermediate.dense"),
                (f"{channels}.part.down", f"{theirs}.output.dense"),
                (f"{channels}.norm", f"{theirs}.output.LayerNorm"),
            ]
        return found

    def read(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of transformers by our names."""
        kept = {name: t for name, t in tensors.items() if name.removeprefix("longformer.") not in self.surplus}
        found = super().read(model, kept)
        if "position.weight" in found:
            found["position.weight"] = found["position.weight"][-rows_of_positions(model) :]
        return found

    def write(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights by transformers' names, each once."""
        tensors = super().write(model)
        name = self.names(model)["position.weight"]
        rows = tensors[name]
        tensors[name] = cat([rows.new_zeros(PAD + 1, rows.shape[1]), rows])
        return tensors


def windows(read: Reader, layers: int) -> list[int]:
    """Tokens that each layer sees to either side: half of what transformers calls the window."""
    given = read.settings.get("attention_window", 512)
    sizes = given if isinstance(given, list) else [given] * layers
    if len(sizes) != layers or not all(isinstance(size, int) and size > 0 and size % 2 == 0 for size in sizes):
        raise InputError(
            f"attention_window must be even, for each of {layers} layers or all; {read.source} has {given}"
        )
    return [size // 2 for size in sizes]


def encoder_layers(sides: Sequence[int], heads: int, hidden: int) -> str:
    """The expression of an encoder with a window for each layer."""
    layers = [f"longformer(window={side}, heads={heads}) + mlp(hidden={hidden})" for side in sides]
    body = f"{len(layers)}*({layers[0]})" if len(set(layers)) == 1 else " + ".join(layers)
    return f"layernorm + post_norm({body})"


def layer_settings(encoder: nn.Module, layers: str, heads: str, hidden: str) -> dict[str, Any]:
    """What the layers of an encoder are set to, by the names that transformers has for it."""
    mixers = [module for module in encoder.modules() if isinstance(module, Longformer)]
    bands = [mixer.pattern.band or (0, 0, 0) for mixer in mixers]
    channels = next((module for module in encoder.modules() if isinstance(module, MLP)), None)
    return {
        "attention_window": [2 * (side or 0) for side, _, _ in bands],
        layers: len(mixers),
        heads: mixers[0].heads,
        hidden: 0 if channels is None else channels.up.out_features,
    }


def rows_of_positions(model: Any) -> int:
    """The positions that a model has learned."""
    return getattr(model.position, "length", 0)
