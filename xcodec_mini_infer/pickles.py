"""Read tensors from PyTorch's `.pth` files without running anything that lies in them.

A `.pth` file is a pickle: a small program, which may call any function there is. `_interpret` follows that program
with a stack of its own and calls nothing. A name is only a name; of all names it understands those that rebuild a
tensor, and makes an inert `Foreign` of everything else, such as a pickled configuration. Tensors stay on disk until
they are read, so that the rest of a large file costs nothing.
"""

import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from xcodec_mini_infer import CodecError

_LFS_STUB = b"version https://git-lfs"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first value of the format before PyTorch 1.6
_LEGACY_PROTOCOL = 1001
_MOST_PICKLE_BYTES = 256 * 10**6  # the program alone, without the tensors: some hundred kB in real files
_STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True, eq=False)
class Foreign:
    """Whatever is no tensor and no plain value: its name, if it has one. Nothing was called to make it."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    elements: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still on disk."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    _stride: tuple[int, ...]
    _offset: int  # of the first element in the storage
    _storage: _Storage
    _file: "_File"

    def read(self) -> Tensor:
        """Read the values, and nothing else of the file. Raises CodecError for values that are not there."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        span = 1 + sum((size - 1) * step for size, step in zip(self.shape, self._stride, strict=True))
        raw = self._file.read(self._storage, self._offset, span)
        return torch.frombuffer(raw, dtype=self.dtype).as_strided(self.shape, self._stride)


@contextmanager
def open_pickle(path: Path) -> Iterator[Any]:
    """Give the content of a `.pth` file: plain containers and values, `StoredTensor` for tensors, else `Foreign`.

    Tensors can be read within. Raises CodecError for anything that is not such a file, or a damaged one.
    """
    try:
        with path.open("rb") as file:
            yield _content(_File(path, file))
    except FileNotFoundError as error:
        raise CodecError(f"{path}: no such file.") from error


class _File:
    """An open file and where its storages begin: name → byte, length in bytes."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.file = file
        self.places: Mapping[str, tuple[int, int]] = {}

    def read(self, storage: _Storage, offset: int, elements: int) -> bytearray:
        if storage.key not in self.places:
            raise CodecError(f"{self.path}: the values of storage `{storage.key}` are missing; the file is damaged.")
        start, length = self.places[storage.key]
        size = storage.dtype.itemsize
        if (offset + elements) * size > length or offset + elements > storage.elements:
            raise CodecError(f"{self.path}: a tensor reaches beyond its storage `{storage.key}`; the file is damaged.")
        self.file.seek(start + offset * size)
        raw = bytearray(elements * size)
        if self.file.readinto(raw) != len(raw):  # type: ignore[attr-defined]
            raise CodecError(f"{self.path}: ends within storage `{storage.key}`; it was not copied as a whole.")
        return raw


def _content(file: _File) -> Any:
    head = file.file.read(len(_LFS_STUB))
    file.file.seek(0)
    if head == _LFS_STUB:
        size = file.path.stat().st_size
        raise CodecError(f"{file.path}: a git-lfs stub of {size} bytes, not the model; fetch the file itself.")
    try:
        if head.startswith(b"PK"):
            return _read_zip(file)
        return _read_legacy(file)
    except zipfile.BadZipFile as error:
        size = file.path.stat().st_size
        raise CodecError(
            f"{file.path}: not a whole zip file ({size:,} bytes); it was not copied as a whole."
        ) from error


def _read_zip(file: _File) -> Any:
    """Read the format since PyTorch 1.6: a zip of `NAME/data.pkl` and uncompressed `NAME/data/KEY`."""
    with zipfile.ZipFile(file.file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        programs = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise CodecError(f"{file.path}: a zip file, but not one that PyTorch wrote: it has no data.pkl.")
        root = programs[0].removesuffix("data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise CodecError(f"{file.path}: a compressed zip file; PyTorch writes uncompressed ones.")
        if entries[programs[0]].file_size > _MOST_PICKLE_BYTES:
            raise CodecError(f"{file.path}: its data.pkl is larger than any checkpoint's.")
        order = f"{root}byteorder"
        if order in entries and entries[order].file_size < 64 and archive.read(order) != b"little":
            raise CodecError(f"{file.path}: was written on a big-endian machine, which is not supported.")
        program = archive.read(programs[0])
    prefix = f"{root}data/"
    file.places = {
        name.removeprefix(prefix): (_first_byte(file, info), info.file_size)
        for name, info in entries.items()
        if name.startswith(prefix)
    }
    return _interpret(program, file)


def _first_byte(file: _File, info: zipfile.ZipInfo) -> int:
    """Find where an entry's data begin, behind a local header of 30 bytes, its name and its padding."""
    file.file.seek(info.header_offset)
    header = file.file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise CodecError(f"{file.path}: entry {info.filename} is damaged.")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + lengths


