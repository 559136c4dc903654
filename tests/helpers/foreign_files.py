"""Checkpoints in the published layouts, made on the spot with stand-ins for foreign classes."""

import argparse
import copyreg
import pickle
import sys
import types
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mebt import MeBT, MeBTConfig
from tokenizer import VQGAN, VQGANConfig
from tokenizer.perceptual import LPIPS

ARGS = {
    "n_codes": 13,
    "embedding_dim": 5,
    "n_hiddens": 3,
    "downsample": [2, 4, 4],
    "norm_type": "batch",
    "image_channels": 3,
}
GRID = (2, 3, 3)
VQGAN_CONFIG = VQGANConfig(
    codebook_size=13, embedding_dim=5, width=3, downsample=(2, 4, 4), norm="batch"
)
MEBT_CONFIG = MeBTConfig(
    layers=("encode", "process", "decode"),
    width=12,
    num_heads=2,
    num_latents=7,
    block="published",
    codebook_size=13,
    grid=GRID,
)
TRANSFORMER = {
    **{"n_layer": 3, "n_head": 2, "n_embd": 12, "sos_emb": 7, "block_size": 18},
    "mode": ["latent_enc", "latent_self", "latent_dec"],
    **{"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0},
}
CONFIG = {
    "model": {
        "params": TRANSFORMER,
        "mask": {"params": {"shape": list(GRID), "schedule": "linear"}},
        "vqvae": {"params": {"ckpt_path": "vqgan.ckpt"}},
    },
    "data": {"sequence_length": 4, "resolution": 12, "sample_every_n_frames": 3},
    "exp": {"exact_lr": 1e-4},
}


def vqgan_model(seed: int = 0) -> VQGAN:
    torch.manual_seed(seed)
    return VQGAN(VQGAN_CONFIG).eval()


def mebt_model(seed: int = 0) -> MeBT:
    torch.manual_seed(seed)
    return MeBT(MEBT_CONFIG).eval()


def _vqgan_key(name: str) -> str:
    """Our name -> the published one: the reverse of what the importer does, written apart."""
    part, *rest = name.split(".")
    leaf = rest[-1]
    if part == "codebook":
        return f"codebook.{ {'counts': 'N', 'sums': 'z_avg'}.get(leaf, leaf) }"
    if part in ("to_embedding", "from_embedding"):
        return f"{'pre' if part == 'to_embedding' else 'post'}_vq_conv.conv.{leaf}"
    match rest:
        case ["stem", _]:
            return f"{part}.conv_first.conv.{leaf}"
        case ["head", _]:
            return f"{part}.conv_last.conv.{leaf}"
        case ["norm", _]:
            return f"{part}.final_block.0.{leaf}"
        case ["stages", stage, "0", _]:
            kind = "down.conv" if part == "encoder" else "up.convt"
            return f"{part}.conv_blocks.{stage}.{kind}.{leaf}"
        case ["stages", stage, block, inner, _]:
            name = "res" if part == "encoder" else f"res{block}"
            conv = ".conv" if inner.startswith("conv") else ""
            return f"{part}.conv_blocks.{stage}.{name}.{inner}{conv}.{leaf}"
    raise AssertionError(name)


def vqgan_state(model: VQGAN) -> dict[str, Tensor]:
    """Published names -> tensors, with networks that only training needs."""
    state = model.state_dict()
    del state["codebook.initialized"]
    published = {_vqgan_key(name): tensor for name, tensor in state.items()}
    published["image_discriminator.model0.0.weight"] = torch.ones(2, 3, 4, 4)
    published["perceptual_model.lin0.model.1.weight"] = torch.ones(1, 2, 1, 1)
    return OrderedDict(published)


PLAIN = {
    "token_embedding.weight": "tok_emb.weight",
    "head.weight": "transformer.head.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
}
AXES = {"position_embedding": "pos_emb", "latents": "sos_emb", "mask_embedding": "mask_emb"}
"""Our tensors of fewer axes than the published ones."""


def _mebt_key(name: str) -> str:
    """Our name -> the published one."""
    if name in PLAIN or name in AXES:
        return {**PLAIN, **AXES}[name]
    inner = {"norm": "ln1", "norm_mlp": "ln2", "attention": "attn", "mlp": "mlp"}
    _, block, part, *rest = name.split(".")
    rest = ["proj" if word == "out" else word for word in rest]
    return ".".join(["transformer.blocks", block, inner[part], *rest])


def _mebt_tensor(name: str, tensor: Tensor) -> Tensor:
    return tensor.reshape(1, -1, tensor.shape[-1]).clone() if name in AXES else tensor


def mebt_state(model: MeBT, vqgan: VQGAN) -> dict[str, Tensor]:
    published = {f"first_stage_model.{k}": t for k, t in vqgan_state(vqgan).items()}
    published |= {_mebt_key(k): _mebt_tensor(k, t) for k, t in model.state_dict().items()}
    return OrderedDict(published)


def published_lpips(model: LPIPS) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Linear layers as the lpips package's file names them, the trunk as torchvision's does."""
    state = model.state_dict()
    linear = {f"lin{i}.model.1.weight": state[f"linear.{i}"] for i in range(5)}
    trunk = {k.replace("trunk.", "features."): v for k, v in state.items() if k[0] == "t"}
    return linear, {**trunk, "classifier.0.weight": torch.zeros(1)}


def published_adamw(model: MeBT, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with its parameters in the published order: by published name within four groups."""
    groups: list[dict[str, nn.Parameter]] = [{}, {}, {}, {}]
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.Linear) and name.endswith("weight"):
            group = 0
        elif name == "position_embedding":
            group = 3
        else:
            group = 1 if name in AXES or isinstance(owner, nn.Embedding) else 2
        groups[group][_mebt_key(name)] = parameter
    return torch.optim.AdamW(
        [
            {
                "params": [parameters[key] for key in sorted(parameters)],
                "weight_decay": 0.0 if index else weight_decay,
            }
            for index, parameters in enumerate(groups)
        ],
        lr=learning_rate,
        betas=(0.9, 0.95),
    )


