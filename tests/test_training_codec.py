"""Training of the small codec on a few seconds of tones: it learns, it resumes, the product reads what it wrote."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import small_codec
from training import loop
from training.codec import autoencoder as autoencoder_module
from training.codec import export, renderer, semantic
from training.codec.autoencoder import Autoencoder
from training.codec.labels import Label
from training.codec.losses import LogMel, MelDistance, edge_distance, si_sdr
from training.codec.presets import PRESETS, CropRun, Preset
from training.codec.quantiser import DEAD, LearningQuantizer
from training.codec.renderer import DecoderRenderer, VocoderRenderer, prepare_vocoder
from training.codec.semantic import SemanticStudent, make_hubert
from training.codec.songs import INSTRUMENTAL, MIX, VOCAL, Crops, Sampler, Songs
from xcodec_mini_infer import SAMPLE_RATE, VOCODER_SAMPLE_RATE, checkpoint
from xcodec_mini_infer.quantizer import Quantizer
from xcodec_mini_infer.vocoder import Vocoder
from yue_cli.stages import decode, reference

LABELS = (Label("semitone", 3, VOCAL, 1.0), Label("chord", 2, INSTRUMENTAL, 1.0))
RUN = CropRun(steps=6, batch=2, frames=10, learning_rate=2e-3, warm_up=1)
PRESET = Preset(
    codec=small_codec.CODEC,
    vocoder=replace(small_codec.VOCODER, layers=2),
    semantic=RUN,
    autoencoder=RUN,
    unquantised_steps=2,
    decoder=RUN,
    vocal=RUN,
    instrumental=RUN,
)


@pytest.fixture(autouse=True, scope="module")
def _few():
    """Examine on few crops, and place codebooks on few."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (autoencoder_module, renderer, semantic):
            patch.setattr(module, "EXAMINED", 6)
        patch.setattr(autoencoder_module, "KMEANS_BATCHES", 4)
        yield


def songs(rate: int) -> Songs:
    """Two songs of 2 s: tones that change every half second over a steady low tone."""
    time = np.arange(4 * rate) / rate
    voice = 0.3 * np.sin(2 * np.pi * np.where(time % 1 < 0.5, 300, 500) * time)
    band = 0.3 * np.sin(2 * np.pi * 110 * time)
    frames = torch.arange(200)
    labels = {"semitone": 1 + (frames % 50 >= 25).long(), "chord": torch.ones(200, dtype=torch.int64)}
    waves = torch.from_numpy((np.stack([voice, band]) * 32_767).astype(np.int16))
    return Songs(waves, [0, 100, 200], rate // 50, labels)


@pytest.fixture(scope="module")
def set_16k() -> Songs:
    return songs(SAMPLE_RATE)


def autoencoder(set_16k: Songs) -> Autoencoder:
    torch.manual_seed(3)
    hubert = make_hubert(PRESET.codec)
    features = torch.zeros(3, set_16k.bounds[-1], PRESET.codec.hubert_width, dtype=torch.float16)
    return Autoencoder(PRESET, hubert, set_16k, set_16k, features, features, LABELS, seed=1)


def test_a_crop_of_the_mix_is_the_sum_of_its_tracks(set_16k):
    starts, tracks = torch.tensor([90, 90, 90]), torch.tensor([VOCAL, INSTRUMENTAL, MIX])
    vocal, band, mix = set_16k.wave(Crops(tracks, starts, 10))
    torch.testing.assert_close(mix, vocal + band)
    torch.testing.assert_close(vocal, set_16k.waves[0, 90 * 320 : 100 * 320] / 32_768)


def test_the_first_songs_are_kept_whole(set_16k):
    one = set_16k.first(hours=1.9 / 3600)
    assert (one.bounds, one.waves.shape, one.labels["chord"].shape) == ([0, 100], (2, 32_000), (100,))
    assert set_16k.first(hours=2.1 / 3600).bounds == set_16k.first(float("inf")).bounds == [0, 100, 200]


def test_crops_stay_within_a_song_and_avoid_silence():
    sounding = np.zeros((3, 200), bool)
    sounding[:, 50:100] = True  # the first song ends in sound, the second has none
    crops = Sampler([0, 100, 200], sounding).draw(np.random.default_rng(0), 400, 10, (0.5, 0.5, 0.0))
    starts = crops.starts.numpy()
    assert set(crops.tracks.tolist()) == {VOCAL, INSTRUMENTAL}
    assert not ((starts > 90) & (starts < 100)).any()
    assert starts.max() <= 190
    # A quarter of all places sound; of four tries one does, nearly always.
    assert 0.5 < ((starts > 45) & (starts <= 90)).mean() < 0.9


def test_a_click_at_either_end_counts_as_much_and_one_within_does_not():
    silence = torch.zeros(2, 100)
    first, last, within = torch.zeros(3, 2, 100)
    first[:, 3], last[:, -3], within[:, 50] = 2, -2, 2
    assert edge_distance(first, silence, 10) == edge_distance(last, silence, 10) == 4 / 20
    assert edge_distance(within, silence, 10) == 0


def test_log_mel_and_si_sdr_have_the_values_worked_out_by_hand():
    time = torch.arange(16_000) / 16_000
    tone = torch.sin(2 * math.pi * 1000 * time)[None]
    mel = LogMel(16_000, 512, 80)
    assert torch.allclose(mel(0 * tone), torch.full_like(mel(tone), math.log(1e-5)), atol=1e-4)
    assert mel(tone)[0, :, 60].exp().sum() > 0.2  # of a magnitude of 1/2, spread over bands whose weights sum to 1
    distance = MelDistance(16_000, ((512, 80),))
    assert distance(tone, tone) == 0
    assert float(distance(0.5 * tone, tone)) < math.log(2) + 1e-4  # less where the floor rules
    noise = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    noise -= tone * (noise @ tone.T) / (tone @ tone.T)
    noise *= tone.norm() / noise.norm()
    assert abs(float(si_sdr(3 * (tone + 0.1 * noise), tone)) - 20) < 0.05


def test_a_restarted_entry_takes_both_its_statistics_along():
    quantizer = Quantizer(1, 4, 2)
    learner = LearningQuantizer(quantizer)
    draw = np.random.default_rng(0)
    vectors = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]]).repeat(10, 1)
    learner.initialise(
        vectors + 0.01 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), draw, step_vectors=40
    )
    with torch.no_grad():
        quantizer.codebooks[0][2] = torch.tensor([500.0, 500.0])  # where nothing ever is
        learner.sums[0, 2] = learner.counts[0, 2] * quantizer.codebooks[0][2]
    steps = 0
    while not learner.learn(vectors, learner(vectors)[0], draw):
        steps += 1
        assert steps < 500
    count, entry = learner.counts[0, 2], quantizer.codebooks[0][2].clone()
    assert count > DEAD * learner.counts.mean()
    torch.testing.assert_close(learner.sums[0, 2] / count, entry)
    assert (vectors == entry).all(1).any()  # at a vector of the batch
    # And it stays there: the next step does not bring it back to where it died, nor restart it again.
    assert learner.learn(vectors, learner(vectors)[0], draw) == 0
    assert (quantizer.codebooks[0][2] - entry).abs().max() < 1


