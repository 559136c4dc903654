"""Reads tensors of state dicts and TorchScript files, without running anything in them."""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.published.checkpoint import load_content, state_tensors
from pipeline.published.script_text import ScriptText, is_named

MAX_BYTES = 1 << 30
"""Bytes of tensors that are read from a TorchScript file at most: it is compressed, so it lies."""
MAX_PICKLE_BYTES = 1 << 24
DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    OSError,
    EOFError,
    MemoryError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    OverflowError,
)
"""What a damaged or hostile pickle may raise."""


class Script(NamedTuple):
    """The tensors of a program, or of a state dict."""

    tensors: dict[str, Tensor]
    used: frozenset[str]
    """Names of those that the program reads, as far as its text tells; all of a state dict."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a state dict, or the parameters and buffers of a TorchScript file, by name.

    Raises CheckpointError, in one line, if it is neither or asks for anything to be run.
    """
    return read_script(path).tensors


def read_script(path: Path) -> Script:
    """Reads what `read_tensors` does, and says which of it the program in the file uses."""
    if not is_script(path):
        tensors = state_tensors(path, load_content(path))
        return Script(tensors, frozenset(tensors))
    try:
        return _read_script(path)
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged TorchScript, or cannot be read without running what is in it: "
            f"{reason[:200].rstrip('.')}. Give a file that holds nothing but a state dict."
        ) from None


def is_script(path: Path) -> bool:
    """Tells TorchScript by the constants that its code needs."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_script(path: Path) -> Script:
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        top = next(name for name in sizes if name.endswith("/constants.pkl")).partition("/")[0]
        stored = sum(size for name, size in sizes.items() if name.startswith(f"{top}/data/"))
        code = [n for n in sizes if n.startswith(f"{top}/code/") and n.endswith(".py")]
        text_size = sum(sizes[name] for name in code)
        if stored > MAX_BYTES or max(sizes[f"{top}/data.pkl"], text_size) > MAX_PICKLE_BYTES:
            raise ValueError(
                f"it claims to hold {stored:,} bytes of tensors, {text_size:,} of text."
            )
        data = archive.read(f"{top}/data.pkl")
        module = _ScriptUnpickler(data, lambda key: archive.read(f"{top}/data/{key}")).load()
        if not isinstance(module, _Module):
            raise ValueError(f"it holds a {type(module).__name__}, no module.")
        files = {name.removeprefix(f"{top}/code/") for name in code}
        text = ScriptText(lambda file: archive.read(f"{top}/code/{file}"), files)
        found = list(_named(module, "", set(), text, []))
    used = frozenset(name for name, _, is_used in found if is_used)
    return Script({name: tensor for name, tensor, _ in found}, used)


class _Module:
    """Stands for any class of the script: keeps its attributes and does nothing."""

    attributes: dict[str, Any]
    script: str
    """Dotted name of the class."""

    def __new__(cls, *_: Any) -> "_Module":
        module = super().__new__(cls)
        module.attributes = {}
        return module

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


def _named(
    module: _Module, start: str, seen: set[int], text: ScriptText, above: list[str | None]
) -> Iterator[tuple[str, Tensor, bool]]:
    """Yields each tensor with its name, and whether `module` or what holds it names its layer.

    `above` are the methods of all that hold `module`.
    """
    if id(module) in seen:  # A few modules that hold one another many times would never end.
        return
    seen.add(id(module))
    methods = [*above, text.methods(module.script)]
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield f"{start}{name}", value, True
        elif isinstance(value, _Module):
            reached = is_named(name, methods)
            for inner, tensor, is_used in _named(value, f"{start}{name}.", seen, text, methods):
                yield inner, tensor, is_used and reached


class _ScriptUnpickler(pickle.Unpickler):
    """Builds tensors and inert modules; refuses every other name that the file asks for."""

    def __init__(self, data: bytes, read: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self.read_storage = read
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return type("_Module", (_Module,), {"script": f"{module}.{name}"})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_")):
            return _first  # Marks the type of a list or dictionary, which we need not know.
        raise pickle.UnpicklingError(f"it asks for {module}.{name}.")

    def persistent_load(self, saved: Any) -> Tensor:
        kind, dtype, key, _, count = saved
        if kind != "storage":
            raise pickle.UnpicklingError(f"it holds a {kind!r}, which is no tensor.")
        if key not in self.storages:
            data = bytearray(self.read_storage(key))
            if len(data) != count * dtype.itemsize:
                raise ValueError(f"storage {key} has {len(data)} bytes, not {count} of {dtype}.")
            empty = torch.empty(0, dtype=dtype)
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else empty
        return self.storages[key]


def _first(value: Any, *_: Any) -> Any:
    return value


def _rebuild(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    contiguous = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
    if any(s != c for s, c, n in zip(stride, contiguous, size, strict=True) if n > 1):
        raise ValueError(f"a tensor has strides {stride} for the shape {size}.")
    return storage[offset : offset + math.prod(size)].reshape(size)
