"""Tokens <-> tokens: the memory-efficient bidirectional transformer and its sampler."""

from mebt.config import MeBTConfig, MeBTShape
from mebt.draft_revise import bootstrap, draft, remask, revise
from mebt.editing import edit
from mebt.kv_cache import CachedPredictor
from mebt.model import MeBT
from mebt.sampling import SampleConfig, sample, sample_frames
from mebt.weights import assemble, load_model, model_metadata, save_model, weights_identity

__all__ = [
    "CachedPredictor",
    "MeBT",
    "MeBTConfig",
    "MeBTShape",
    "SampleConfig",
    "assemble",
    "bootstrap",
    "draft",
    "edit",
    "load_model",
    "model_metadata",
    "remask",
    "revise",
    "sample",
    "sample_frames",
    "save_model",
    "weights_identity",
]
