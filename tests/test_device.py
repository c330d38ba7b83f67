"""Everything stays on the device it was opened for, and a step waits for nothing.

PyTorch's `meta` device has shapes and no values: a tensor left on the CPU, or a value that is read on the way, is an
error there, as it would be, or would cost a wait, on a GPU.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_llama import CONFIG, write_checkpoint
from xcodec_mini_infer.codec import Codec, CodecConfig
from xcodec_mini_infer.encoder import Encoder
from xcodec_mini_infer.vocoder import Vocoder, VocoderConfig
from yue_cli.engines import open_engine
from yue_cli.sampling import Noise, Sampler
from yue_cli.settings import Settings, resolve
from yue_cli.stages.stage1 import allowed_ids
from yue_cli.vocab import Vocabulary

META = torch.device("meta")


@pytest.mark.parametrize("songs", [1, 2, 8])
def test_engine_and_sampler_keep_to_their_device(tmp_path: Path, songs: int) -> None:
    specials = {"<SOA>": 300, "<EOA>": 301, "<stage_1>": 302, "<stage_2>": 303}
    vocabulary = Vocabulary(specials, separator=304, codebook_start=310, codebook_size=20, codebooks=8)
    folder = write_checkpoint(tmp_path)
    engine = open_engine("native", folder, rows=2 * songs, length=600, device=META, dtype=torch.bfloat16)
    allowed = allowed_ids("yue", vocabulary, CONFIG["vocab_size"])
    settings = resolve(Settings()).stage1
    sampler = Sampler(vocabulary, allowed, settings, guided=True, device=META, songs=songs)
    windows = [np.arange(520 - song) for song in range(songs)]
    noise = [Noise(1, song) if song % 3 < 2 else None for song in range(songs)]
    sampler.begin(windows, strengths=[1.5] * songs, noise=noise)
    sampler.prepare(0)
    ids = sampler.pick(engine.prefill([*windows, *[window[-1:] for window in windows]], sampler.head))
    advance = engine.fuse(sampler.pick, sampler.head)
    for _ in range(3):
        ids = advance(ids)
    assert (ids.device, ids.shape) == (META, (2 * songs, 1))
    assert engine.step(torch.cat([ids, ids], dim=1), (vocabulary.codebook(3),)).shape == (2 * songs, 20)


def test_codec_and_vocoder_keep_to_their_device() -> None:
    with META:
        codec = Codec(CodecConfig(codebooks=8, dimension=16, decoder_dimension=16, decoder_channels=32))
        vocoder = Vocoder(VocoderConfig(embedding=16, dimension=16, intermediate=32, layers=2))
        embedding = torch.empty(1, 16, 40)
    assert codec.decode_embedding(embedding, 10, 10).device == META
    assert vocoder.decode(embedding, 3, 3).device == META


def test_the_encoder_takes_sound_to_its_device() -> None:
    with META:
        encoder = Encoder(CodecConfig())
    codes = encoder.encode(torch.zeros(1, 16_000))
    assert (codes.device, codes.shape) == (META, (1, 1, 50))
