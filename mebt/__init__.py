"""Tokens <-> tokens: the memory-efficient bidirectional transformer and its sampler."""

from mebt.conditions import Conditions, prepare_states
from mebt.config import MeBTConfig, MeBTShape, StateShape
from mebt.draft_revise import bootstrap, draft, remask, revise
from mebt.editing import edit
from mebt.kv_cache import CachedPredictor
from mebt.model import MeBT
from mebt.sampling import SampleConfig, sample
from mebt.streaming import Stream, sample_frames
from mebt.weights import assemble, load_model, model_metadata, save_model, weights_identity

__all__ = [
    "CachedPredictor",
    "Conditions",
    "MeBT",
    "MeBTConfig",
    "MeBTShape",
    "SampleConfig",
    "StateShape",
    "Stream",
    "assemble",
    "bootstrap",
    "draft",
    "edit",
    "load_model",
    "model_metadata",
    "prepare_states",
    "remask",
    "revise",
    "sample",
    "sample_frames",
    "save_model",
    "weights_identity",
]