def test_codes_and_sums_are_those_of_the_product():
    quantizer = Quantizer(3, 8, 4)
    learner = LearningQuantizer(quantizer)
    vectors = torch.randn(50, 4)
    learner.initialise(vectors, np.random.default_rng(0), step_vectors=50)
    codes, sums = learner(vectors)
    expected = quantizer.encode(vectors.T[None])[0]
    assert torch.equal(codes, expected)
    for depth in (1, 2, 3):
        torch.testing.assert_close(sums[depth - 1], quantizer(expected[None, :depth])[0].T)
    errors = [(vectors - part).square().mean() for part in sums]
    assert errors[0] > errors[1] > errors[2]


def falls(student: loop.Student, run: CropRun, folder: Path) -> bool:
    first = student.loss(0)[0].item()
    loop.train(student, run, folder)
    return student.loss(0)[0].item() < first


def test_the_semantic_branch_learns(set_16k, tmp_path):
    torch.manual_seed(0)
    student = SemanticStudent(PRESET.codec, RUN, set_16k, set_16k, LABELS, seed=1)
    assert falls(student, RUN, tmp_path)
    assert 0 <= student.examine()["semitone"] <= 1


def test_the_autoencoder_learns_and_a_resumed_run_is_an_undisturbed_one(set_16k, tmp_path):
    first = autoencoder(set_16k)
    assert falls(first, RUN, tmp_path / "one")
    undisturbed = autoencoder(set_16k)
    assert loop.train(undisturbed, RUN, tmp_path / "whole") == 6
    for until in (1, 4, 6):  # before the codebooks are placed, after it, to the end
        resumed = autoencoder(set_16k)
        assert loop.train(resumed, RUN, tmp_path / "parts", until=until) == until
    expected, found = undisturbed.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.fixture(scope="module")
def exported(set_16k, tmp_path_factory) -> Path:
    """A checkpoint of an autoencoder after a few steps."""
    folder = tmp_path_factory.mktemp("exported")
    student = autoencoder(set_16k)
    loop.train(student, RUN, folder / "run")
    vocoders = [prepare_vocoder(Vocoder(PRESET.vocoder)) for _ in range(2)]
    modules = {
        checkpoint.CODEC_FILE: (student.encoder, student.codec),
        checkpoint.VOCAL_FILE: (vocoders[0],),
        checkpoint.INSTRUMENTAL_FILE: (vocoders[1],),
    }
    export.write_checkpoint(folder / "codec", PRESET.codec, PRESET.vocoder, modules)
    torch.save((student.encoder.state_dict(), student.codec.state_dict(), vocoders[0].state_dict()), folder / "trained")
    return folder