def _read_legacy(file: _File) -> Any:
    """Read the format before PyTorch 1.6: five pickles, then each storage behind its number of elements."""
    unknown = CodecError(f"{file.path}: not a file that PyTorch wrote.")
    try:
        if (_interpret(file.file, file), _interpret(file.file, file)) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
            raise unknown
    except CodecError as error:
        raise unknown from error
    _interpret(file.file, file)  # the machine that wrote it
    storages: dict[str, _Storage] = {}
    content = _interpret(file.file, file, storages)
    keys = _interpret(file.file, file)
    places, at, end = {}, file.file.tell(), file.path.stat().st_size
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in storages:
            raise CodecError(f"{file.path}: a storage belongs to no tensor; the file is damaged.")
        length = storages[key].elements * storages[key].dtype.itemsize
        at += 8
        places[key] = (at, length)
        at += length
    if at > end:
        raise CodecError(f"{file.path}: has {end:,} bytes of {at:,}; it was not copied as a whole.")
    file.places = places
    return content


_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset(
    """INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT""".split()
)


def _interpret(program: bytes | IO[bytes], file: _File, storages: dict[str, _Storage] | None = None) -> Any:
    """Follow a pickle's instructions up to its end. Raises CodecError where they make no sense."""
    try:
        return _Machine(file, {} if storages is None else storages).run(program)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        if isinstance(error, CodecError):
            raise
        raise CodecError(f"{file.path}: not a readable pickle ({type(error).__name__}: {error}).") from error


class _Machine:
    """A stack, a memo, and what each instruction of a pickle does to them."""

    def __init__(self, file: _File, storages: dict[str, _Storage]) -> None:
        self.file = file
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes | IO[bytes]) -> Any:
        for instruction, argument, _ in pickletools.genops(program):
            name = instruction.name
            if name == "STOP":
                return self.stack.pop()
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            else:
                self.step(name, argument)
        raise ValueError("it does not end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.after_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[int(argument)] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[int(argument)])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":  # sets hold nothing that is wanted; as lists they need no hashing
                stack.append([])
            case "LIST":
                stack.append(self.after_mark())
            case "TUPLE" | "FROZENSET":
                stack.append(tuple(self.after_mark()))
            case "DICT":
                stack.append(_pairs(self.after_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                self.extend([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self.extend(self.after_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.update(_pairs([key, value]))
            case "SETITEMS":
                self.update(_pairs(self.after_mark()))
            case "GLOBAL":
                stack.append(Foreign(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                leaf, module = stack.pop(), stack.pop()
                stack.append(Foreign(f"{module}.{leaf}"))
            case "REDUCE" | "NEWOBJ":
                arguments, made_by = stack.pop(), stack.pop()
                stack.append(self.make(made_by, arguments))
            case "NEWOBJ_EX":
                _, arguments, made_by = stack.pop(), stack.pop(), stack.pop()
                stack.append(self.make(made_by, arguments))
            case "OBJ":
                made_by, *arguments = self.after_mark()
                stack.append(self.make(made_by, tuple(arguments)))
            case "INST":
                stack.append(self.make(Foreign(argument.replace(" ", ".", 1)), tuple(self.after_mark())))
            case "BUILD":
                stack.pop()  # an object's state: of no use for plain values and tensors
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case "PERSID":
                stack.append(Foreign("persistent id"))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(Foreign(f"extension {argument}"))
            case _:
                raise ValueError(f"instruction {name} is not supported")

    def after_mark(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("a mark is missing")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)

    def update(self, items: dict[Any, Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(items)

    def make(self, made_by: Any, arguments: Any) -> Any:
        """Understand a tensor or an ordered dictionary; all other objects stay names."""
        name = made_by.name if isinstance(made_by, Foreign) else "an object"
        match name, arguments:
            case "collections.OrderedDict", (() | ([],)):
                return {}
            case "collections.OrderedDict", ([*items],):
                return _pairs([each for key, value in items for each in (key, value)])
            case (
                ("torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2"),
                (
                    storage,
                    offset,
                    shape,
                    stride,
                    *_,
                ),
            ):
                return self.tensor(storage, offset, shape, stride)
            case (("torch._utils._rebuild_parameter" | "torch.nn.parameter.Parameter"), (StoredTensor() as data, *_)):
                return data
        return Foreign(name)

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> Any:
        if not isinstance(storage, _Storage):
            return Foreign("a tensor without storage")
        numbers = [offset, *shape, *stride]
        if len(shape) != len(stride) or not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
            raise ValueError("a tensor's sizes are no sizes")
        if prod(shape) > 2**48:
            raise ValueError("a tensor is larger than any")
        return StoredTensor(storage.dtype, tuple(shape), tuple(stride), offset, storage, self.file)

    def storage(self, saved: Any) -> Any:
        """Read what the pickle says of a storage: that it is one, its type, key, device and number of elements."""
        match saved:
            case ("storage", Foreign() as kind, str() as key, _, int() as elements, *_):
                module, _, leaf = kind.name.rpartition(".")
                if module in ("torch", "torch.storage") and leaf in _STORAGE_TYPES and elements >= 0:
                    storage = _Storage(key, _STORAGE_TYPES[leaf], elements)
                    self.storages[key] = storage
                    return storage
        return Foreign("persistent id")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a key has no value")
    # Keys of any other kind are nothing that is wanted, and hashing a deep one would end the process.
    plain = (str, bytes, int, float, type(None))
    return {key: value for key, value in zip(items[::2], items[1::2], strict=True) if isinstance(key, plain)}
