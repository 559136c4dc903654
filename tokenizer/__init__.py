"""Frames <-> tokens: the 3D VQGAN of TATS, and tokenizers of others."""

from tokenizer.config import VQGANConfig
from tokenizer.pieces import decode_pieces
from tokenizer.vqgan import VQGAN, VQGANOutput
from tokenizer.weights import (
    Tokenizer,
    TokenizerConfig,
    identity,
    load_tokenizer,
    save_tokenizer,
    tokenizer_metadata,
    tokens_identity,
)

__all__ = [
    "VQGAN",
    "Tokenizer",
    "TokenizerConfig",
    "VQGANConfig",
    "VQGANOutput",
    "decode_pieces",
    "identity",
    "load_tokenizer",
    "save_tokenizer",
    "tokenizer_metadata",
    "tokens_identity",
]
