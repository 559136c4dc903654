"""VidTok's causal tokenizers with levels (Microsoft, arXiv 2412.13061), of published weights."""

from tokenizer.vidtok.config import VidTokConfig
from tokenizer.vidtok.network import VidTok

__all__ = ["VidTok", "VidTokConfig"]
