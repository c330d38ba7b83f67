"""The codec's checkpoint folder: published names to modules, weight norm folded, every name and shape checked.

The only file that knows file names and keys. A folder holds `config.json` and three files with the keys as
published; tensors that inference does not read may be there too and are skipped.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from xcodec_mini_infer import FRAME_SAMPLES, VOCODER_FRAME_SAMPLES, CodecError
from xcodec_mini_infer.codec import Codec, CodecConfig
from xcodec_mini_infer.encoder import Encoder
from xcodec_mini_infer.semantic import KERNELS, POSITION_GROUPS
from xcodec_mini_infer.vocoder import Vocoder, VocoderConfig

CONFIG_FILE = "config.json"
CODEC_FILE = "codec.safetensors"
VOCAL_FILE = "vocal.safetensors"
INSTRUMENTAL_FILE = "instrumental.safetensors"
CONFIG_FORMAT = "yue-codec"
CONFIG_VERSION = 1

Shapes = dict[str, tuple[int, ...]]
Config = TypeVar("Config", CodecConfig, VocoderConfig)


def codec_shapes(config: CodecConfig) -> Shapes:
    """List the tensors of `codec.safetensors` that decoding needs, by published name."""
    return _published_shapes(_codec_tensors(config))


def encoder_shapes(config: CodecConfig, codebooks: int = 1) -> Shapes:
    """List the tensors of `codec.safetensors` that encoding with so many codebooks needs, by published name."""
    return _published_shapes(_encoder_tensors(config, codebooks))


def vocoder_shapes(config: VocoderConfig) -> Shapes:
    """List the tensors of `vocal.safetensors` and of `instrumental.safetensors`, by published name."""
    return _published_shapes(_vocoder_tensors(config))


def read_config(folder: Path) -> tuple[CodecConfig, VocoderConfig]:
    """Read and check `config.json`. Raises CodecError."""
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CodecError(f"{path}: no such file; expected a codec folder.") from error
    except (OSError, ValueError) as error:
        raise CodecError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(content, dict) or content.get("format") != CONFIG_FORMAT:
        raise CodecError(f'{path}: expected `"format": "{CONFIG_FORMAT}"`.')
    if content.get("version") != CONFIG_VERSION:
        raise CodecError(f"{path}: expected version {CONFIG_VERSION}, found {content.get('version')!r}.")
    codec = _parse(CodecConfig, path, "codec", content.get("codec"))
    vocoder = _parse(VocoderConfig, path, "vocoder", content.get("vocoder"))
    _check_sizes(path, codec, vocoder)
    return codec, vocoder


def write(
    folder: Path, codec: CodecConfig, vocoder: VocoderConfig, tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Write a checkpoint folder; `tensors` holds each file's tensors by file name, then by published name."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, codec, vocoder)
    for name in (CODEC_FILE, VOCAL_FILE, INSTRUMENTAL_FILE):
        save_file(dict(tensors[name]), folder / name)


def write_config(folder: Path, codec: CodecConfig, vocoder: VocoderConfig) -> None:
    """Write `config.json`."""
    sections = {"codec": asdict(codec), "vocoder": asdict(vocoder)}
    content = {"format": CONFIG_FORMAT, "version": CONFIG_VERSION, **sections}
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_codec(folder: Path, device: str | torch.device = "cpu") -> Codec:
    """Load the decoding half of the codec. Raises CodecError for what is missing or of another shape."""
    config, _ = read_config(folder)
    with torch.device("meta"):
        codec = Codec(config)
    return _load(codec, _codec_tensors(config), folder / CODEC_FILE, device)


def load_encoder(folder: Path, device: str | torch.device = "cpu", codebooks: int = 1) -> Encoder:
    """Load the encoding half with its first codebooks; YuE's audio prompts need one.

    Raises CodecError for what is missing or of another shape.
    """
    config, _ = read_config(folder)
    with torch.device("meta"):
        encoder = Encoder(config, codebooks)
    return _load(encoder, _encoder_tensors(config, codebooks), folder / CODEC_FILE, device)


def load_vocoder(folder: Path, name: str, device: str | torch.device = "cpu") -> Vocoder:
    """Load the vocoder of file `name`. Raises CodecError for what is missing or of another shape."""
    _, config = read_config(folder)
    with torch.device("meta"):
        vocoder = Vocoder(config)
    return _load(vocoder, _vocoder_tensors(config), folder / name, device)


def published(module: Codec | Encoder | Vocoder) -> dict[str, Tensor]:
    """Name the tensors of a module as they are published, weights of weight norm as direction and length."""
    if isinstance(module, Codec):
        names = _codec_tensors(module.config)
    elif isinstance(module, Encoder):
        names = _encoder_tensors(module.config, len(module.quantizer.codebooks))
    else:
        names = _vocoder_tensors(module.config)
    found: dict[str, Tensor] = {}
    for key, values in module.state_dict().items():
        tensor = names[key]
        if tensor.norm_axis is None:
            found[tensor.name] = values
        else:
            found[f"{tensor.name}_g"] = _lengths(values, tensor.norm_axis)
            found[f"{tensor.name}_v"] = values
    return found


@dataclass(frozen=True)
class _Published:
    """Where a module's tensor comes from: its published name, and how weight norm splits it, if it does."""

    name: str
    shape: tuple[int, ...]
    norm_axis: int | None  # each entry of this axis has a length of its own


