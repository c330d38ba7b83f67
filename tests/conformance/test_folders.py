from pathlib import Path

import numpy as np
import pytest

from tests.conformance import folders


def test_committed_files_are_always_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(folders.VARIABLE, raising=False)
    cases = folders.files("codec", "decode_*.npz")
    assert [case.id for case in cases] == [f"golden/{path.name}" for path in sorted(_golden("decode_*.npz"))]
    assert not any(mark.name == "slow" for case in cases for mark in case.marks)


def test_the_full_folder_is_listed_as_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "decode_a.npz").touch()
    monkeypatch.setenv(folders.VARIABLE, str(tmp_path))
    case = folders.files("codec", "decode_*.npz")[-1]
    assert case.id == "full/decode_a.npz"
    assert [mark.name for mark in case.marks] == ["conformance", "slow"]


@pytest.mark.parametrize("part", ["codec", "no such folder"])
def test_a_kind_that_the_full_folder_lacks_cannot_be_opened(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "codec").mkdir()
    monkeypatch.setenv(folders.VARIABLE, str(tmp_path))
    (path,) = folders.files(part, "decode_*.npz")[-1].values
    assert isinstance(path, Path)
    with pytest.raises(FileNotFoundError, match="decode_"):
        np.load(path)


@pytest.mark.parametrize("kind", ["decode", "vocos", "post", "resample", "song"])
def test_every_codec_kind_has_a_committed_file(kind: str) -> None:
    assert _golden(f"{kind}_*.npz")


def _golden(pattern: str) -> list[Path]:
    return list((folders.GOLDEN / "codec").glob(pattern))
