"""Translates names of published Cosmos tokenizers, and reads their shape off their tensors."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from torch import Tensor

from tokenizer.cosmos.config import CosmosConfig
from tokenizer.ladder_names import SHARED, our_name

SIGN = re.compile(r"(encoder|decoder)\.conv_in\.0\.conv3d\.|(post_)?quant_conv\.conv3d\.")
"""Starts of names that only Cosmos's networks of factorised convolutions have."""

PARTS = (
    (r"\.conv3d\.", "."),
    *SHARED,
    (r"^quant_conv\.", "to_embedding."),
    (r"^post_quant_conv\.", "from_embedding."),
    (r"\.mid\.block_1\.", ".middle.0."),
    (r"\.mid\.attn_1\.0\.", ".middle.1."),
    (r"\.mid\.attn_1\.1\.", ".middle.2."),
    (r"\.mid\.block_2\.", ".middle.3."),
    (r"\.downsample\.conv1\.", ".resize.space."),
    (r"\.downsample\.conv2\.", ".resize.time."),
    (r"\.upsample\.conv1\.", ".resize.time."),
    (r"\.upsample\.conv2\.", ".resize.space."),
    (r"\.(?:down|up)sample\.conv3\.", ".resize.mix."),
    (r"\.(?:down|up)\.(\d+)\.block\.", r".resolutions.\1.blocks."),
    (r"\.(?:down|up)\.(\d+)\.", r".resolutions.\1."),
)
"""Parts of a published name -> ours, as patterns."""

CONSTANTS = re.compile(
    r"(inv_quant\.)?quantizer\.(_levels|_basis|implicit_codebook)|"
    r"(encoder|decoder)\.(un)?patcher3d\.(wavelets|_arange|patch_size_buffer)"
)
"""What a TorchScript file holds besides the weights, and a state dict does not."""
CONSTANT = "a constant, which is known here"
IDLE = "a layer that this down-sampling never uses"
LEAVES = ("weight", "bias")


def config_from_state(
    state: Mapping[str, Tensor],
    used: Set[str],
    *,
    downsample: tuple[int, int, int] | None = None,
) -> CosmosConfig:
    """Returns the shape that published tensors tell.

    `used` are the names that the file's own program reads, or all if it has none. If layers do not
    tell what they are for, `downsample` must; the decoder then mirrors the encoder. Raises
    ValueError, in one line, if the tensors are of no such network, or do not fit `downsample`.
    """
    for half, other in (("encoder", "decoder"), ("decoder", "encoder")):
        if not any(name.startswith(f"{half}.") for name in state):
            raise ValueError(
                f"it has no {half}, as a Cosmos tokenizer has; give both files, {half}.jit and "
                f"{other}.jit."
            )
    shape = _shape(state)
    resizing = {name for name in used if re.search(r"\.(down|up)sample\.", name)}
    candidates = list(_candidates(shape))
    if len(resizing) == 2 * 3 * len(LEAVES) * (len(shape["multipliers"]) - 1):
        return _told(candidates, downsample)  # All layers that there may be: they tell nothing.
    for config in candidates:
        if resizing_names(config) == resizing:
            if downsample not in (None, config.downsample):
                raise ValueError(
                    f"it down-samples by {_words(config.downsample)}, not by --downsample "
                    f"{_words(downsample)}."
                )
            return config
    raise ValueError("the layers by which it halves and doubles axes are those of none known.")


def _told(
    candidates: Sequence[CosmosConfig], downsample: tuple[int, int, int] | None
) -> CosmosConfig:
    if downsample is None:
        raise ValueError(
            "nothing in it tells how much it down-samples; give --downsample, which the name of "
            "the weights says: 8 16 16 for DV8x16x16."
        )
    for config in candidates:
        if config.downsample == downsample:
            return config
    known = ", ".join(dict.fromkeys(_words(config.downsample) for config in candidates))
    raise ValueError(f"--downsample {_words(downsample)} is none that it can have; these: {known}.")


def _words(downsample: Sequence[int] | None) -> str:
    return " ".join(map(str, downsample or ()))


