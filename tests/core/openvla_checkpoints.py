"""OpenVLA-OFT's published names and shapes, a small checkpoint of the same layout, and what it must answer.

The reference is written from the papers' equations and from what RLinf documents, with the tensors alone: no class of
the package and none of transformers.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, processors
from torch import Tensor
from torch.nn import functional as F

PUBLISHED = {  # sizes of openvla-7b, which every OpenVLA-OFT has too
    "dino": {"width": 1024, "layers": 24, "hidden": 4096, "patch": 14, "patches": 256, "registers": 4},
    "siglip": {"width": 1152, "layers": 27, "hidden": 4304, "patch": 14, "patches": 256},
    "llama": {"width": 4096, "layers": 32, "hidden": 11008, "rows": 32064},
}
SMALL = {
    "dino": {"width": 32, "layers": 3, "hidden": 24, "patch": 14, "patches": 4, "registers": 4},
    "siglip": {"width": 48, "layers": 3, "hidden": 40, "patch": 14, "patches": 4},
    "llama": {"width": 32, "layers": 2, "hidden": 64, "rows": 384},
}
VOCABULARY, LLAMA_HEADS, TOWER_HEADS = (
    320,
    4,
    16,
)  # of the small one; both towers of the published one have 16 heads too
ACTIONS, CHUNK, SIDE, FRAME = 7, 8, 28, 32
STATISTICS = {
    "q01": [-1.0, -0.6, -0.5, -0.2, -0.3, -0.25, 0.0],
    "q99": [1.0, 0.8, 0.9, 0.15, 0.35, 0.3, 1.0],
    "mask": [True] * 6 + [False],
}
KEY = "libero_spatial_no_noops"


def names(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, tuple[int, ...]]:
    """Every tensor of `model.safetensors.index.json`, by pattern."""
    dino, siglip, llama = (sizes[part] for part in ("dino", "siglip", "llama"))
    every: dict[str, tuple[int, ...]] = {}
    for prefix, tower in (("featurizer", dino), ("fused_featurizer", siglip)):
        every |= {f"vision_backbone.{prefix}.{name}": shape for name, shape in _tower(**tower).items()}
    fused, width, hidden = dino["width"] + siglip["width"], llama["width"], llama["hidden"]
    every |= _linear("projector.fc1", fused, 4 * fused)
    every |= _linear("projector.fc2", 4 * fused, width)
    every |= _linear("projector.fc3", width, width)
    model = "language_model.model"
    every |= {f"{model}.embed_tokens.weight": (llama["rows"], width), f"{model}.norm.weight": (width,)}
    every["language_model.lm_head.weight"] = (llama["rows"], width)
    for i in range(llama["layers"]):
        layer = f"{model}.layers.{i}"
        every |= {f"{layer}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        every |= {f"{layer}.mlp.{name}_proj.weight": (hidden, width) for name in ("gate", "up")}
        every[f"{layer}.mlp.down_proj.weight"] = (width, hidden)
        every |= {f"{layer}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return every


def _tower(width: int, layers: int, hidden: int, patch: int, patches: int, registers: int = 0) -> dict[str, Any]:
    """timm's names: vit_large_patch14_reg4_dinov2.lvd142m, with layer scales renamed, or vit_so400m_patch14_siglip."""
    every: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (width, 3, patch, patch)}
    every |= {"patch_embed.proj.bias": (width,), "pos_embed": (1, patches, width)} | _norm("norm", width)
    if registers:
        every |= {"cls_token": (1, 1, width), "reg_token": (1, registers, width)}
    else:
        every |= {"attn_pool.latent": (1, 1, width)} | _norm("attn_pool.norm", width)
        every |= _linear("attn_pool.q", width, width) | _linear("attn_pool.kv", width, 2 * width)
        every |= _linear("attn_pool.proj", width, width) | _mlp("attn_pool.mlp", width, hidden)
    for i in range(layers):
        block = f"blocks.{i}"
        every |= _norm(f"{block}.norm1", width) | _norm(f"{block}.norm2", width) | _mlp(f"{block}.mlp", width, hidden)
        every |= _linear(f"{block}.attn.qkv", width, 3 * width) | _linear(f"{block}.attn.proj", width, width)
        if registers:
            every |= {f"{block}.ls{j}.scale_factor": (width,) for j in (1, 2)}
    return every


