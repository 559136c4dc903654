"""Frames <-> tokens: the 3D VQGAN of TATS."""

from tokenizer.config import VQGANConfig
from tokenizer.vqgan import VQGAN, VQGANOutput
from tokenizer.weights import identity, load_tokenizer, save_tokenizer, tokenizer_metadata

__all__ = [
    "VQGAN",
    "VQGANConfig",
    "VQGANOutput",
    "identity",
    "load_tokenizer",
    "save_tokenizer",
    "tokenizer_metadata",
]
