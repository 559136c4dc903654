"""Cosmos's discrete video tokenizer (NVIDIA, arXiv 2501.03575), read from published weights."""

from tokenizer.cosmos.config import CosmosConfig
from tokenizer.cosmos.network import Cosmos

__all__ = ["Cosmos", "CosmosConfig"]