def lightning_state(model: MeBT, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state as Lightning kept it, embeddings with their leading axes."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    kept = optimizer.state_dict()
    kept["state"] = {
        index: {
            key: value if key == "step" else _mebt_tensor(order[index], value)
            for key, value in entry.items()
        }
        for index, entry in kept["state"].items()
    }
    return kept


@contextmanager
def foreign_classes(*names: str) -> Iterator[list[type]]:
    """Lets pickle find classes of packages that are not installed, while a file is written."""
    made, before = [], dict(sys.modules)
    for name in names:
        module, _, word = name.rpartition(".")
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            part = ".".join(parts[:count])
            sys.modules.setdefault(part, types.ModuleType(part))
        cls = type(word, (), {"__module__": module})
        setattr(sys.modules[module], word, cls)
        made.append(cls)
    try:
        yield made
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]


def omegaconf_tree(value: Any, classes: list[type], parent: Any = None) -> Any:
    """Wraps plain values as omegaconf pickles them: `_content`, `_val`, and `_parent` upwards."""
    dict_config, list_config, any_node, metadata = classes
    if isinstance(value, dict):
        node = dict_config()
        content: Any = {k: omegaconf_tree(v, classes, node) for k, v in value.items()}
    elif isinstance(value, list):
        node = list_config()
        content = [omegaconf_tree(item, classes, node) for item in value]
    else:
        node = any_node()
        node.__dict__.update(_val=value, _parent=parent)
        return node
    about = metadata()
    about.__dict__.update(ref_type=Any, object_type=dict, resolver_cache=defaultdict(dict))
    node.__dict__.update(_metadata=about, _parent=parent, _content=content)
    return node


def write_vqgan(path: Path, state: dict[str, Tensor], **args: Any) -> Path:
    """A VQGAN as Lightning 1.7 wrote it."""
    content = {
        "global_step": 6,
        "state_dict": state,
        "hparams_name": "kwargs",
        "hyper_parameters": {"args": argparse.Namespace(**{**ARGS, **args})},
    }
    torch.save(content, path)
    return path


def write_old_vqgan(path: Path, state: dict[str, Tensor]) -> Path:
    """A VQGAN of before torch 1.6 and Lightning 1.5: no zip, callbacks keyed by their class."""
    name = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    with foreign_classes(name) as (callback,):
        content = {
            "state_dict": state,
            "callbacks": {callback: {"best_model_path": "x"}},
            "hyper_parameters": {"args": argparse.Namespace(**ARGS)},
        }
        torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


class PicklerOf2017(pickle._Pickler):
    """Pickles tensors and parameters as torch 0.1 did."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is nn.Parameter:
            return copyreg.__newobj__, (nn.Parameter, value.data), (True, False, OrderedDict())
        if type(value) is Tensor:
            place = (value.storage_offset(), tuple(value.shape), value.stride())
            return torch._utils._rebuild_tensor, (value._typed_storage(), *place)
        return NotImplemented


def write_of_2017(
    path: Path, state: dict[str, Tensor], pickler: type[PicklerOf2017] = PicklerOf2017
) -> Path:
    """A state dict of 2017: no zip, its values parameters."""
    parameters = OrderedDict((name, nn.Parameter(tensor)) for name, tensor in state.items())
    module = types.ModuleType("pickle_of_2017")
    module.Pickler, module.dump = pickler, pickle.dump
    torch.save(parameters, path, pickle_module=module, _use_new_zipfile_serialization=False)
    return path


def write_mebt(
    path: Path, state: dict[str, Tensor], config: dict[str, Any] | None = None, **more: Any
) -> Path:
    """A MeBT as Lightning 1.7 wrote it, its config in omegaconf's containers."""
    names = ("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode")
    with foreign_classes(
        *(f"omegaconf.{name}" for name in (*names, "base.ContainerMetadata"))
    ) as classes:
        root = omegaconf_tree(CONFIG if config is None else config, classes)
        model = root._content["model"]
        hyper_parameters = {
            "transformer_config": model._content["params"],
            "mask_config": model._content["mask"],
            "first_stage_config": model._content["vqvae"],
        }
        content = {"global_step": 4, "state_dict": state, "hyper_parameters": hyper_parameters}
        torch.save({**content, **more}, path)
    return path


def equal_weights(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    skipped = ("counts", "sums", "initialized", "num_batches_tracked")
    return all(torch.equal(first[k], second[k]) for k in first if not k.endswith(skipped))