def _codec_tensors(config: CodecConfig) -> dict[str, _Published]:
    count = len(config.ratios)
    names = {
        "to_decoder": "fc_post2",
        "decoder.first": "decoder_2.model.0",
        "decoder.snake": f"decoder_2.model.{count + 1}",
        "decoder.last": f"decoder_2.model.{count + 2}",
    }
    for i in range(config.codebooks):
        names[f"quantizer.codebooks.{i}"] = f"quantizer.vq.layers.{i}._codebook.embed"
    for i in range(count):
        ours, theirs = f"decoder.blocks.{i}", f"decoder_2.model.{i + 1}"
        names |= {f"{ours}.snake": f"{theirs}.block.0", f"{ours}.upsample": f"{theirs}.block.1"}
        for unit in range(3):
            for j, part in enumerate(("snake", "dilated", "second_snake", "pointwise")):
                names[f"{ours}.residuals.{unit}.{part}"] = f"{theirs}.block.{unit + 2}.block.{j}"
    with torch.device("meta"):
        module = Codec(config)
    return _tensors(module, names, norm_axes={"decoder.": 0})


def _encoder_tensors(config: CodecConfig, codebooks: int) -> dict[str, _Published]:
    count = len(config.ratios)
    names = {
        "fuse": "fc_prior",
        "acoustic.first": "encoder.block.0",
        "acoustic.snake": f"encoder.block.{count + 1}",
        "acoustic.last": f"encoder.block.{count + 2}",
        "semantic.first": "encoder_semantic.conv.conv",
        "hubert.features.norm": "semantic_model.feature_extractor.conv_layers.0.layer_norm",
        "hubert.feature_norm": "semantic_model.feature_projection.layer_norm",
        "hubert.project": "semantic_model.feature_projection.projection",
        "hubert.position": "semantic_model.encoder.pos_conv_embed.conv",
        "hubert.norm": "semantic_model.encoder.layer_norm",
    }
    for i in range(codebooks):
        names[f"quantizer.codebooks.{i}"] = f"quantizer.vq.layers.{i}._codebook.embed"
    for i in range(count):
        ours, theirs = f"acoustic.blocks.{i}", f"encoder.block.{i + 1}.block"
        names |= {f"{ours}.snake": f"{theirs}.3", f"{ours}.downsample": f"{theirs}.4"}
        for unit in range(3):
            for j, part in enumerate(("snake", "dilated", "second_snake", "pointwise")):
                names[f"{ours}.residuals.{unit}.{part}"] = f"{theirs}.{unit}.block.{j}"
    for i in range(len(KERNELS)):
        names[f"hubert.features.convolutions.{i}"] = f"semantic_model.feature_extractor.conv_layers.{i}.conv"
    parts = {name: f"attention.{name}_proj" for name in ("q", "k", "v", "out")}
    parts |= {"norm": "layer_norm", "final_norm": "final_layer_norm"}
    parts |= {"widen": "feed_forward.intermediate_dense", "narrow": "feed_forward.output_dense"}
    for i in range(config.hubert_layers):
        names |= {f"hubert.layers.{i}.{ours}": f"semantic_model.encoder.layers.{i}.{parts[ours]}" for ours in parts}
    for i in range(2):
        ours, theirs = f"semantic.blocks.{i}", f"encoder_semantic.conv_blocks.{i}"
        names[f"{ours}.last"] = f"{theirs}.conv.conv"
        for unit in range(2):
            names[f"{ours}.units.{unit}.wide"] = f"{theirs}.res_units.{unit}.conv1.conv"
            names[f"{ours}.units.{unit}.pointwise"] = f"{theirs}.res_units.{unit}.conv2"
    with torch.device("meta"):
        module = Encoder(config, codebooks)
    return _tensors(module, names, norm_axes={"acoustic.": 0, "hubert.position.": 2})


