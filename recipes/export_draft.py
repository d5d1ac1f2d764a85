"""Draft directories in the official layout: config.json (the target's with the draft's fields) and mtp.* tensors alone."""
import json
import os

import torch

from draft_model import DraftConfig, draft_shapes, routing_biases
from export import encoded, read_header, stored_value, write_json, write_safetensors
from model import Config


def draft_tensors(config, draft, parameters, biases):
    """All stored tensors under their official names; stacked experts are split."""
    for name, (_, storage, _) in draft_shapes(config, draft).items():
        if ".experts." in name:
            for expert, value in enumerate(parameters[name]):
                yield from encoded(name.replace(".experts.", f".experts.{expert}."), value, storage)
        else:
            yield from encoded(name, parameters[name], storage)
    for name, value in biases.items():
        yield name, "F32", value.shape, value.cpu().contiguous().numpy().tobytes()


def export_draft(folder, target, config, draft, parameters, biases):
    """Writes the draft directory for the target directory; returns the number of weight bytes."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(target, "config.json"), encoding="utf-8") as f:
        fields = json.load(f)
    fields = {k: v for k, v in fields.items() if not k.startswith("dspark_")}
    fields["compress_ratios"] = fields["compress_ratios"][:fields["num_hidden_layers"]] + [0] * draft.stages
    write_json(os.path.join(folder, "config.json"), {**fields, **draft.fields()})
    return write_safetensors(os.path.join(folder, "model.safetensors"), draft_tensors(config, draft, parameters, biases))


def read_draft(folder):
    """The Config, the DraftConfig and the float32 tensors of a draft (or of a model with its own head), dequantised.

    Every mtp.* tensor must be one that the configuration asks for.
    """
    header, read = {}, {}
    for file in sorted(os.listdir(folder)):
        if file.startswith("model") and file.endswith(".safetensors"):
            part, data = read_header(os.path.join(folder, file))
            header.update({name: item for name, item in part.items() if name.startswith("mtp.")})
            read.update({name: data for name in part})
    path = os.path.join(folder, "config.json")
    config, draft = Config.load(path), DraftConfig.load(path, any("confidence_head" in name for name in header))
    used, out = set(), {}

    def value(name):
        used.update((name, name.replace(".weight", ".scale")))
        return stored_value(name, header, read[name])
    for name, (shape, _, _) in draft_shapes(config, draft).items():
        if ".experts." in name:
            out[name] = torch.stack([value(name.replace(".experts.", f".experts.{e}.")) for e in range(config.n_routed_experts)])
        else:
            out[name] = value(name).float()
        assert out[name].shape == torch.Size(shape), (name, out[name].shape, shape)
    out.update({name: value(name) for name in routing_biases(config, draft)})
    left = set(header) - used
    assert not left, f"tensors that the configuration does not ask for: {sorted(left)[:5]}"
    return config, draft, out
