"""Unpickles checkpoints of other programs by a list of harmless names; nothing in them runs."""

import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from pipeline.errors import CheckpointError
from pipeline.storage.files import sha256_file

INERT = (
    "argparse.Namespace",
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.str",
    "builtins.tuple",
    "collections.defaultdict",
    "easydict.EasyDict",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode",
    "pathlib.PosixPath",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "typing.Any",
)
"""What published checkpoints name; each gets a stand-in that keeps its data and does nothing."""

STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
TENSORS = (
    "collections.OrderedDict",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",  # This and Parameter are of before torch 0.4.
    "torch._utils._rebuild_tensor_v2",
    "torch.nn.parameter.Parameter",
    *(f"torch.{kind}Storage" for kind in STORAGES),
)
"""What torch itself may rebuild: its own list is longer, and lets a file claim any memory."""

OLD_NAMES = {"__builtin__": "builtins", "long": "int", "unicode": "str"}
"""Python 2's words, which pickle protocol 2 still uses."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PICKLES = 5
"""Pickles at the start of a file that torch wrote before 1.6; raw storages follow."""
MAX_DEPTH = 30

DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    MemoryError,
    ArithmeticError,
    struct.error,
)
"""All that torch's reader raises on bytes that make no sense."""

KINDS = (
    (("first_stage_model.", "transformer.blocks.", "tok_emb."), "a MeBT", "mebt import-model"),
    (("encoder.conv_first.", "codebook.embeddings"), "a VQGAN", "mebt import-tokenizer"),
    (("encoder.conv_in.0.conv3d.",), "a Cosmos tokenizer", "mebt import-tokenizer"),
    (("encoder.down_temporal.",), "a VidTok tokenizer", "mebt import-tokenizer"),
    (("Conv3d_1a_7x7.", "Mixed_3b.", "logits.conv3d."), "an I3D network", None),
)
"""Starts of tensor names, what has them, and the command that reads it."""


class Inert:
    """Stands for a class of another program. Building one runs nothing."""

    state: Any
    entries: dict[Any, Any]

    def __new__(cls, *_: object, **__: object) -> "Inert":
        """Makes an empty one, whatever the arguments."""
        stand_in = super().__new__(cls)
        stand_in.state, stand_in.entries = {}, {}
        return stand_in

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value


@dataclass(frozen=True)
class Foreign:
    """A checkpoint of another program. Tensors stay on the disk where the file can be mapped."""

    path: Path
    sha256: str
    content: Mapping[str, Any]
    state: Mapping[str, Tensor]
    """Tensors by their published names."""

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """Hyper-parameters as plain values; empty if the file has none."""
        tree = plain(self.content.get("hyper_parameters") or self.content.get("hparams"))
        return tree if isinstance(tree, dict) else {}

    @property
    def step(self) -> int:
        """Optimizer steps done, as the trainer counted them; 0 if unknown."""
        step = self.content.get("global_step")
        return step if isinstance(step, int) else 0


def read_foreign(path: Path, *, wanted: str) -> Foreign:
    """Reads a training checkpoint. `wanted` is one of KINDS, as it is named there.

    Nothing in the file runs: see `load_content`. Raises CheckpointError, in one line, saying what
    the file looks like if it is something else.
    """
    foreign = open_foreign(path)
    check_kind(path, foreign.state, wanted)
    return foreign


def open_foreign(path: Path) -> Foreign:
    """Reads a training checkpoint of any kind, as `read_foreign` does."""
    content = load_content(path)
    return Foreign(path, sha256_file(path), content, state_tensors(path, content))