def _vocoder_tensors(config: VocoderConfig) -> dict[str, _Published]:
    names = {
        "first": "backbone.embed",
        "norm": "backbone.norm",
        "final_norm": "backbone.final_layer_norm",
        "head.out": "head.out",
        "head": "head.istft",
    }
    parts = {"depthwise": ".dwconv", "norm": ".norm", "widen": ".pwconv1", "narrow": ".pwconv2"}
    for i in range(config.layers):
        names[f"blocks.{i}"] = f"backbone.convnext.{i}"
        names |= {f"blocks.{i}.{ours}": f"backbone.convnext.{i}{theirs}" for ours, theirs in parts.items()}
    with torch.device("meta"):
        module = Vocoder(config)
    return _tensors(module, names)


def _tensors(module: nn.Module, names: Mapping[str, str], norm_axes: Mapping[str, int] = {}) -> dict[str, _Published]:
    """Find the published name of each tensor from that of its module, or of itself.

    norm_axes: whose weights are published as direction and length, by the beginning of their names; which axis has
    a length for each entry.
    """
    found = {}
    for key, tensor in module.state_dict().items():
        owner, _, leaf = key.rpartition(".")
        name = names.get(key) or f"{names[owner]}.{leaf}"
        axes = [axis for prefix, axis in norm_axes.items() if key.startswith(prefix) and leaf == "weight"]
        found[key] = _Published(name, tuple(tensor.shape), axes[0] if axes else None)
    return found


def _published_shapes(tensors: Mapping[str, _Published]) -> Shapes:
    shapes: Shapes = {}
    for tensor in tensors.values():
        if tensor.norm_axis is not None:
            shapes[f"{tensor.name}_g"] = _length_shape(tensor.shape, tensor.norm_axis)
            shapes[f"{tensor.name}_v"] = tensor.shape
        else:
            shapes[tensor.name] = tensor.shape
    return shapes


def _lengths(weight: Tensor, axis: int) -> Tensor:
    return weight.norm(dim=[i for i in range(weight.ndim) if i != axis], keepdim=True)


def _length_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(size if i == axis else 1 for i, size in enumerate(shape))


Module = TypeVar("Module", bound=nn.Module)


