"""What a layer remembers of the ids that were read: their keys and values, as they are or in 8, 6 or 4 bits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from yue_cli.engines.native.config import LlamaConfig
from yue_cli.engines.native.packing import hadamard, pack, turn, unpack
from yue_cli.errors import EngineError

BITS = {"int8": 8, "int6": 6, "int4": 4}  # of a number, by the format of the cache
BEHIND = 128  # keys that kernels may read behind the last one: what they find there must be finite, no more
TOGETHER = 64  # keys whose values in bytes lie together, feature by feature


@dataclass(frozen=True)
class Cache:
    """Keys and values of one layer: row r of a batch owns slot r. Keys are stored after the rotary embedding."""

    keys: Tensor  # [rows, heads, length, size]
    values: Tensor
    bits: int  # of a number; 16: it is as it was computed

    @classmethod
    def zeros(cls, shape: tuple[int, ...], like: Tensor) -> "Cache":
        """Make an empty one. Zeros, not whatever was there: a place that was never written must not hold NaN."""
        keys, values = (_zeros(shape, shape[-1], like.dtype, like.device) for _ in range(2))
        return cls(keys, values, 16)

    def write(self, slots: slice, start: int, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [R, heads, n, size] of n ids behind `start` known ones."""
        places = slice(start, start + keys.shape[2])
        self.keys[slots, :, places] = keys
        self.values[slots, :, places] = values

    def write_at(self, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Do the same where the places [R, n] of the first R slots are on the device."""
        places = _places(positions)
        self.keys[places] = keys.transpose(1, 2)
        self.values[places] = values.transpose(1, 2)

    def read(self, slots: slice, stop: int) -> tuple[Tensor, Tensor]:
        """Give the keys and values [R, heads, stop, size] of the first ids."""
        return self.keys[slots, :, :stop], self.values[slots, :, :stop]

    def copy(self, source: int, target: int) -> None:
        """Let one slot hold what another one does."""
        for kept in vars(self).values():
            if isinstance(kept, Tensor) and source != target:
                kept[target].copy_(kept[source])

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True)
class EightBitCache(Cache):
    """The same in bytes with a sign, and one scale for each head of each id: number = byte * scale.

    Values are [rows, heads, blocks, size, TOGETHER]: GPUs multiply bytes only along what lies side by side in memory,
    which are features in the product of queries and keys, but places in that of weights and values. Memory is read
    fastest in long pieces, such as a whole block. There are a few more places than ids.
    """

    key_scales: Tensor  # float32 [rows, heads, places]
    value_scales: Tensor
    dtype: torch.dtype  # of what is read

    @classmethod
    def zeros(cls, shape: tuple[int, ...], like: Tensor) -> "EightBitCache":
        *heads, length, size = shape
        blocks = -(-length // TOGETHER)
        places = blocks * TOGETHER
        return cls(
            keys=_zeros((*heads, places, size), size, torch.int8, like.device),
            values=_zeros((*heads, blocks, size, TOGETHER), size, torch.int8, like.device),
            bits=8,
            key_scales=_zeros((*heads, places), 1, torch.float32, like.device),
            value_scales=_zeros((*heads, places), 1, torch.float32, like.device),
            dtype=like.dtype,
        )

    def write(self, slots: slice, start: int, keys: Tensor, values: Tensor) -> None:
        places = slice(start, start + keys.shape[2])
        self.keys[slots, :, places], self.key_scales[slots, :, places] = self._rounded(keys)
        bytes_, self.value_scales[slots, :, places] = self._rounded(values)
        place = torch.arange(places.start, places.stop, device=values.device)
        self.values[slots, :, place // TOGETHER, :, place % TOGETHER] = bytes_.permute(2, 0, 1, 3)

    def write_at(self, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        rows, heads, there = places = _places(positions)
        self.keys[places], self.key_scales[places] = self._rounded(keys.transpose(1, 2))
        bytes_, self.value_scales[places] = self._rounded(values.transpose(1, 2))
        self.values[rows, heads, there // TOGETHER, :, there % TOGETHER] = bytes_

    def read(self, slots: slice, stop: int) -> tuple[Tensor, Tensor]:
        known = slots, slice(None), slice(stop)
        values = self.values[slots, :, : -(-stop // TOGETHER)].transpose(-1, -2).contiguous().flatten(2, 3)[:, :, :stop]
        return (
            self._numbers(self.keys[known], self.key_scales[known]).to(self.dtype),
            self._numbers(values, self.value_scales[known]).to(self.dtype),
        )

    def _rounded(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        return to_bytes(numbers)

    def _numbers(self, bytes_: Tensor, scales: Tensor) -> Tensor:
        return from_bytes(bytes_, scales)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.key_scales.nbytes + self.value_scales.nbytes


@dataclass(frozen=True)
class PackedCache(EightBitCache):
    """The same in 6 or 4 bits: turned, rounded and packed, feature by feature, as `packing.py` says.

    Bytes are uint8: keys [rows, heads, places, width], values [rows, heads, blocks, width, TOGETHER].
    """

    @classmethod
    def empty(cls, shape: tuple[int, ...], like: Tensor, bits: int) -> "PackedCache":
        """Make an empty one."""
        size = shape[-1]
        hadamard(size, like.device)  # is made before anything is recorded
        plain = EightBitCache.zeros((*shape[:-1], size * bits // 8), like)
        keys, values = plain.keys.view(torch.uint8), plain.values.view(torch.uint8)
        return cls(keys, values, bits, plain.key_scales, plain.value_scales, like.dtype)

    def _rounded(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        steps, scales = to_bytes(turn(numbers), self.bits)
        return pack(steps, self.bits), scales

    def _numbers(self, bytes_: Tensor, scales: Tensor) -> Tensor:
        return turn(from_bytes(unpack(bytes_, self.bits), scales))


def to_bytes(numbers: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Round the last dimension to 2^bits - 1 steps: int8 like `numbers`, and float32 scales without that dimension."""
    wide = numbers.float()
    scales = wide.abs().amax(-1) / (2 ** (bits - 1) - 1)
    steps = wide / torch.where(scales > 0, scales, 1)[..., None]
    return (steps + 0.5).floor().to(torch.int8), scales


def from_bytes(bytes_: Tensor, scales: Tensor) -> Tensor:
    """Turn bytes into the float32 numbers that they stand for."""
    return bytes_.float() * scales[..., None]


def make(format_: str, config: LlamaConfig, *, rows: int, length: int, like: Tensor) -> list[Cache]:
    """Make the empty caches of all layers, on the device of `like` and for its dtype."""
    shape = (rows, config.key_value_heads, length, config.head_size)
    return [_empty(BITS.get(format_, 16), shape, like) for _ in range(config.layers)]


def _empty(bits: int, shape: tuple[int, ...], like: Tensor) -> Cache:
    if bits < 8:
        return PackedCache.empty(shape, like, bits)
    return (EightBitCache if bits == 8 else Cache).zeros(shape, like)


def bytes_per_token(format_: str, config: LlamaConfig, dtype: torch.dtype) -> int:
    """Count the bytes that one id of one row takes in all layers. Raises EngineError for heads that it cannot hold."""
    if format_ not in BITS:
        return config.cache_values_per_token * dtype.itemsize
    if BITS[format_] < 8 and config.head_size % 4:
        size = config.head_size
        raise EngineError(f"keys and values in {format_} take heads of a multiple of 4, found {size}; use int8.")
    heads = config.cache_values_per_token // config.head_size
    return config.cache_values_per_token * BITS[format_] // 8 + heads * torch.float32.itemsize


def _zeros(shape: tuple[int, ...], pitch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make zeros with room behind them, so that kernels can read whole blocks of keys without asking where they end.

    Behind the keys of any head but the last are those of the next. pitch: from one key to the next.
    """
    count = math.prod(shape)
    return torch.zeros(count + BEHIND * pitch, dtype=dtype, device=device)[:count].view(shape)


def _places(positions: Tensor) -> tuple[Tensor, slice, Tensor]:
    """Index places [R, n] of the first R slots; what is put there is [R, n, heads, ...]."""
    slots = torch.arange(len(positions), device=positions.device)[:, None]
    return slots, slice(None), positions
