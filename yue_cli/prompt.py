"""Prompts of stage 1: what the model reads before each segment, and what is left out when the context is full.

Knows ids and their order, no models and no files. Source for the order: YuE infer.py, the loop over prompt_texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yue_cli.errors import AudioError, ContextError, SettingsError
from yue_cli.lyrics import END_OF_REFERENCE, END_OF_SEGMENT, START_OF_REFERENCE, START_OF_SEGMENT, Section
from yue_cli.tokenizer import Tokenizer
from yue_cli.vocab import FRAME_RATE, Vocabulary

INSTRUCTION = "Generate music from the given lyrics segment by segment."


@dataclass(frozen=True, eq=False)
class Reference:
    """Codes of an audio prompt, and the seconds of it that are used.

    vocal: [1, T] codes of codebook 0, or those of the one track there is (a mix, a vocal or an instrumental).
    instrumental: [1, T], or None for a reference of one track.
    """

    vocal: np.ndarray
    instrumental: np.ndarray | None = None
    start_s: float = 0.0
    end_s: float = 30.0


@dataclass(frozen=True, eq=False)
class Prompts:
    """All that a song's prompts are made of, as int64 ids. The first segment is read after head and reference."""

    head: np.ndarray  # instruction, genre and all lyrics
    reference: np.ndarray  # the audio prompt with its markers; may be empty
    segments: tuple[np.ndarray, ...]  # what is appended for each segment, up to the separator
    start_of_segment: np.ndarray  # the marker that every segment begins with,
    end_of_segment: np.ndarray  # and the one before it from the second segment on
    end_of_audio: int
    rules: str = "yue"
    warnings: tuple[str, ...] = ()

    def window(self, index: int, generated: Sequence[np.ndarray], limit: int, on_overflow: str) -> np.ndarray:
        """Choose what the model reads before it sings segment `index`: int64 [n], n <= limit.

        generated: new ids of the earlier segments, each closed by end-of-audio; later ones are ignored.
        on_overflow: `drop_oldest` forgets the oldest segments but never head and reference; `keep_last` keeps the last
        ids, whatever they are (YuE infer.py); `error` refuses. Under rules `exl2`, `drop_oldest` is `shorten`.
        Raises ContextError if nothing that may be left out makes it fit.
        """
        assert limit > 0, "check_fits comes first"
        whole = self._since(0, index, generated)
        if len(whole) <= limit:
            return whole
        if on_overflow == "keep_last":
            return whole[-limit:]
        if on_overflow == "drop_oldest" and self.rules == "exl2":
            return shorten(whole, limit, self.start_of_segment)
        if on_overflow == "error":
            raise ContextError(
                f"segment {index + 1}: its prompt has {len(whole)} tokens, expected at most {limit}. "
                "Sing fewer segments, raise stage1.context, or forget the oldest segments with "
                "`--set stage1.on_overflow=drop_oldest`."
            )
        assert on_overflow == "drop_oldest", on_overflow
        for first in range(1, index + 1):
            window = self._since(first, index, generated)
            if len(window) <= limit:
                return window
        raise ContextError(
            f"segment {index + 1}: its prompt has {self.needed_length(index, on_overflow)} tokens without any earlier "
            f"segment, expected at most {limit}. Shorten lyrics or reference, or raise stage1.context."
        )

    def raw(self, generated: Sequence[np.ndarray]) -> np.ndarray:
        """Join all prompts and new ids of the segments that exist, nothing left out: int64 [n]."""
        parts = [part for pair in zip(self.segments, generated, strict=False) for part in pair]
        return _ids(self.head, self.reference, *parts)

    def needed_length(self, index: int, on_overflow: str) -> int:
        """Count the ids that segment `index` needs before it at the least, whatever the earlier segments will be."""
        if on_overflow == "keep_last" or (on_overflow == "drop_oldest" and self.rules == "exl2"):
            return 1  # anything may be left out
        earlier: Sequence[np.ndarray] = [np.array([self.end_of_audio])] * index
        return len(self._since(0 if on_overflow == "error" else index, index, earlier))

    def _since(self, first: int, index: int, generated: Sequence[np.ndarray]) -> np.ndarray:
        """Join head, reference and the segments from `first` up to the prompt of `index`."""
        assert len(generated) >= index, f"segment {index} needs the ids of {index} earlier ones, not {len(generated)}"
        parts = [self.head, self.reference]
        for number in range(first, index):
            assert generated[number][-1] == self.end_of_audio, f"segment {number} is not closed by end-of-audio"
            parts += [self.segments[number], generated[number]]
        parts.append(self.segments[index])
        if first > 0:
            parts[2] = parts[2][len(self.end_of_segment) :]
        return _ids(*parts)