def load_content(path: Path) -> Any:
    """Returns what `torch.save` wrote, other programs' objects as stand-ins.

    Nothing in the file runs: a name that is not known to be harmless is refused. Raises
    CheckpointError, in one line.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4096)
    is_zip = start.startswith(b"PK")
    try:
        if is_zip:
            names = _zip_globals(path, size)
        elif start.startswith(b"\x80"):
            names = _legacy_globals(path)
        else:
            raise CheckpointError(
                f"{path} is no checkpoint: it looks like {_kind_of_start(start)}."
            )
        if refused := sorted(set(names) - {*INERT, *TENSORS}):
            raise CheckpointError(
                f"{path} asks for {', '.join(refused)}, which no published file needs and which "
                "could run code; nothing was run. Get the file from its authors."
            )
        stubs = [(type(name.rpartition(".")[2], (Inert,), {}), name) for name in INERT]
        with safe_globals(stubs):  # type: ignore[arg-type]
            return torch.load(path, "cpu", weights_only=True, mmap=is_zip or None)
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} is a damaged or truncated zip file: {error}. Download it again."
        ) from None
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged, or was not written by torch: {reason}") from None


def _kind_of_start(start: bytes) -> str:
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself"
    if start[8:10] == b'{"':
        return "a safetensors file; published checkpoints end in .ckpt"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or start[257:262] == b"ustar":
        return "a packed archive; unpack it first"
    try:
        text = start.decode("utf-8", errors="ignore" if len(start) == 4096 else "strict")
    except UnicodeDecodeError:
        return "data of an unknown kind"
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        return "data of an unknown kind"
    page = text.lstrip().lower().startswith(("<!doctype", "<html"))
    return "a web page, perhaps of a download that failed" if page else "a text file"


def _zip_globals(path: Path, size: int) -> list[str]:
    """Lists what the pickle of a zip file asks for, after checking that no member lies."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(set(names)) < len(names):
            raise CheckpointError(f"{path} holds two members of one name, as torch never writes.")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(
                    f"{path}: its member {member.filename!r} is compressed to unpack to "
                    f"{member.file_size:,} bytes, as torch never does; it was not unpacked."
                )
        claimed = sum(member.file_size for member in members)
        if claimed > size:
            raise CheckpointError(
                f"{path} claims to hold {claimed:,} bytes, but is {size:,} bytes long."
            )
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if any(name.endswith("/constants.pkl") for name in names):
            raise CheckpointError(
                f"{path} looks like a TorchScript program, as I3D networks often are, not like a "
                "training checkpoint."
            )
        if len(pickles) != 1:
            raise CheckpointError(f"{path} is a zip file, but none that torch.save wrote.")
        if damaged := archive.testzip():
            raise CheckpointError(
                f"{path} is damaged: the checksum of {damaged!r} is wrong. Download it again."
            )
        return list(_globals(io.BytesIO(archive.read(pickles[0]))))


def _legacy_globals(path: Path) -> list[str]:
    with path.open("rb") as file:
        names = list(_globals(file))
        file.seek(0)
        first = [value for _, value, _ in pickletools.genops(file)]
        if names:  # Say what it asks for, rather than that it is no checkpoint.
            return names
        if LEGACY_MAGIC not in first:
            raise CheckpointError(f"{path} is a pickle, but none that torch.save wrote.")
        for _ in range(LEGACY_PICKLES - 1):
            names += _globals(file)
    return names


def _globals(file: IO[bytes]) -> Iterator[str]:
    """Yields every class and function that a pickle names, without loading it."""
    texts: list[str] = []
    for opcode, value, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            module, _, name = str(value).partition(" ")
            module = OLD_NAMES.get(module, module)
            yield f"{module}.{OLD_NAMES.get(name, name) if module == 'builtins' else name}"
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif opcode.name.startswith("EXT"):
            yield f"copyreg extension {value}"
        elif "UNICODE" in opcode.name:
            texts = [*texts[-1:], str(value)]


def plain(value: Any, depth: int = 0) -> Any:
    """Turns stand-ins, containers and numbers into plain values; anything else into its name."""
    if depth > MAX_DEPTH:
        raise CheckpointError("hyper-parameters are nested too deeply to be those of a model.")
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, dict) else {}
        for key in ("_content", "_val"):
            if key in state:
                return plain(state[key], depth + 1)
        fields = {key: item for key, item in state.items() if not str(key).startswith("_")}
        return plain({**fields, **value.entries}, depth + 1)
    if isinstance(value, Mapping):
        return {
            str(plain(key, depth + 1)): plain(item, depth + 1)
            for key, item in value.items()
            if not isinstance(key, type)
        }
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    known = value is None or isinstance(value, str | int | float | bool)
    return value if known else f"<{type(value).__name__}>"


def whole_config(value: Any) -> dict[str, Any]:
    """Follows an omegaconf node up to the config that it was cut from; empty if it has none."""
    for _ in range(MAX_DEPTH):
        state = value.state if isinstance(value, Inert) else None
        parent = state.get("_parent") if isinstance(state, dict) else None
        if not isinstance(parent, Inert):
            break
        value = parent
    config = plain(value) if isinstance(value, Inert) else {}
    return config if isinstance(config, dict) else {}


def state_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """Returns the state dict that a file is or holds. Raises CheckpointError if it is none."""
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        kind = type(content).__name__
        raise CheckpointError(f"{path} holds no `state_dict` of tensors, but a {kind}.")
    tensors = {}
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: {key!r} of its state is no tensor but a {type(tensor).__name__}."
            )
        claimed = tensor.numel() * tensor.element_size()
        if claimed > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: tensor {key!r} claims {claimed:,} bytes of shape {list(tensor.shape)}, "
                f"but the file holds {tensor.untyped_storage().nbytes():,}."
            )
        tensors[key] = tensor.detach()
    return tensors


def check_kind(path: Path, names: Mapping[str, Tensor], wanted: str) -> None:
    """Raises CheckpointError if the tensors are those of something else than `wanted`."""
    kind, reader = f"something unknown, with tensors such as {next(iter(names))!r}", None
    for starts, known, command in KINDS:
        if any(name.startswith(starts) for name in names):
            kind, reader = known, command
            break
    if kind != wanted:
        advice = f"; read it with `{reader} {path}`" if reader else ""
        raise CheckpointError(f"{path} looks like {kind}, not like {wanted}{advice}.")
