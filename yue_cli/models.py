"""Which models there are: short names, where they are published, which of their files are needed, for which words.

No network and no disk: `hub.py` fetches, `weights.py` finds.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

LANGUAGES = {"en": "English", "zh": "Chinese", "jp-kr": "Japanese or Korean"}
EIGHT_BIT, FOUR_BIT = FORMATS = ("native-8bit", "native-4bit")  # that yue quantizes models to
CODEC_FILES = {  # the published files by what they hold
    "codec": "final_ckpt/ckpt_00360000.pth",
    "vocal": "decoders/decoder_131000.pth",
    "instrumental": "decoders/decoder_151000.pth",
}
CONVERTED_FILES = (
    "config.json",
    "codec.safetensors",
    "vocal.safetensors",
    "instrumental.safetensors",
)  # as yue writes it
_LANGUAGE_MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.model", "vocabulary.json")
_WEIGHTS = (".safetensors", ".safetensors.index.json")


@dataclass(frozen=True)
class Source:
    """A model on the hub: its repository, at a branch, tag or commit."""

    name: str  # as it was asked for
    repository: str
    revision: str = "main"
    digests: dict[str, str] = field(default_factory=dict, hash=False)  # SHA-256 that files are known by

    @property
    def command(self) -> str:
        """The command that fetches it."""
        return f"yue models pull {self.name}"


@dataclass(frozen=True)
class Model(Source):
    """A model that has a short name."""

    part: str = "stage1"
    bytes: int = 0  # about what is downloaded


_STAGE1_BYTES, _STAGE2_BYTES = 12_449_226_752, 3_925_086_208  # of the parameters, two bytes each
_CODEC_BYTES = 1_360_444_883 + 2 * 72_610_550
_DIGESTS = {
    CODEC_FILES["codec"]: "c8c379ea2d3cbde1c8ba1b9717975220e79ba3f556bb161766fd5e4585dcd59c",
    CODEC_FILES["instrumental"]: "8af97a29d3483f9d4a3755992837501bd7d6caa1a69382ed16e64039e0ea0998",
}
# Revisions are those that other programs have named; the others are resolved when they are first pulled.
_EN_COT = "454c20e1748888800f8e4b3da45125f55482d967"
_S2 = "9dfa90b7013f6b5e7eb5eb2991620dca33058a0e"
_CODEC = "fe781a67815ab47b4a3a5fce1e8d0a692da7e4e5"


def _catalogue() -> dict[str, Model]:
    names = [f"{language}-{kind}" for language in LANGUAGES for kind in ("cot", "icl")]
    revisions = {"en-cot": _EN_COT}
    found = [
        Model(name, f"m-a-p/YuE-s1-7B-anneal-{name}", revisions.get(name, "main"), bytes=_STAGE1_BYTES)
        for name in names
    ]
    found.append(Model("s2", "m-a-p/YuE-s2-1B-general", _S2, part="stage2", bytes=_STAGE2_BYTES))
    found.append(Model("codec", "m-a-p/xcodec_mini_infer", _CODEC, _DIGESTS, part="codec", bytes=_CODEC_BYTES))
    return {model.name: model for model in found}


CATALOGUE = _catalogue()
DEFAULTS = {"stage1": "en-cot", "stage2": "s2", "codec": "codec"}
_SHARD = re.compile(r"(.*-)\d{5}-of-(\d{5})(\.safetensors)")
_SHARED_SIZES = {"model_type": "llama", "num_hidden_layers": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
# What the config.json of the published language models says, as the ports of YuE quote it.
SIZES: dict[str, dict[str, Any]] = {
    "stage1": _SHARED_SIZES
    | {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 83968,
        "max_position_embeddings": 16384,
        "tie_word_embeddings": False,
    },
    "stage2": _SHARED_SIZES
    | {
        "hidden_size": 2048,
        "intermediate_size": 5504,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 83840,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_source(name: str) -> Source | None:
    """Read a short name or a hub id, with `@revision` or without; None for anything else."""
    base, at, revision = name.partition("@")
    if at and not re.fullmatch(r"[\w.][\w./-]*", revision):
        return None
    known = CATALOGUE.get(base)
    if known is not None:
        return Source(name, known.repository, revision) if at else known
    if _HUB_ID.fullmatch(base) and ".." not in base:
        return Source(name, base, revision if at else "main")
    return None


def in_form(name: str, form: str) -> str:
    """Name a model of the catalogue in a smaller form of its weights; other names stay as they are."""
    model = CATALOGUE.get(name)
    return f"{name}@{form}" if form in FORMATS and model is not None and model.part != "codec" else name


def choose_stage1(language: str, has_reference: bool) -> str:
    """Name the stage-1 model for a language: one that follows a reference where there is one, else one that plans."""
    return f"{language}-{'icl' if has_reference else 'cot'}"


def needed_files(files: Iterable[str]) -> list[str]:
    """Pick from a repository's files those that yue reads."""
    names = list(files)
    if any(name in names for name in CODEC_FILES.values()):
        return [name for name in CODEC_FILES.values() if name in names]
    read = [name for name in names if "/" not in name and _is_read(name)]
    return sorted(read, key=lambda name: (name.endswith(".safetensors"), name))  # the index is there before its shards


