"""The audio codec of YuE: sound to codes, and codes to sound, at 16 kHz and, through a vocoder, at 44.1 kHz.

Sources: X-Codec, arXiv 2408.17175; HuBERT, arXiv 2106.07447; Vocos, arXiv 2306.00814; the published
model `m-a-p/xcodec_mini_infer`.
"""

SAMPLE_RATE = 16_000  # what the codec hears and speaks
VOCODER_SAMPLE_RATE = 44_100
FRAME_RATE = 50  # frames of codes a second
FRAME_SAMPLES = SAMPLE_RATE // FRAME_RATE
VOCODER_FRAME_SAMPLES = VOCODER_SAMPLE_RATE // FRAME_RATE


class CodecError(ValueError):
    """A checkpoint, codes or a waveform that the codec cannot use."""
