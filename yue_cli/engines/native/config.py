"""The sizes of a LLaMA, read from a checkpoint folder's config.json. No torch."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yue_cli.engines.native.formats import CONFIG_KEY, Quantization, matrix_bytes
from yue_cli.errors import CheckpointError

CONFIG_FILE = "config.json"
RANDOM_KEY = "yue_random_weights"  # true in a folder that names sizes and holds no weights: they are made up

# What a LLaMA may carry that would change its numbers, with the values that change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", None),
    "rope_scaling": (None,),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
}


@dataclass(frozen=True)
class LlamaConfig:
    hidden: int
    inner: int  # width of the feed-forward part
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary_size: int
    max_length: int
    rope_theta: float
    norm_epsilon: float
    tied: bool  # the output head is the embedding
    quantization: Quantization | None = None
    is_random: bool = False  # there are no weights: they are made up

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Name the matrices of a layer as published, with rows and columns."""
        queries, shared = self.heads * self.head_size, self.key_value_heads * self.head_size
        return {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (shared, self.hidden),
            "self_attn.v_proj": (shared, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }

    def weight_bytes(self, item_bytes: int) -> int:
        """Count the bytes of all weights; item_bytes: of a value that is not quantized."""
        layers, head = (self.quantization.layers, self.quantization.head) if self.quantization else (None, None)
        matrices = sum(matrix_bytes(layers, *shape, item_bytes) for shape in self.matrices.values())
        table = (self.vocabulary_size, self.hidden)
        tables = matrix_bytes(None, *table, item_bytes) + (0 if self.tied else matrix_bytes(head, *table, item_bytes))
        norms = (2 * self.layers + 1) * self.hidden * item_bytes
        return self.layers * matrices + tables + norms

    @property
    def cache_values_per_token(self) -> int:
        return 2 * self.layers * self.key_value_heads * self.head_size

    @classmethod
    def read(cls, folder: Path, method: str | None = None) -> "LlamaConfig":
        """Read config.json. Raises CheckpointError for what is missing or is no plain LLaMA.

        method: a `quant_method` whose weights the caller reads itself.
        """
        path = folder / CONFIG_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder}: no {CONFIG_FILE}; expected a folder with a model's files.") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read as JSON ({error}).") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}.")
        _check_architecture(path, content)

        count, number = _reader(path, content, int), _reader(path, content, int, float)
        heads = count("num_attention_heads")
        config = cls(
            hidden=count("hidden_size"),
            inner=count("intermediate_size"),
            layers=count("num_hidden_layers"),
            heads=heads,
            key_value_heads=count("num_key_value_heads", heads),
            head_size=count("head_dim", count("hidden_size") // heads),
            vocabulary_size=count("vocab_size"),
            max_length=count("max_position_embeddings"),
            rope_theta=float(number("rope_theta", _nested_theta(content))),
            norm_epsilon=float(number("rms_norm_eps")),
            tied=bool(content.get("tie_word_embeddings", False)),
            quantization=Quantization.read(path, content.get(CONFIG_KEY), method),
            is_random=content.get(RANDOM_KEY) is True,
        )
        if config.heads % config.key_value_heads:
            raise CheckpointError(
                f"{path}: {config.heads} attention heads cannot share {config.key_value_heads} key/value heads evenly."
            )
        if config.head_size % 2:
            raise CheckpointError(f"{path}: `head_dim` is {config.head_size}; expected an even number.")
        return config


def _check_architecture(path: Path, content: dict[str, Any]) -> None:
    for key, allowed in _UNSUPPORTED.items():
        value = content.get(key)
        if value not in allowed:
            raise CheckpointError(f"{path}: `{key}` is {value!r}; this engine reads {allowed[0]!r} only.")
    # Newer versions of transformers write the rotary settings into an object of their own.
    kind = (content.get("rope_parameters") or {}).get("rope_type", "default")
    if kind != "default":
        raise CheckpointError(f"{path}: `rope_parameters.rope_type` is {kind!r}; this engine reads 'default' only.")


def _reader(path: Path, content: dict[str, Any], *kinds: type[int] | type[float]) -> Callable[..., Any]:
    """Make a function that reads one number above 0."""

    def read(key: str, default: float | None = None) -> Any:
        value = content.get(key)
        if value is None:
            value = default
        if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
            wanted = "a whole number above 0" if kinds == (int,) else "a number above 0"
            raise CheckpointError(f"{path}: `{key}` is {value!r}; expected {wanted}.")
        return value

    return read


def _nested_theta(content: dict[str, Any]) -> float:
    theta: float = (content.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    return theta