def missing_files(files: Iterable[str], part: str) -> list[str]:
    """Name the files that a repository lacks to be the model of a part."""
    names = set(files)
    if part == "codec":
        if names.issuperset(CONVERTED_FILES):
            return []
        return [name for name in CODEC_FILES.values() if name not in names]
    missing = ["config.json"] if "config.json" not in names else []
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        missing.append("model.safetensors")
    if part == "stage1" and "tokenizer.model" not in names:
        missing.append("tokenizer.model")
    return missing


def missing_shards(files: Iterable[str]) -> set[str]:
    """Name the files that others tell of by their names: where 00001-of-00003 is, all three belong."""
    names = set(files)
    numbered = [match for match in map(_SHARD.fullmatch, names) if match]
    whole = {f"{m[1]}{number:05}-of-{m[2]}{m[3]}" for m in numbered for number in range(1, int(m[2]) + 1)}
    return whole - names


def guess_part(files: Iterable[str]) -> str:
    """Tell what a repository holds from the names of its files."""
    names = set(files)
    if names & set(CODEC_FILES.values()) or names.issuperset(CONVERTED_FILES):
        return "codec"
    return "stage1" if "tokenizer.model" in names else "stage2"


def _is_read(name: str) -> bool:
    return name in _LANGUAGE_MODEL_FILES or name.endswith(_WEIGHTS)


def remarks(name: str, texts: Iterable[str], has_reference: bool) -> list[str]:
    """Say where a stage-1 model does not fit the words or the reference, and which one does."""
    base = PurePosixPath(name.partition("@")[0]).name.removeprefix("YuE-s1-7B-anneal-")
    if base not in CATALOGUE or CATALOGUE[base].part != "stage1":
        return []
    language, _, kind = base.rpartition("-")
    sung = language_of(texts)
    found = []
    if sung is not None and sung != language:
        found.append(
            f"the lyrics look {LANGUAGES[sung]}, {base} was trained to sing {LANGUAGES[language]}; "
            f"--language {sung} takes {choose_stage1(sung, has_reference)}"
        )
    elif kind == "icl" and not has_reference:
        found.append(f"{base} expects a reference song; without one, {choose_stage1(language, False)} sings better")
    elif kind == "cot" and has_reference:
        found.append(f"{base} does not follow a reference song; {choose_stage1(language, True)} does")
    return found


def language_of(texts: Iterable[str]) -> str | None:
    """Guess the language from the letters: kana or hangul, other Chinese characters, or Latin; None without letters."""
    counts = {"en": 0, "zh": 0, "jp-kr": 0}
    for letter in "".join(texts):
        if letter.isalpha():
            script = unicodedata.name(letter, "").partition(" ")[0]
            if script in ("HIRAGANA", "KATAKANA", "HANGUL"):
                counts["jp-kr"] += 1
            elif script == "CJK":
                counts["zh"] += 1
            elif script == "LATIN":
                counts["en"] += 1
    if counts["jp-kr"] * 5 > counts["zh"]:  # Japanese mixes both; Chinese has no kana
        counts["jp-kr"] += counts["zh"]
        counts["zh"] = 0
    most = max(counts, key=lambda language: counts[language])
    return most if counts[most] else None
