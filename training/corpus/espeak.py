"""Ask espeak-ng how a word sounds: audio on one constant pitch, and where each phoneme starts.

espeak-ng (GPL-3) is a tool at corpus making only, loaded at run time from the package espeakng-loader.
"""

import ctypes
from dataclasses import dataclass

import numpy as np

RATE_WPM = 130
_SYNCHRONOUS = 2
_PHONEME_EVENTS = 1
_UTF8, _PHONEMES_IN_BRACKETS = 1, 0x100
_PARAMETER_RATE, _PARAMETER_PITCH, _PARAMETER_RANGE = 1, 3, 4
_EVENT_PHONEME = 7


class EspeakMissing(RuntimeError):
    """espeak-ng is not there."""


@dataclass(frozen=True)
class Phone:
    """A phoneme by espeak's own name, stress mark included, and its samples [start, stop)."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Utterance:
    samples: np.ndarray  # float64 [N], about [-1, 1]
    sample_rate: int
    phones: tuple[Phone, ...]


class _Identifier(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identifier),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """One voice of espeak-ng on a monotone pitch. The library is global: use one voice at a time."""

    def __init__(self, voice: str, pitch: int):
        """voice: such as en-us+m3. pitch: espeak's 0..99. Raises EspeakMissing."""
        try:
            import espeakng_loader
        except ImportError as error:
            raise EspeakMissing("espeak-ng is missing; run `pip install -e '.[corpus]'`.") from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data_path = espeakng_loader.get_data_path().encode()
        self.sample_rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, data_path, _PHONEME_EVENTS))
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise EspeakMissing(f"espeak-ng has no voice {voice}; reinstall espeakng-loader.")
        for parameter, value in ((_PARAMETER_RATE, RATE_WPM), (_PARAMETER_PITCH, pitch), (_PARAMETER_RANGE, 0)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._blocks: list[np.ndarray] = []
        self._starts: list[tuple[str, int]] = []
        self._callback = _Callback(self._receive)  # kept: the library holds only a pointer
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str) -> Utterance:
        """Speak a word, or phonemes in double brackets."""
        self._blocks.clear()
        self._starts.clear()
        encoded = text.encode()
        flags = _UTF8 | _PHONEMES_IN_BRACKETS
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, flags, None, None)
        samples = np.concatenate(self._blocks).astype(np.float64) / 32768
        stops = [start for _, start in self._starts[1:]] + [len(samples)]
        phones = tuple(
            Phone(name, start, stop)
            for (name, start), stop in zip(self._starts, stops, strict=True)
            if not name.startswith("_") and stop > start
        )
        return Utterance(samples, self.sample_rate, phones)

    def _receive(self, wave: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]") -> int:
        if count > 0:
            self._blocks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while events[index].type:
            if events[index].type == _EVENT_PHONEME:
                self._starts.append((events[index].id.string.decode(), events[index].sample))
            index += 1
        return 0