def build(
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    genre: str,
    sections: Sequence[Section],
    rules: str = "yue",
    reference: Reference | None = None,
) -> Prompts:
    """Turn texts and codes into prompts. The head holds every section, however many will be sung.

    Rules `yue` take control strings in the texts for plain text; the others encode them as YuE's tokenizer does.
    Raises SettingsError or AudioError for a reference that cannot be used.
    """
    encode = tokenizer.encode if rules == "yue" else tokenizer.encode_control
    texts = [section.prompt_text for section in sections]
    start, end = encode(START_OF_SEGMENT), encode(END_OF_SEGMENT)
    opening = [vocabulary.start_of_audio, vocabulary.separator]
    segments = []
    for number, text in enumerate(texts):
        words = encode(text.replace(START_OF_SEGMENT, "").replace(END_OF_SEGMENT, ""))
        segments.append(_ids(end if number else [], start, words, opening))
    reference_ids, warnings = _ids([]), list[str]()
    if reference is not None:
        codes = _cut(reference, vocabulary, rules, warnings)
        closing = [vocabulary.end_of_audio]
        reference_ids = _ids(encode(START_OF_REFERENCE), opening, codes, closing, encode(END_OF_REFERENCE))
    return Prompts(
        head=_ids(encode(f"{INSTRUCTION}\n[Genre] {genre}\n" + "\n".join(texts))),
        reference=reference_ids,
        segments=tuple(segments),
        start_of_segment=_ids(start),
        end_of_segment=_ids(end),
        end_of_audio=vocabulary.end_of_audio,
        rules=rules,
        warnings=tuple(warnings),
    )


def window_limit(context: int, max_new_tokens: int) -> int:
    """Count the ids that a prompt may have, so that a whole segment still fits. Source: YuE infer.py, max_context."""
    return context - max_new_tokens - 1


def check_fits(
    prompts: Prompts, context: int, max_new_tokens: int, on_overflow: str, segments: int | None = None
) -> None:
    """Find out, before any weights are loaded, whether the first `segments` (None: all) can fit into the context.

    Raises ContextError.
    """
    limit = window_limit(context, max_new_tokens)
    if limit < 1:
        raise ContextError(
            f"stage1.max_new_tokens is {max_new_tokens}, stage1.context is {context}; expected a context of at least "
            f"{max_new_tokens + 2}. Lower stage1.max_new_tokens or raise stage1.context."
        )
    for index in range(len(prompts.segments[:segments])):
        needed = prompts.needed_length(index, on_overflow)
        if needed > limit:
            found = f"lyrics {len(prompts.head)}" + f", reference {len(prompts.reference)}" * bool(
                len(prompts.reference)
            )
            raise ContextError(
                f"segment {index + 1}: its prompt has at least {needed} tokens ({found}, the rest its own), expected "
                f"at most {limit}: a context of {context} less {max_new_tokens} for what is sung. "
                "Shorten lyrics or reference, or raise stage1.context."
            )


def shorten(ids: np.ndarray, limit: int, start_of_segment: np.ndarray) -> np.ndarray:
    """Leave out the oldest segments as YuE-exllamav2 does: by looking for their markers.

    From the first marker up to the second is left out until `limit` ids remain; with fewer than three markers the last
    `limit` ids are kept instead. A marker in the lyrics counts, too. Source: YuE-exllamav2, shorten_input.
    """
    while len(ids) > limit:
        starts = np.flatnonzero(ids == start_of_segment[0])
        places = [place for place in starts if np.array_equal(ids[place:][: len(start_of_segment)], start_of_segment)]
        if len(places) < 3:
            return ids[-limit:]
        ids = np.concatenate([ids[: places[0]], ids[places[1] :]])
    return ids


def _cut(reference: Reference, vocabulary: Vocabulary, rules: str, warnings: list[str]) -> np.ndarray:
    """Turn the wanted seconds of a reference into ids; two tracks are interleaved, the vocal first."""
    tracks = [reference.vocal] if reference.instrumental is None else [reference.vocal, reference.instrumental]
    lengths_s = [track.shape[1] / FRAME_RATE for track in tracks]
    if len(set(lengths_s)) > 1:
        found = f"vocal {lengths_s[0]:.2f} s, instrumental {lengths_s[1]:.2f} s"
        if rules != "yue":
            raise AudioError(
                f"the tracks of the reference differ in length ({found}); rules {rules} expect equal lengths. "
                "Cut the longer one or use `--set rules=yue`."
            )
        warnings.append(f"the tracks of the reference differ in length ({found}); the end of the longer is left out")
        tracks = [track[:, : int(min(lengths_s) * FRAME_RATE)] for track in tracks]
    start_s, end_s, count = reference.start_s, reference.end_s, len(tracks)
    # Each track holds codes of codebook 0, so the interleaved ones are rows of codebook 0 as well.
    ids = vocabulary.codes_to_ids(np.stack([track[0] for track in tracks]).T.reshape(1, -1))
    if rules != "yue":
        # YuE infer.py: with two tracks an odd start swaps vocal and instrumental.
        return ids[int(start_s * FRAME_RATE * count) : int(end_s * FRAME_RATE * count)]
    if not 0 <= start_s < end_s:
        raise SettingsError(f"the reference is used from {start_s} s to {end_s} s; expected 0 <= start < end.")
    chosen = ids[int(start_s * FRAME_RATE) * count : int(end_s * FRAME_RATE) * count]
    if not len(chosen):
        raise SettingsError(
            f"the reference is used from {start_s} s to {end_s} s, but has only {min(lengths_s):.2f} s; "
            "expected at least one frame (0.02 s). Start earlier."
        )
    return chosen


def _ids(*parts: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