def _linear(name: str, before: int, after: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _mlp(name: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return _linear(f"{name}.fc1", width, hidden) | _linear(f"{name}.fc2", hidden, width)


def config(sizes: Mapping[str, Mapping[str, int]], **changes: Any) -> dict[str, Any]:
    """config.json, with the keys that the published one has."""
    llama = sizes["llama"]
    text = {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": llama["rows"]}
    if sizes is not PUBLISHED:  # which is silent about them
        text |= {"hidden_size": llama["width"], "intermediate_size": llama["hidden"], "pad_token_id": VOCABULARY}
        text |= {"num_hidden_layers": llama["layers"], "num_attention_heads": LLAMA_HEADS}
        text |= {"num_key_value_heads": LLAMA_HEADS}
    return {
        "arch_specifier": "no-align+fused-gelu-mlp",
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
        "image_sizes": [224, 224],
        "model_type": "openvla",
        "n_action_bins": 256,
        "norm_stats": {"bridge_orig": {"action": STATISTICS}},
        "pad_to_multiple_of": 64,
        "pad_token_id": text["pad_token_id"],
        "text_config": text,
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "use_fused_vision_backbone": True,
    } | changes


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Random weights of the small one; none at a special value, and logits that differ."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
        value = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            return 0.1 * value + (1.0 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) else 0.0)
        return value / math.sqrt(math.prod(shape[1:])) * (4 if "lm_head" in name else 1)

    made = {name: drawn(name, shape) for name, shape in names(SMALL).items()}
    return {n: value + 1 if n.endswith(("layernorm.weight", "scale_factor")) else value for n, value in made.items()}


def tokenizer() -> Tokenizer:
    """Of Llama's kind: pieces of words, a space is ▁, and a token stands before all others; of single letters here."""
    known = ["<unk>", "<s>", "</s>", "▁", *"\n?:abcdefghijklmnopqrstuvwxyzIOW"]
    filled = known + [f"<{i}>" for i in range(VOCABULARY - len(known))]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(filled)}, [], unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def write(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """The small checkpoint, in two shards with an index."""
    folder.mkdir(parents=True)
    every = sorted(tensors(seed).items())
    shards = {"model-00001-of-00002.safetensors": every[::2], "model-00002-of-00002.safetensors": every[1::2]}
    for file, part in shards.items():
        save_file(dict(part), folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name, _ in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(SMALL, **changes)))
    (folder / "dataset_statistics.json").write_text(json.dumps({KEY: {"action": STATISTICS, "proprio": {}}}))
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


# -------------------------------------------------------------------------------------------- what it must answer


def prompt_ids(instruction: str) -> list[int]:
    known = tokenizer().get_vocab()
    text = f"In: What action should the robot take to {instruction.lower()}?\nOut: "
    return [1, *(known[letter] for letter in "▁" + text.replace(" ", "▁"))]


def crop_and_resize(image: np.ndarray) -> np.ndarray:
    """TensorFlow's, of one box in the middle with 0.9 of the area, to the same size: (h, w, 3) of [0, 255]."""
    side, part = len(image), math.sqrt(0.9)
    low = (1 - part) / 2
    at = low * (side - 1) + np.arange(side) * (part * (side - 1)) / (side - 1)
    first = np.minimum(np.floor(at).astype(int), side - 2)
    rest = (at - first)[:, None]
    rows = image[first] * (1 - rest[..., None]) + image[first + 1] * rest[..., None]
    return rows[:, first] * (1 - rest) + rows[:, first + 1] * rest


def tower(weights: Mapping[str, Tensor], prefix: str, picture: Tensor) -> Tensor:
    """Features (patches, width) after the last block but one of a ViT, of one normalised picture (3, h, w)."""
    w = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    x = F.conv2d(picture[None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)[0].flatten(1).T
    x = x + w["pos_embed"][0]
    extra = 0
    if "cls_token" in w:
        x = torch.cat([w["cls_token"][0], w["reg_token"][0], x])
        extra = 1 + w["reg_token"].shape[1]
    width = x.shape[-1]
    last = max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    for i in range(last):
        b = {n.removeprefix(f"blocks.{i}."): value for n, value in w.items() if n.startswith(f"blocks.{i}.")}
        h = F.layer_norm(x, (width,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        qkv = h @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
        q, k, v = (part.view(len(x), TOWER_HEADS, -1).transpose(0, 1) for part in qkv.split(width, -1))
        seen = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        out = seen.transpose(0, 1).reshape(len(x), width) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        x = x + out * b.get("ls1.scale_factor", 1.0)
        h = F.layer_norm(x, (width,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        h = F.gelu(h @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]) @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
        x = x + h * b.get("ls2.scale_factor", 1.0)
    return x[extra:]


def llama(weights: Mapping[str, Tensor], x: Tensor, *, causal: bool = False) -> Tensor:
    """Last hidden states (n, width) of embeddings (n, width): every one sees every other, unless causal."""
    n, width = x.shape
    head = width // LLAMA_HEADS
    angle = torch.arange(n)[:, None] / 10_000 ** (torch.arange(0, head, 2) / head)
    cos, sin = (torch.cat([part, part], -1) for part in (angle.cos(), angle.sin()))

    def norm(name: str, value: Tensor) -> Tensor:
        return value / (value.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"language_model.model.{name}"]

    def turned(value: Tensor) -> Tensor:
        a, b = value.chunk(2, -1)
        return value * cos + torch.cat([-b, a], -1) * sin

    count = len({name.split(".")[3] for name in weights if name.startswith("language_model.model.layers.")})
    for i in range(count):
        w = {part: weights[f"language_model.model.layers.{i}.self_attn.{part}_proj.weight"] for part in "qkvo"}
        h = norm(f"layers.{i}.input_layernorm.weight", x)
        q, k, v = ((h @ w[part].T).view(n, LLAMA_HEADS, head).transpose(0, 1) for part in "qkv")
        score = turned(q) @ turned(k).transpose(1, 2) / math.sqrt(head)
        if causal:
            score = score.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)
        x = x + (score.softmax(-1) @ v).transpose(0, 1).reshape(n, width) @ w["o"].T
        m = {
            part: weights[f"language_model.model.layers.{i}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down")
        }
        h = norm(f"layers.{i}.post_attention_layernorm.weight", x)
        x = x + (F.silu(h @ m["gate"].T) * (h @ m["up"].T)) @ m["down"].T
    return norm("norm.weight", x)


def action_logits(
    weights: Mapping[str, Tensor], picture: Tensor, instruction: str, *, stop: bool = True, causal: bool = False
) -> Tensor:
    """Logits (56, 256) of token ids 64 to 319, the last 256, from a picture (3, h, w) in [0, 1]."""
    means = torch.tensor([[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]])[..., None, None]
    stds = torch.tensor([[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]])[..., None, None]
    prefixes = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
    seen = [tower(weights, prefix, (picture - m) / s) for prefix, m, s in zip(prefixes, means, stds, strict=True)]
    patches = torch.cat(seen, -1)
    for i in (1, 2, 3):
        patches = patches if i == 1 else F.gelu(patches)
        patches = patches @ weights[f"projector.fc{i}.weight"].T + weights[f"projector.fc{i}.bias"]
    table = weights["language_model.model.embed_tokens.weight"]
    words = table[prompt_ids(instruction)]
    zeros = torch.zeros(ACTIONS * CHUNK, table.shape[1])
    x = llama(weights, torch.cat([words[:1], patches, words[1:], zeros, table[[2] * stop]]), causal=causal)
    at = len(patches) + len(words) - 1
    logits = x[at : at + ACTIONS * CHUNK] @ weights["language_model.lm_head.weight"].T
    return logits[:, VOCABULARY - 256 : VOCABULARY]
