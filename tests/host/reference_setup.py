"""Paint-by-Example's mapper with random weights: the authors' names, diffusers' names, and the authors' arithmetic."""

import torch
from torch.nn.functional import gelu, layer_norm

WIDTH, CONTEXT, BLOCKS = 32, 128, 5


def original_weights():
    """A state dict as the authors' checkpoint has it."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    weights = {"learnable_vector": draw(1, 1, CONTEXT), "proj_out.weight": draw(CONTEXT, WIDTH)}
    weights |= {"proj_out.bias": draw(CONTEXT)}
    weights |= {f"cond_stage_model.final_ln.{kind}": draw(WIDTH) for kind in ("weight", "bias")}
    shapes = {"attn.c_qkv": (3, 1), "attn.c_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}
    for number in range(BLOCKS):
        block = f"cond_stage_model.mapper.resblocks.{number}"
        for name, (out, inputs) in shapes.items():
            weights[f"{block}.{name}.weight"] = draw(out * WIDTH, inputs * WIDTH)
            weights[f"{block}.{name}.bias"] = draw(out * WIDTH)
        for norm in ("ln_1", "ln_2"):
            weights |= {f"{block}.{norm}.{kind}": draw(WIDTH) for kind in ("weight", "bias")}
    return weights


def reference_token(weights, pooled):
    """The authors' transformer over a sequence of one token, attention written out."""
    double = {key: value.double() for key, value in weights.items()}

    def norm(x, name):
        return layer_norm(x, (WIDTH,), double[f"{name}.weight"], double[f"{name}.bias"])

    def linear(x, name):
        return x @ double[f"{name}.weight"].T + double[f"{name}.bias"]

    x = pooled.double()[:, None]
    for number in range(BLOCKS):
        block = f"cond_stage_model.mapper.resblocks.{number}"
        q, k, v = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_qkv").split(WIDTH, -1)
        attended = (q @ k.transpose(1, 2) / WIDTH**0.5).softmax(-1) @ v
        x = x + linear(attended, f"{block}.attn.c_proj")
        x = x + linear(gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")), f"{block}.mlp.c_proj")
    return linear(norm(x, "cond_stage_model.final_ln"), "proj_out")


def as_diffusers(weights):
    """The same weights under diffusers' names."""
    names = {"ln_1": "norm1", "ln_2": "norm3", "attn.c_proj": "attn1.to_out.0"}
    names |= {"mlp.c_fc": "ff.net.0.proj", "mlp.c_proj": "ff.net.2"}
    renamed = {"uncond_vector": weights["learnable_vector"]}
    for key, value in weights.items():
        if key.startswith("proj_out"):
            renamed[key] = value
        elif "final_ln" in key:
            renamed[key.replace("cond_stage_model.final_ln", "final_layer_norm")] = value
        elif "resblocks" in key:
            _, _, _, number, *part, kind = key.split(".")
            if part == ["attn", "c_qkv"]:
                for name, own in zip("qkv", value.chunk(3), strict=True):
                    renamed[f"mapper.blocks.{number}.attn1.to_{name}.{kind}"] = own
            else:
                renamed[f"mapper.blocks.{number}.{names['.'.join(part)]}.{kind}"] = value
    return renamed