def _load(module: Module, tensors: Mapping[str, _Published], path: Path, device: str | torch.device) -> Module:
    """Give a module its weights from a file, folding weight norm."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            reader = _Reader(path, file)
            if isinstance(module, Encoder):
                reader.check_encoder()
            state = {key: reader.read(tensor).to(device) for key, tensor in tensors.items()}
    except FileNotFoundError as error:
        raise CodecError(f"{path}: no such file; expected the weights of {type(module).__name__}.") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise CodecError(f"{path}: not a readable safetensors file ({error}).") from error
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


class _Reader:
    """Reads tensors of one open file as float32."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._file = file
        self._names = set(file.keys())

    def read(self, tensor: _Published) -> Tensor:
        if tensor.norm_axis is None:
            return self._get(tensor.name, tensor.shape)
        # torch has written weight norm in two ways: weight_g and weight_v, later original0 and original1.
        owner = tensor.name.removesuffix("weight")
        later = f"{owner}parametrizations.weight.original"
        length, direction = f"{tensor.name}_g", f"{tensor.name}_v"
        if length not in self._names and f"{later}0" in self._names:
            length, direction = f"{later}0", f"{later}1"
        g = self._get(length, _length_shape(tensor.shape, tensor.norm_axis))
        v = self._get(direction, tensor.shape)
        return v * (g / _lengths(v, tensor.norm_axis))

    def check_encoder(self) -> None:
        """Refuse a file that was made for decoding only."""
        if not any(name.startswith("encoder.") for name in self._names):
            raise CodecError(
                f"{self._path}: has no encoder, only what decoding needs; to encode audio, take or convert the whole "
                "codec."
            )

    def _get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._names:
            raise CodecError(f"{self._path}: `{name}` is missing; expected shape {list(shape)}.")
        found = tuple(self._file.get_slice(name).get_shape())
        if found != shape:
            raise CodecError(f"{self._path}: `{name}` has shape {list(found)}; expected {list(shape)}.")
        values: Tensor = self._file.get_tensor(name)
        return values.to(torch.float32)


def _parse(kind: type[Config], path: Path, section: str, content: Any) -> Config:
    """Read one section; every field must be there, and be a positive whole number or a list of such."""
    if not isinstance(content, dict):
        raise CodecError(f"{path}: `{section}` is missing.")
    defaults = asdict(kind())
    for name in defaults:
        if name not in content:
            raise CodecError(f"{path}: `{section}.{name}` is missing.")
    for name, value in content.items():
        if name not in defaults:
            raise CodecError(f"{path}: unknown key `{section}.{name}`; expected {', '.join(defaults)}.")
        is_list = isinstance(defaults[name], tuple)
        numbers = value if isinstance(value, list) else [value]
        if isinstance(value, list) != is_list or not all(type(number) is int and number > 0 for number in numbers):
            wanted = "a list of positive whole numbers" if is_list else "a positive whole number"
            raise CodecError(f"{path}: `{section}.{name}` is {value!r}; expected {wanted}.")
    sizes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
    }
    return kind(**sizes)


def _check_sizes(path: Path, codec: CodecConfig, vocoder: VocoderConfig) -> None:
    """Refuse sizes that contradict each other or the sample rates."""
    halvings = 2 ** len(codec.ratios)
    for wrong, text in (
        (prod(codec.ratios) != FRAME_SAMPLES, f"the product of `codec.ratios` must be {FRAME_SAMPLES}"),
        (codec.decoder_channels % halvings != 0, f"`codec.decoder_channels` must be a multiple of {halvings}"),
        (codec.hubert_width % POSITION_GROUPS != 0, f"`codec.hubert_width` must be a multiple of {POSITION_GROUPS}"),
        (
            codec.hubert_width % codec.hubert_heads != 0,
            "`codec.hubert_width` must be a multiple of `codec.hubert_heads`",
        ),
        (vocoder.hop != VOCODER_FRAME_SAMPLES, f"`vocoder.hop` must be {VOCODER_FRAME_SAMPLES}"),
        (vocoder.n_fft % vocoder.hop != 0, f"`vocoder.n_fft` must be a multiple of {vocoder.hop}"),
        (vocoder.embedding != codec.dimension, "`vocoder.embedding` must be as `codec.dimension`"),
    ):
        if wrong:
            raise CodecError(f"{path}: {text}.")