def test_the_product_loads_what_was_trained_within_rounding(exported):
    encoder, codec, vocal = torch.load(exported / "trained", weights_only=True)
    loaded = (
        checkpoint.load_encoder(exported / "codec", codebooks=8).state_dict(),
        checkpoint.load_codec(exported / "codec").state_dict(),
        checkpoint.load_vocoder(exported / "codec", checkpoint.VOCAL_FILE).state_dict(),
    )
    for trained, found in zip((encoder, codec, vocal), loaded, strict=True):
        for name, values in trained.items():
            torch.testing.assert_close(found[name], values, rtol=2e-3, atol=1e-5)


def test_the_normal_stages_encode_and_decode_with_it(exported, set_16k):
    sound = set_16k.song(0, VOCAL)[0].numpy()
    encoder = reference.open_encoder(exported / "codec")
    [codes] = reference.encode(encoder, {"vocal": (sound, SAMPLE_RATE)}).values()
    every = export.encode_songs(checkpoint.load_encoder(exported / "codec", codebooks=8), set_16k)
    np.testing.assert_array_equal(codes[0], every[VOCAL, 0, :100])
    song = every[..., :100].numpy()
    stems = decode.decode(decode.open_codec(exported / "codec"), song[VOCAL], song[INSTRUMENTAL], "scale")
    assert stems.mix.shape == (1, 100 * 882)
    assert np.isfinite(stems.mix).all()


def test_the_decoder_learns_from_fixed_codes_and_renders_as_the_product_does(exported, set_16k, tmp_path):
    codec = checkpoint.load_codec(exported / "codec")
    codes = export.encode_songs(checkpoint.load_encoder(exported / "codec", codebooks=8), set_16k)
    student = DecoderRenderer(codec, RUN, set_16k, set_16k, codes, codes, (0.5, 0.5, 0.0), seed=1)
    assert falls(student, RUN, tmp_path)
    crops = Crops(torch.tensor([VOCAL, INSTRUMENTAL]), torch.tensor([20, 130]), 10)
    rendered = student._rendered(codes, crops, torch.tensor([8, 4])).detach()
    for row, (track, start, depth) in enumerate(((VOCAL, 20, 8), (INSTRUMENTAL, 130, 4))):
        first = start // 100 * 100
        whole = codec.decode(codes[track, None, :depth, first : first + 100].long())[0]
        place = (start - first) * 320
        torch.testing.assert_close(rendered[row], whole[place : place + 3200], rtol=1e-4, atol=1e-5)


def test_a_vocoder_learns_from_fixed_codes(exported, set_16k, tmp_path):
    codec = checkpoint.load_codec(exported / "codec")
    codes = export.encode_songs(checkpoint.load_encoder(exported / "codec", codebooks=8), set_16k)
    torch.manual_seed(0)
    vocoder = prepare_vocoder(Vocoder(PRESET.vocoder))
    fine = songs(VOCODER_SAMPLE_RATE)
    student = VocoderRenderer(vocoder, codec, RUN, fine, fine, codes, codes, (0.0, 1.0, 0.0), seed=1)
    assert falls(student, RUN, tmp_path)
    assert all(parameter.grad is None for parameter in codec.parameters())
    crops = Crops(torch.tensor([VOCAL, INSTRUMENTAL]), torch.tensor([0, 100]), 100)
    rendered = student._rendered(codes, crops, torch.tensor([8, 8]), alone=True).detach()
    for row, (track, start) in enumerate(((VOCAL, 0), (INSTRUMENTAL, 100))):
        song = codec.embed(codes[track, None, :, start : start + 100].long())
        torch.testing.assert_close(rendered[row], vocoder.decode(song)[0], rtol=1e-4, atol=1e-5)  # edges and all


@pytest.mark.parametrize("name", PRESETS)
def test_a_checkpoint_of_every_preset_fits_into_ten_megabytes(name):
    codec, vocoder = PRESETS[name].codec, PRESETS[name].vocoder
    shapes = checkpoint.codec_shapes(codec) | checkpoint.encoder_shapes(codec, codec.codebooks)
    values = [math.prod(shape) for shape in shapes.values()]
    values += 2 * [math.prod(shape) for shape in checkpoint.vocoder_shapes(vocoder).values()]
    assert sum(values) * export.STORED.itemsize < 10e6


def test_a_step_without_the_step_before_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the step `semantic` first"):
        loop.load_state(tmp_path / "semantic", "hubert")
