"""T5, the Transformer with biases for buckets of distances, as google-t5/t5-small and google/flan-t5-small."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lengthwise.channels.geglu import GeGLU
from lengthwise.channels.mlp import MLP
from lengthwise.channels.swiglu import SwiGLU
from lengthwise.conversion.family import Family, Reader, join_rows, part_rows
from lengthwise.errors import InputError, unknown
from lengthwise.mixers.attention import Attention
from lengthwise.mixers.cross_attention import CrossAttention
from lengthwise.models.encoder import Encoder
from lengthwise.models.encoder_decoder import EncoderDecoder
from lengthwise.positions.t5 import T5

FEED_FORWARD = {
    "relu": "mlp(hidden={}, activation=relu, bias=false)",
    "gelu": "mlp(hidden={}, activation=gelu, bias=false)",
    "silu": "mlp(hidden={}, activation=silu, bias=false)",
    "gated-gelu": "geglu(hidden={})",
    "gated-silu": "swiglu(hidden={})",
}
"""What a layer's channels are, by transformers' feed_forward_proj."""

PROJECTIONS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"}
GATED, JOINED = (".wi_0.", ".wi_1."), ".wi."
HEAD, EMBEDDING, LAST_NORM = "lm_head.weight", "shared.weight", "decoder.norm.weight"


class T5Family(Family):
    """T5 and what is made like it, with both halves or the encoder alone.

    Logits aren't divided by √d, and all layers of a half share one table of biases. Where transformers multiplies what
    the output matrix reads by dim^−1/2, with a matrix that is the embedding too, that number is a part of the decoder's
    last norm here. Otherwise the output matrix is one of its own, which a file may lack where it begins as the
    embedding.
    """

    model_type = "t5"
    architectures: ClassVar = {"T5ForConditionalGeneration": EncoderDecoder, "T5EncoderModel": Encoder}
    part = Attention
    only: ClassVar[Mapping[str, Any]] = {}
    surplus: ClassVar = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

    def has(self, model: nn.Module) -> bool:
        """Whether the model is of one of this family's classes and has its positions."""
        return super().has(model) and any(isinstance(module, T5) for module in model.modules())

    def build(self, settings: Mapping[str, Any], source: str) -> nn.Module:
        """The model that the settings describe, with fresh weights."""
        named = (settings.get("architectures") or [""])[0]
        if self.architectures.get(named) is not Encoder:
            return super().build(settings, source)
        whole = self.translate(Reader(settings, source))
        ours = {name: whole[name] for name in ("vocab_size", "dim", "norm")}
        return Encoder(layers=whole["encoder"], position=whole["position"], **ours)

    def translate(self, read: Reader) -> dict[str, Any]:
        """The arguments of the EncoderDecoder."""
        heads, layers = read.size("num_heads", 8), read.size("num_layers", 6)
        kind = read.settings.get("feed_forward_proj", "relu")
        if kind not in FEED_FORWARD:
            raise unknown("feed_forward_proj", str(kind), FEED_FORWARD)
        channels = FEED_FORWARD[kind].format(read.size("d_ff", 2048))
        own = f"heads={heads}, head_dim={read.size('d_kv', 64)}, scale=1.0"
        # A null stands for as many as the encoder has, in files of transformers' own.
        deep = layers if read.settings.get("num_decoder_layers") is None else read.size("num_decoder_layers")
        buckets = read.size("relative_attention_num_buckets", 32)
        distance = read.size("relative_attention_max_distance", 128)
        return {
            "vocab_size": read.size("vocab_size", 32128),
            "dim": read.size("d_model", 512),
            "encoder": f"{layers}*(attention({own}) + {channels})",
            "decoder": f"{deep}*(attention({own}) + cross_attention({own}) + {channels})",
            "position": f"t5(heads={heads}, buckets={buckets}, max_distance={distance})",
            "norm": f"rmsnorm(eps={read.number('layer_norm_epsilon', 1e-6)})",
            "tie": read.flag("scale_decoder_outputs", read.flag("tie_word_embeddings", True)),
            "shared": True,
        }

    def settings(self, model: EncoderDecoder | Encoder) -> dict[str, Any]:
        """The settings of a model that has this family's positions."""
        whole = isinstance(model, EncoderDecoder)
        encoder = model.encoder if isinstance(model, EncoderDecoder) else model
        mixers = [module for module in encoder.modules() if isinstance(module, Attention)]
        readers = [module for module in model.modules() if isinstance(module, CrossAttention)]
        position = next(module for module in model.modules() if isinstance(module, T5))
        kind, hidden = channels_of(encoder)
        tie = bool(whole and model.config["tie"])
        return {
            "vocab_size": model.vocab_size,
            "d_model": model.dim,
            "d_kv": mixers[0].head_dim if mixers else 0,
            "d_ff": hidden,
            "num_layers": len(mixers),
            "num_decoder_layers": len(readers) if whole else len(mixers),
            "num_heads": mixers[0].heads if mixers else 0,
            "relative_attention_num_buckets": position.buckets,
            "relative_attention_max_distance": position.max_distance,
            "layer_norm_epsilon": getattr(encoder.norm, "eps", None),
            "feed_forward_proj": kind,
            "is_encoder_decoder": whole,
            "tie_word_embeddings": tie,
            "scale_decoder_outputs": tie,
        }

    def prefixes(self, model: EncoderDecoder | Encoder) -> Sequence[tuple[str, str]]:
        """Pairs of beginnings of names, ours and theirs."""
        if isinstance(model, Encoder):
            return [("embedding", "shared"), ("norm", "encoder.final_layer_norm"), *layer_names(model, "", "encoder")]
        found = [("encoder.embedding", "shared"), ("decoder.embedding", "shared"), ("decoder.head", "lm_head")]
        for side in ("encoder", "decoder"):
            found += [(f"{side}.norm", f"{side}.final_layer_norm")]
            found += layer_names(getattr(model, side), f"{side}.", side)
        return found

    def read(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of transformers by our names."""
        kept = {name: tensor for name, tensor in tensors.items() if name not in self.surplus}
        kept = join_rows(kept, GATED, JOINED)
        if isinstance(model, Encoder):
            return super().read(model, {name: t for name, t in kept.items() if not name.startswith(("decoder.", HEAD))})
        head = kept.pop(HEAD, kept.get(EMBEDDING))
        tied = model.config["tie"]  # type: ignore[index]
        if tied and head is not None and EMBEDDING in kept and not head.equal(kept[EMBEDDING]):
            raise InputError("these weights have an output matrix of their own, of which T5 scales no inputs")
        found = super().read(model, kept)
        if tied and LAST_NORM in found:
            found[LAST_NORM] = found[LAST_NORM] / math.sqrt(model.dim)  # type: ignore[arg-type]
        elif not tied and head is not None:
            found["decoder.head.weight"] = head
        return found

    def write(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights by transformers' names, each once."""
        tensors = super().write(model)
        inside = [name for name in tensors if JOINED in name]
        gated = [name for name in inside if len(tensors[name]) == 2 * tensors[name.replace(JOINED, ".wo.")].shape[1]]
        tensors = part_rows(tensors, gated, GATED, JOINED)
        if isinstance(model, EncoderDecoder) and model.config["tie"]:
            name = "decoder.final_layer_norm.weight"
            tensors[name] = tensors[name] * math.sqrt(model.dim)
        return tensors


def layer_names(model: Any, ours: str, side: str) -> list[tuple[str, str]]:
    """Our names and theirs inside of the layers of one half, whose names begin with `ours`."""
    kinds = (
        ["SelfAttention", "EncDecAttention", "DenseReluDense"]
        if side == "decoder"
        else ["SelfAttention", "DenseReluDense"]
    )
    found = []
    for place in range(len(model.stack.layers)):
        n, part = divmod(place, len(kinds))
        branch, theirs = f"{ours}stack.layers.{place}", f"{side}.block.{n}.layer.{part}"
        inside = {"up": "wi", "gate_up": "wi", "down": "wo"} if kinds[part] == "DenseReluDense" else PROJECTIONS
        found += [(f"{branch}.part.{own}", f"{theirs}.{kinds[part]}.{other}") for own, other in inside.items()]
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
        found += [(f"{branch}.norm", f"{theirs}.layer_norm"), (f"{branch}.part.position", table)]
    return found


def channels_of(encoder: nn.Module) -> tuple[str | None, int]:
    """Transformers' name for what the channels of an encoder are, and their width."""
    for module in encoder.modules():
        if isinstance(module, MLP):
            return module.activation, module.down.in_features
        if isinstance(module, SwiGLU):
            return "gated-gelu" if isinstance(module, GeGLU) else "gated-silu", module.down.in_features
    return None, 0
