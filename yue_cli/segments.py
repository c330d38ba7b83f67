"""Which segments of stage 1 are there already and still fit what is asked for. No tensors, no models."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from yue_cli.artifacts import encode_json, sha256_array, sha256_json
from yue_cli.errors import ArtifactError, SettingsError
from yue_cli.project import Project, SegmentRecord, segment_facts
from yue_cli.prompt import Prompts
from yue_cli.song import Song


@dataclass(frozen=True)
class SegmentKeys:
    """Tells the key of a segment: a hash of head, reference, settings, its prompt and seed, and earlier segments."""

    prompts: Prompts
    song: Song
    settings: dict[str, Any]  # the stage's recipe

    def key(self, number: int, earlier: Sequence[np.ndarray]) -> str:
        """Name segment `number` (from 1) that follows `earlier` ids."""
        # Texts and audio are in head, reference and prompt; how many segments follow does not matter to this one.
        apart = ("lyrics", "genre", "reference", "segments", "seed")
        return sha256_json(
            {
                "head": sha256_array(self.prompts.head),
                "reference": sha256_array(self.prompts.reference),
                "settings": {key: value for key, value in self.settings.items() if key not in apart},
                "prompt": sha256_array(self.prompts.segments[number - 1]),
                "seed": self.song.segment_seed(number),
                "earlier": [sha256_array(ids) for ids in earlier],
            }
        )


def keep_current(records: Sequence[SegmentRecord], keys: SegmentKeys, wanted: int) -> list[SegmentRecord]:
    """Keep the leading segments whose keys are what they would be now."""
    kept: list[SegmentRecord] = []
    for record in records[:wanted]:
        if record.key != keys.key(record.number, [earlier.ids for earlier in kept]):
            break
        kept.append(record)
    return kept


def check_start(number: int, records: Sequence[SegmentRecord], wanted: int) -> None:
    """Find out whether the song can be sung anew from segment `number` on.

    Raises SettingsError for a number outside 1..wanted, ArtifactError if a segment before it is not there.
    """
    if not 1 <= number <= wanted:
        raise SettingsError(f"--from-segment {number}: expected a number from 1 to {wanted}, the segments to be sung.")
    if len(records) < number - 1:
        raise ArtifactError(
            f"--from-segment {number}: segment {len(records) + 1} is not there yet; "
            f"expected segments 1 to {number - 1} in stage1/segments/."
        )


def keep_before(number: int, records: Sequence[SegmentRecord], keys: SegmentKeys) -> list[SegmentRecord]:
    """Keep the segments before `number` whatever they were made from, under the keys they would have now."""
    kept: list[SegmentRecord] = []
    for record in records[: number - 1]:
        kept.append(replace(record, key=keys.key(record.number, [earlier.ids for earlier in kept])))
    return kept


def copies(project: Project, kept: Sequence[SegmentRecord]) -> dict[str, Path | bytes]:
    """List the files of a new stage-1 folder that starts with these segments, ids byte for byte."""
    files: dict[str, Path | bytes] = {}
    for record in kept:
        ids_path, facts_path = project.segment_files(record.number)
        files[f"segments/{ids_path.name}"] = ids_path
        files[f"segments/{facts_path.name}"] = encode_json(segment_facts(record))
    return files