def _shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the fields of a config but for its down-sampling."""
    stem = _weight(state, "encoder.conv_in.0.conv3d.weight")
    patch = round((stem[1] / 3) ** (1 / 3))
    if 3 * patch**3 != stem[1]:
        raise ValueError(f"{stem[1]} channels of patches are not those of an RGB video.")
    resolutions = _count(state, r"encoder\.down\.(\d+)\.")
    firsts = (f"encoder.down.{n}.block.0.conv1.0.conv3d.weight" for n in range(resolutions))
    wide = [_weight(state, name)[0] for name in firsts]
    if not wide or any(channels % stem[0] for channels in wide):
        raise ValueError(f"{wide} channels are not multiples of the first layer's {stem[0]}.")
    return {
        "levels": _levels(state),
        "width": stem[0],
        "multipliers": tuple(channels // stem[0] for channels in wide),
        "blocks": _count(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_width": _weight(state, "encoder.conv_out.0.conv3d.weight")[0],
        "patch": patch,
    }


def _weight(state: Mapping[str, Tensor], name: str) -> list[int]:
    if name not in state or state[name].ndim != 5:
        raise ValueError(f"it has no tensor {name!r} of 5 axes, which a Cosmos tokenizer has.")
    return list(state[name].shape)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _levels(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Returns the levels that the file names; those of all published weights if it names none."""
    named = {
        tuple(state[name].tolist())
        for name in ("quantizer._levels", "inv_quant.quantizer._levels")
        if name in state and state[name].ndim == 1
    }
    if len(named) > 1:
        raise ValueError("encoder and decoder have other levels; they are no pair.")
    levels: tuple[int, ...] = named.pop() if named else CosmosConfig.levels
    entries = _weight(state, "quant_conv.conv3d.weight")[0]
    if entries != len(levels):
        raise ValueError(f"its codebook has {entries} entries, but levels are {list(levels)}.")
    return levels


def _candidates(shape: dict[str, Any]) -> Iterator[CosmosConfig]:
    """Yields what networks of this shape can be, those of mirrored decoders first."""
    factors = [shape["patch"] << n for n in range(len(shape["multipliers"]))]
    for mirrored, t, s in itertools.product((True, False), factors, factors):
        try:
            yield CosmosConfig(**shape, downsample=(t, s, s), mirrored=mirrored)
        except ValueError as error:
            if "downsample" not in str(error):
                raise


def resizing_names(config: CosmosConfig) -> set[str]:
    """Returns the published names of all layers that halve or double axes, and are used."""
    names = set()
    last = len(config.multipliers) - 1
    for number in range(last):
        down, up = config.encoder_resampling[number], config.decoder_resampling[number]
        of_down = {"conv1": down.space, "conv2": down.time, "conv3": any(down)}
        of_up = {"conv1": up.time, "conv2": up.space, "conv3": any(up)}
        for start, parts in (
            (f"encoder.down.{number}.downsample", of_down),
            (f"decoder.up.{last - number}.upsample", of_up),
        ):
            used = (part for part, is_used in parts.items() if is_used)
            names |= {f"{start}.{part}.conv3d.{leaf}" for part in used for leaf in LEAVES}
    return names


def sort_names(
    state: Mapping[str, Tensor], config: CosmosConfig
) -> tuple[dict[str, str], dict[str, str]]:
    """Sorts published names into ours and those to leave out.

    Returns our name -> the published one, and the names that were left out with the reason. Raises
    ValueError if patches are none of Haar's.
    """
    ours: dict[str, str] = {}
    ignored: dict[str, str] = {}
    used = resizing_names(config)
    for key, tensor in state.items():
        if CONSTANTS.fullmatch(key):
            _check_wavelets(key, tensor)
            ignored[key] = CONSTANT
        elif re.search(r"\.(down|up)sample\.", key) and key not in used:
            ignored[key] = IDLE
        else:
            ours[our_name(key, PARTS, resolutions=len(config.multipliers))] = key
    return ours, ignored


def _check_wavelets(key: str, tensor: Tensor) -> None:
    if key.endswith(".wavelets") and not (tensor.float() - 0.5**0.5).abs().max() < 0.01:
        raise ValueError(f"{key} is {tensor.tolist()}: its patches are no Haar wavelets.")
