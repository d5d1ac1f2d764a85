#!/usr/bin/env python3
"""Writes a training checkpoint as a model directory in the official layout.

usage: export.py CHECKPOINT.pt OUT_DIR [--tokenizer tokenizer.json]

FP8 E4M3 weights with 128x128 UE8M0 scales, packed MXFP4 experts with 1x32 scales, BF16, F32 and I64, in one
model.safetensors; config.json, generation_config.json and tokenizer_config.json with the official fields. The model has
no draft head: num_nextn_predict_layers is 0 and compress_ratios has exactly num_hidden_layers entries.
"""
import argparse
import json
import os
import shutil
import struct
from dataclasses import asdict

import torch

import quant
from model import Config, shapes

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"


def encoded(name, value, storage):
    """Yields (name, dtype, shape, bytes) of the one or two stored tensors of a float32 parameter."""
    value = value.detach().float().cpu().contiguous()
    if storage == "f32":
        yield name, "F32", value.shape, value.numpy().tobytes()
    elif storage == "bf16":
        yield name, "BF16", value.shape, value.bfloat16().view(torch.int16).numpy().tobytes()
    elif storage == "fp8":
        values, scale = quant.fp8_weight(value)
        yield name, "F8_E4M3", value.shape, quant.e4m3_bytes(values).numpy().tobytes()
        yield name.replace(".weight", ".scale"), "F8_E8M0", scale.shape, quant.e8m0_bytes(scale).numpy().tobytes()
    elif storage == "fp4":
        values, scale = quant.fp4_weight(value)
        codes = quant.e2m1_codes(values)
        packed = codes[..., 0::2] | (codes[..., 1::2] << 4)                     # low nibble first
        yield name, "I8", packed.shape, packed.contiguous().numpy().tobytes()
        yield name.replace(".weight", ".scale"), "F8_E8M0", scale.shape, quant.e8m0_bytes(scale).numpy().tobytes()


def tensors(config, parameters, buffers):
    """All stored tensors under their official names; stacked experts are split."""
    for name, (_, storage, _) in shapes(config).items():
        if ".experts." in name:
            for expert, value in enumerate(parameters[name]):
                yield from encoded(name.replace(".experts.", f".experts.{expert}."), value, storage)
        else:
            yield from encoded(name, parameters[name], storage)
    for name, value in buffers.items():
        value = value.cpu().contiguous()
        yield name, "I64" if value.dtype == torch.int64 else "F32", value.shape, value.numpy().tobytes()


def write_safetensors(path, items):
    """items: (name, dtype, shape, bytes); the widest dtypes first, so that every tensor is aligned for its own."""
    header, offset, blobs = {"__metadata__": {"format": "pt"}}, 0, []
    width = {"I64": 8, "F32": 4, "BF16": 2}
    for name, dtype, shape, data in sorted(items, key=lambda item: (-width.get(item[1], 1), item[0])):
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        blobs.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for data in blobs:
            f.write(data)
    return offset


def read_header(path):
    """The header of a safetensors file and its data."""
    with open(path, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        return {name: item for name, item in header.items() if name != "__metadata__"}, f.read()


def stored_value(name, header, data):
    """One tensor, dequantised: float32, BF16 or I64."""
    def raw(name, dtype):
        start, end = header[name]["data_offsets"]
        return torch.frombuffer(bytearray(data[start:end]), dtype=dtype)

    def scales(name):
        return torch.ldexp(torch.ones(()), raw(name, torch.uint8).int() - 127).view(header[name]["shape"])

    form, shape = header[name]["dtype"], header[name]["shape"]
    scale = name.replace(".weight", ".scale")
    if form == "F8_E4M3":
        code = raw(name, torch.uint8).int()
        mantissa, exponent = code & 7, (code >> 3) & 15
        magnitude = torch.where(exponent == 0, mantissa * 2.0 ** -9, torch.ldexp((8 + mantissa).float(), exponent - 10))
        grid = scales(scale).repeat_interleave(128, 0).repeat_interleave(128, 1)
        return torch.where(code >= 128, -magnitude, magnitude).view(shape) * grid[:shape[0], :shape[1]]
    if form == "I8":
        code = raw(name, torch.uint8).view(shape)
        code = torch.stack((code & 15, code >> 4), -1).flatten(-2).long()
        levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        return torch.cat((levels, -levels))[code] * scales(scale).repeat_interleave(32, -1)
    return raw(name, {"BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}[form]).view(shape)


def read_exported(folder):
    """The Config and the float32 tensors of a model directory, dequantised, under this program's names.

    The weights may be in several files (model-*.safetensors); draft heads (mtp.*) are left out.
    """
    found = {}
    for file in sorted(os.listdir(folder)):
        if file.startswith("model") and file.endswith(".safetensors"):
            header, data = read_header(os.path.join(folder, file))
            found.update({name: (header, data) for name in header if not name.startswith("mtp.")})

    def value(name):
        return stored_value(name, *found[name])
    config, out = Config.load(os.path.join(folder, "config.json")), {}
    for name in shapes(config):
        if ".experts." in name:
            out[name] = torch.stack([value(name.replace(".experts.", f".experts.{e}.")) for e in range(config.n_routed_experts)])
        else:
            out[name] = value(name).float()
    out.update({name: value(name) for name in found if "gate.bias" in name or "tid2eid" in name})
    return config, out


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def export(config, parameters, buffers, out, tokenizer=None):
    """Writes the model directory; returns the number of weight bytes."""
    os.makedirs(out, exist_ok=True)
    size = write_safetensors(os.path.join(out, "model.safetensors"), tensors(config, parameters, buffers))
    write_json(os.path.join(out, "config.json"), {
        "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", **asdict(config),
        "num_key_value_heads": 1, "scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "norm_topk_prob": True,
        "hidden_act": "silu", "num_nextn_predict_layers": 0, "tie_word_embeddings": False, "attention_bias": False,
        "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.02, "use_cache": True,
        "torch_dtype": "bfloat16", "expert_dtype": "fp4",
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}})
    write_json(os.path.join(out, "generation_config.json"), {
        "_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 1.0,
        "top_p": 1.0})
    write_json(os.path.join(out, "tokenizer_config.json"), {
        "add_bos_token": False, "add_eos_token": False, "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
        "model_max_length": config.max_position_embeddings, "tokenizer_class": "PreTrainedTokenizerFast"})
    if tokenizer:
        shutil.copyfile(tokenizer, os.path.join(out, "tokenizer.json"))
    return size


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("--tokenizer")
    args = parser.parse_args()
    state = torch.load(args.checkpoint, map_location="cpu")
    size = export(Config(**state["config"]), state["parameters"], state["buffers"], args.out, args.tokenizer)
    print(f"{args.out}: {size / 1e6:.2f} MB of weights")


if __name__ == "__main__":
    main()
