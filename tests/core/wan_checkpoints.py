"""Small checkpoints in other people's layouts, as their files are: names, shards, index, config.json."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import save_file

from wovr_core.planning.counting import WAN_VAE
from wovr_core.world_model.wan import Layout

CHANNELS, ACTIONS = 4, 3
SIZES = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "freq_dim": 16, "num_layers": 3}


def wan(**kwargs) -> WanTransformer3DModel:
    """Wan2.2-TI2V-5B's transformer as diffusers has it (METHOD section 9), or smaller."""
    published = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "in_channels": 48,
        "out_channels": 48,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 14336,
        "num_layers": 30,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "rope_max_seq_len": 1024,
    }
    return WanTransformer3DModel(**published | kwargs)


def small_wan(seed: int = 0, **kwargs) -> WanTransformer3DModel:
    """One that a test can compute with; no weight at a special value, for zeros hide mistakes."""
    torch.manual_seed(seed)
    made = {"patch_size": (1, 1, 1), "in_channels": CHANNELS, "out_channels": CHANNELS, "text_dim": 8}
    return shaken(wan(**made | SIZES | kwargs)).eval()


def wan_vae(**kwargs) -> AutoencoderKLWan:
    return AutoencoderKLWan(**WAN_VAE | kwargs)


def small_vae(**kwargs) -> AutoencoderKLWan:
    torch.manual_seed(0)
    statistics = {"latents_mean": [0.1, -0.1, 0.2, 0.0], "latents_std": [0.5, 1.0, 2.0, 1.5]}
    sizes = {"base_dim": 4, "decoder_base_dim": 4, "z_dim": CHANNELS, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return wan_vae(**sizes | statistics | kwargs).eval()


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def rlinf_channels(width: int, actions: int = ACTIONS) -> dict[str, torch.Tensor]:
    """The eight tensors of RLinf's action channels, by their names."""
    torch.manual_seed(1)
    shapes = {
        "1.0": (width, actions),
        "1.2": (width, width),
        "2.0": (4 * width, 4 * actions),
        "2.2": (width, 4 * width),
    }
    weights = {f"action_mlp{name}.weight": 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    return weights | {f"action_mlp{name}.bias": 0.3 * torch.randn(shape[0]) for name, shape in shapes.items()}


def wans_own_names(layers: int) -> dict[str, str]:
    """diffusers' name of each tensor of Wan's own layout, and Wan's."""
    ends = ("weight", "bias")
    own = [f"{name}.{end}" for name in ("patch_embedding", "head.head", "time_projection.1") for end in ends]
    own += [f"{name}.{i}.{end}" for name in ("time_embedding", "text_embedding") for i in (0, 2) for end in ends]
    own.append("head.modulation")
    for block in (f"blocks.{i}" for i in range(layers)):
        for kind in ("self_attn", "cross_attn"):
            own += [f"{block}.{kind}.{part}.{end}" for part in "qkvo" for end in ends]
            own += [f"{block}.{kind}.norm_{part}.weight" for part in "qk"]
        own += [f"{block}.norm3.{end}" for end in ends] + [f"{block}.ffn.{i}.{end}" for i in (0, 2) for end in ends]
        own.append(f"{block}.modulation")
    return convert_wan_transformer_to_diffusers({name: name for name in own})


def in_layout(model: WanTransformer3DModel, layout: Layout) -> dict[str, torch.Tensor]:
    """The tensors of a transformer as a checkpoint of this layout holds them."""
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    if layout is Layout.DIFFUSERS:
        return tensors
    names = wans_own_names(model.config.num_layers)
    own = {names[name]: value for name, value in tensors.items()}
    if layout is Layout.WAN:
        return own
    width = model.config.num_attention_heads * model.config.attention_head_dim
    without_words = {name: value for name, value in own.items() if not name.startswith("text_embedding")}
    return without_words | rlinf_channels(width)


def write_checkpoint(folder: Path, model: WanTransformer3DModel, layout: Layout, *, shards: int = 2) -> Path:
    """A transformer's folder; `transformer` inside it in diffusers' layout, and the VAE beside it."""
    where = folder / "transformer" if layout is Layout.DIFFUSERS else folder
    where.mkdir(parents=True)
    tensors = in_layout(model, layout)
    names = sorted(tensors)
    files = {f"part-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)}
    for file, inside in files.items():
        save_file({name: tensors[name] for name in inside}, where / file)
    if shards > 1:
        index = {"weight_map": {name: file for file, inside in files.items() for name in inside}}
        (where / "model.safetensors.index.json").write_text(json.dumps(index))
    heads = {"attention_head_dim": model.config.attention_head_dim, "num_heads": model.config.num_attention_heads}
    (where / "config.json").write_text(json.dumps(heads))
    write_vae(folder / "vae", small_vae())
    return folder


def write_vae(folder: Path, vae: AutoencoderKLWan) -> Path:
    vae.save_pretrained(folder, safe_serialization=True)
    return folder


def sparse_checkpoint(folder: Path, layout: Layout) -> Path:
    """The published five billion weights in three shards and the VAE's folder, in bfloat16: headers, and holes."""
    where = folder / "transformer" if layout is Layout.DIFFUSERS else folder
    with torch.device("meta"):
        tensors = {n: v for n, v in in_layout(wan(), layout).items() if "mlp" not in n}
        tensors |= rlinf_channels(3072, 7) if layout is Layout.RLINF else {}
        vae = wan_vae()
    names = sorted(tensors)
    files = {f"diffusion_pytorch_model-{i + 1:05}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, inside in files.items():
        write_holes(where / file, {name: tensors[name] for name in inside})
    index = {"weight_map": {name: file for file, inside in files.items() for name in inside}}
    (where / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    write_holes(folder / "vae" / "diffusion_pytorch_model.safetensors", vae.state_dict())
    vae.save_config(folder / "vae")
    return folder


def write_holes(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file in bfloat16 whose header is as it should be and whose numbers take no room on the disk."""
    header, end = {}, 0
    for name, value in tensors.items():
        size = 2 * value.numel()
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + end)
