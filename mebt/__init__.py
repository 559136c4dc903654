"""Tokens <-> tokens: the memory-efficient bidirectional transformer and its sampler."""

from mebt.config import MeBTConfig, MeBTShape
from mebt.decoding import SampleConfig, bootstrap, draft, draft_groups, revise, sample
from mebt.model import MeBT
from mebt.weights import load_model, model_metadata, save_model, weights_identity

__all__ = [
    "MeBT",
    "MeBTConfig",
    "MeBTShape",
    "SampleConfig",
    "bootstrap",
    "draft",
    "draft_groups",
    "load_model",
    "model_metadata",
    "revise",
    "sample",
    "save_model",
    "weights_identity",
]
