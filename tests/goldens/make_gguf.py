#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["gguf==0.19.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""GGUF as llama.cpp's own Python package writes and reads it.

    python make_gguf.py [--out DIR]

`blocks.safetensors`: for each type, some blocks (`<type>.bytes`) and their values (`<type>.values`).
`llama.gguf`: the model of `llama/`, with rows of queries and keys in llama.cpp's order, most of it in Q8_0.
`llama.safetensors`: its tensors under Hugging Face's names, as that package dequantises them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
WRITTEN = [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q8_0]
# The package reads these and does not write them: bytes are drawn, scales (at these places in a block) made finite.
READ_ONLY = {Type.Q4_K: (144, [0, 2]), Type.Q6_K: (210, [208])}

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def blocks(rng):
    out = {}
    for t in WRITTEN:
        raw = quantize(rng.standard_normal((4, 256), dtype=np.float32), t)
        out[t] = raw.view(np.uint8).reshape(-1)
    for t, (size, scales) in READ_ONLY.items():
        raw = rng.integers(0, 256, (6, size), dtype=np.uint8)
        for at in scales:
            raw[:, at : at + 2] = rng.standard_normal((6, 1)).astype(np.float16).view(np.uint8)
        out[t] = raw.reshape(-1)
    named = {}
    for t, raw in out.items():
        named[f"{t.name}.bytes"] = raw
        values = raw.view({Type.F32: np.float32, Type.F16: np.float16}.get(t, np.uint8))
        rows = values if values.dtype != np.uint8 else raw.reshape(1, -1)
        named[f"{t.name}.values"] = dequantize(rows, t).astype(np.float32).reshape(-1)
    return named


def permute(w, heads):
    """Halves of a head's rows alternate, as llama.cpp's rotation wants them."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def gguf_name(name):
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight"}[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def model(out):
    config = json.loads((HERE / "llama/config.json").read_text())
    tensors = load_file(HERE / "llama/model.safetensors")
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    w = GGUFWriter(out / "llama.gguf", "llama")
    w.add_block_count(config["num_hidden_layers"])
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_rope_freq_base(config.get("rope_theta", 10000.0))
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(["a", "b", "ab"] + [f"<{i}>" for i in range(3, config["vocab_size"])])
    w.add_token_merges(["a b"])
    w.add_eos_token_id(3)
    w.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    values = {}
    for name, value in sorted(tensors.items()):
        heads_of = {"q_proj": heads, "k_proj": kv}.get(name.split(".")[-2])
        stored = permute(value, heads_of) if heads_of else value
        t = Type.Q8_0 if value.ndim == 2 and value.shape[1] % 32 == 0 else Type.F32
        raw = quantize(stored, t)
        w.add_tensor(gguf_name(name), raw, raw_dtype=t)
        values[name] = dequantize(quantize(value, t), t).astype(np.float32).reshape(value.shape)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    save_file(values, out / "llama.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "gguf")
    out = parser.parse_args().out
    save_file(blocks(np.random.default_rng(0)), out / "blocks.safetensors")
    model(out)


if __name__ == "__main__":
    main()
