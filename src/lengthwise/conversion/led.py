"""LED, the Longformer encoder-decoder, as allenai/led-base-16384."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lengthwise.channels.mlp import MLP
from lengthwise.conversion.family import Family, Reader
from lengthwise.conversion.longformer import ATTENTION, encoder_layers, layer_settings, rows_of_positions, windows
from lengthwise.errors import InputError
from lengthwise.mixers.cross_attention import CrossAttention
from lengthwise.mixers.longformer import Longformer
from lengthwise.models.encoder_decoder import EncoderDecoder

BIAS = "final_logits_bias"
"""What transformers adds to the logits; it isn't trained, and always 0."""


class LEDFamily(Family):
    """LED: global tokens of the source are those that its layout marks. It is written as LEDForConditionalGeneration,
    which LEDModel reads too."""

    model_type = "led"
    architectures: ClassVar = {"LEDForConditionalGeneration": EncoderDecoder, "LEDModel": EncoderDecoder}
    part = Longformer
    only: ClassVar = {"activation_function": "gelu", "tie_word_embeddings": True}
    surplus: ClassVar = ("led.encoder.embed_tokens.weight", BIAS)

    def translate(self, read: Reader) -> dict[str, Any]:
        """The arguments of the model."""
        heads, hidden = read.size("encoder_attention_heads", 16), read.size("encoder_ffn_dim", 4096)
        own = f"heads={read.size('decoder_attention_heads', 16)}, bias=true"
        layer = f"attention({own}) + cross_attention({own}) + mlp(hidden={read.size('decoder_ffn_dim', 4096)})"
        return {
            "vocab_size": read.size("vocab_size", 50265),
            "dim": read.size("d_model", 1024),
            "encoder": encoder_layers(windows(read, read.size("encoder_layers", 12)), heads, hidden),
            "decoder": f"layernorm + post_norm({read.size('decoder_layers', 12)}*({layer}))",
            "position": f"learned(length={read.size('max_decoder_position_embeddings', 1024)})",
            "source_position": f"learned(length={read.size('max_encoder_position_embeddings', 16384)})",
            "norm": "layernorm",
            "tie": True,
        }

    def settings(self, model: EncoderDecoder) -> dict[str, Any]:
        """The settings of a model that has this family's mixer."""
        readers = [module for module in model.decoder.modules() if isinstance(module, CrossAttention)]
        channels = next((module for module in model.decoder.modules() if isinstance(module, MLP)), None)
        return {
            "vocab_size": model.vocab_size,
            "d_model": model.dim,
            "max_encoder_position_embeddings": rows_of_positions(model.encoder),
            "max_decoder_position_embeddings": rows_of_positions(model.decoder),
            "decoder_layers": len(readers),
            "decoder_attention_heads": readers[0].heads,
            "decoder_ffn_dim": 0 if channels is None else channels.up.out_features,
            **layer_settings(model.encoder, "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
        }

    def prefixes(self, model: EncoderDecoder) -> Sequence[tuple[str, str]]:
        """Pairs of beginnings of names, ours and theirs."""
        found = [
            ("encoder.embedding", "led.shared"),
            ("decoder.embedding", "led.decoder.embed_tokens"),
            ("decoder.head", "lm_head"),
        ]
        for side in ("encoder", "decoder"):
            found += [
                (f"{side}.position", f"led.{side}.embed_positions"),
                (f"{side}.stack.layers.0.norm", f"led.{side}.layernorm_embedding"),
            ]
        layers = [("encoder", n, self.encoder_parts()) for n in range(len(model.encoder.stack.layers[1].layers) // 2)]  # type: ignore[union-attr, arg-type]
        layers += [("decoder", n, self.decoder_parts()) for n in range(len(model.decoder.stack.layers[1].layers) // 3)]  # type: ignore[union-attr, arg-type]
        for side, n, parts in layers:
            for place, names in enumerate(parts):
                branch = f"{side}.stack.layers.1.layers.{len(parts) * n + place}"
                found += [(f"{branch}.{ours}", f"led.{side}.layers.{n}.{theirs}") for ours, theirs in names.items()]
        return found

    @staticmethod
    def encoder_parts() -> list[dict[str, str]]:
        """Our names and theirs inside of the branches of an encoder's layer."""
        attention = {f"part.{ours}": f"self_attn.longformer_self_attn.{theirs}" for ours, theirs in ATTENTION.items()}
        return [{**attention, "part.o_proj": "self_attn.output", "norm": "self_attn_layer_norm"}, CHANNELS]

    @staticmethod
    def decoder_parts() -> list[dict[str, str]]:
        """Our names and theirs inside of the branches of a decoder's layer."""
        projections = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"}
        return [
            *(
                {"norm": f"{kind}_layer_norm", **{f"part.{o}": f"{kind}.{t}" for o, t in projections.items()}}
                for kind in ("self_attn", "encoder_attn")
            ),
            CHANNELS,
        ]

    def read(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of transformers by our names."""
        if BIAS in tensors and tensors[BIAS].any():
            raise InputError(f"these weights have a {BIAS} that isn't 0, which lengthwise has no counterpart of")
        outside = ("led.", "lm_head.", BIAS)
        full = {name if name.startswith(outside) else f"led.{name}": tensor for name, tensor in tensors.items()}
        return super().read(model, {name: tensor for name, tensor in full.items() if name not in self.surplus})


CHANNELS = {"part.up": "fc1", "part.down": "fc2", "norm": "final_layer_norm"}
"""Our names and theirs inside of the last branch of a layer."""
