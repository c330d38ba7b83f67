"""Reading `.pth` files: the tensors that are in them, and nothing that they would do."""

import copyreg
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from xcodec_mini_infer import CodecError
from xcodec_mini_infer.pickles import Foreign, StoredTensor, open_pickle

PLAIN = {"name": "x", "steps": [1, 2.5, None, True, (1, 2), (1, 2, 3, 4)], "big": 2**70}


def read_all(path: Path) -> dict:
    with open_pickle(path) as content:
        return {name: value.read() if isinstance(value, StoredTensor) else value for name, value in content.items()}


def refusal(path: Path) -> str:
    with pytest.raises(CodecError) as error:
        read_all(path)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.fixture(params=["zip", "legacy"])
def save(request, tmp_path):
    def save_as(content: object) -> Path:
        path = tmp_path / "file.pth"
        torch.save(content, path, _use_new_zipfile_serialization=request.param == "zip")
        return path

    return save_as


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_kind_come_back(save, dtype):
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    assert torch.equal(read_all(save({"t": tensor}))["t"], tensor)


def test_views_share_a_storage_and_keep_their_steps(save):
    base = torch.arange(60.0).reshape(3, 4, 5)
    views = {"slice": base[1:, 1:3], "turned": base.permute(2, 0, 1), "wide": base[:, :1].expand(3, 7, 5)}
    views |= {"nothing": base[:0], "one": base[2, 3, 4], "all": base, "weight": torch.nn.Parameter(base[1])}
    found = read_all(save(views))
    assert all(torch.equal(found[name], view) for name, view in views.items())


def test_plain_values_and_ordered_dictionaries_come_back(save):
    state = torch.nn.Linear(2, 3).state_dict()  # an OrderedDict with an attribute
    with open_pickle(save(PLAIN | {"state": state, "pairs": OrderedDict(a=1)})) as content:
        assert {name: content[name] for name in PLAIN} == PLAIN
        assert content["pairs"] == {"a": 1}
        assert torch.equal(content["state"]["weight"].read(), state["weight"])


class Config:
    """Stands for a class of a package that is not installed."""

    def __init__(self) -> None:
        self.content = {"generator": {"name": "SoundStream"}}


def test_foreign_objects_stay_names(save):
    found = read_all(save({"config": Config(), "scalar": np.float32(1.5), "t": torch.ones(2)}))
    assert isinstance(found["config"], Foreign)
    assert found["config"].name == "tests.test_pickles.Config"
    assert isinstance(found["scalar"], Foreign)
    assert torch.equal(found["t"], torch.ones(2))


# Hostile files. Each would create the file `pwned` if anything of it were carried out.


class Reduced:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


class Stateful:
    """Has its state set while it is loaded."""

    def __getstate__(self):
        return {"command": COMMAND}

    def __setstate__(self, state):
        os.system(state["command"])


class Made:
    """Runs when it is made."""

    def __new__(cls, command=""):
        if command:
            os.system(command)
        return super().__new__(cls)

    def __getnewargs__(self):
        return (COMMAND,)


COMMAND = "touch pwned"
TEXT = f"S'{COMMAND}'\n".encode()  # the command as an instruction of protocol 0
UNICODE = b"\x8c" + bytes([len(COMMAND)]) + COMMAND.encode()  # and of protocol 4
EXTENSION = 0x7FFF1


def dumped(value: object, protocol: int = 4) -> bytes:
    return pickle.dumps(value, protocol=protocol)


PROGRAMS = {
    "global and reduce": b"cos\nsystem\n(" + TEXT + b"tR.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + UNICODE + b"\x85R.",
    "dotted name": b"\x80\x04\x8c\x02os\x8c\x0fsystem.__call__\x93" + UNICODE + b"\x85R.",
    "inst": b"(" + TEXT + b"ios\nsystem\n.",
    "obj": b"(cos\nsystem\n" + TEXT + b"o.",
    "newobj": dumped(Made(), 2),
    "newobj_ex": b"\x80\x04cos\nsystem\n" + UNICODE + b"\x85}\x92.",
    "setstate": dumped(Stateful()),
    "setstate, protocol 0": dumped(Stateful(), 0),
    "extension": b"\x80\x02\x84" + EXTENSION.to_bytes(4, "little") + UNICODE + b"\x85R.",
    "exec": dumped(Reduced(exec, f"import os; os.system({COMMAND!r})")),
    "popen": dumped(Reduced(subprocess.Popen, ["sh", "-c", COMMAND])),
    "partial": b"cfunctools\npartial\n(cos\nsystem\n" + TEXT + b"tR(tR.",
    "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(" + TEXT + b"tR.",
    "an unknown module": b"cunheard\nof\n(tR.",
    "a module that runs": b"cantigravity\nfly\n(tR.",
    "hub": b"ctorch.hub\nload\n(S'owner/repository'\nS'model'\ntR.",
    "load within": b"ctorch\nload\n(S'other.pth'\ntR.",
    "load from bytes": b"ctorch.storage\n_load_from_bytes\n(" + TEXT + b"tR.",
    "rebuilt on a function": b"ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\nI0\n(I1\nt(I1\ntI00\nNtR.",
    "hooks of a parameter": b"ctorch._utils\n_rebuild_parameter\n(cos\nsystem\nI01\n" + TEXT + b"tR.",
    "persistent id": b"(S'storage'\ncos\nsystem\n" + TEXT + b"S'cpu'\nI1\ntQ.",
    "persistent id as text": b"P" + COMMAND.encode() + b"\n.",
    "build on a function": b"cbuiltins\nprint\n(N}S'__call__'\ncos\nsystem\nstb.",
    "items of an ordered dictionary": b"ccollections\nOrderedDict\n(((cos\nsystem\n" + TEXT + b"tltR.",
    "appended to a foreign list": b"cos\nsystem\n(" + TEXT + b"e.",
    "memo": b"cos\nsystem\nq\x000h\x00(" + TEXT + b"tR.",
}


def write_program(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
    return path


def loaded_modules() -> set[str]:
    return {name for name in sys.modules if not name.startswith("encodings.")}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("where", ["alone", "in a configuration"])
def test_nothing_of_a_hostile_file_is_carried_out(tmp_path, monkeypatch, name, where):
    def forbidden(*arguments, **options):
        raise AssertionError(f"something was called: {arguments}")

    for target in ("os.system", "subprocess.Popen", "torch.hub.load", "torch.load", "pickle.Unpickler", "pickle.loads"):
        monkeypatch.setattr(target, forbidden)
    monkeypatch.chdir(tmp_path)
    program = PROGRAMS[name]
    if where == "in a configuration":
        program = b"}S'config'\n}S'deep'\n" + program.removesuffix(b".") + b"ssS'end'\nI1\ns."
    path = write_program(tmp_path / "file.pth", program)
    imported = loaded_modules()
    copyreg.add_extension("os", "system", EXTENSION)
    try:
        with open_pickle(path) as content:
            assert where == "alone" or content["end"] == 1
            assert where != "alone" or isinstance(content, Foreign | dict)
    finally:
        copyreg.remove_extension("os", "system", EXTENSION)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file.pth"]
    assert loaded_modules() == imported


REAL_ATTACKS = ["global and reduce", "stack global", "inst", "obj", "newobj", "setstate", "extension", "exec", "memo"]


@pytest.mark.parametrize("name", REAL_ATTACKS)
def test_the_hostile_programs_do_harm_elsewhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("os", "system", EXTENSION)
    try:
        pickle.loads(PROGRAMS[name])
    finally:
        copyreg.remove_extension("os", "system", EXTENSION)
        copyreg._extension_cache.pop(EXTENSION, None)
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"\x80\x05\x97.", "ValueError: instruction NEXT_BUFFER is not supported"),
        (b"tR.", "IndexError: list index out of range"),
        (b".", "IndexError: pop from empty list"),
        (b"(S'a'\nd.", "ValueError: a key has no value"),
        (b"h\x07.", "KeyError: 7"),
        (b"I1\n", "ValueError: pickle exhausted before seeing STOP"),
        (b"", "ValueError: pickle exhausted before seeing STOP"),
        (b"B\xff\xff\xff\x7fabc.", "ValueError: expected 2147483647 bytes in a bytes4, but only 4 remain"),
    ],
)
def test_a_program_without_sense_is_refused(tmp_path, program, reason):
    assert refusal(write_program(tmp_path / "file.pth", program)) == f"not a readable pickle ({reason})."


def test_depth_and_large_numbers_end_nothing(tmp_path):
    deep = b")" + 100_000 * b"\x85"
    for program in (deep + b".", b"}" + deep + b"I1\ns.", b"\x8f(" + deep + b"\x90.", b"(" + deep + b"\x91."):
        with open_pickle(write_program(tmp_path / "file.pth", program)):
            pass
    with open_pickle(write_program(tmp_path / "file.pth", b"I1\nr\xff\xff\xff\xff.")) as content:
        assert content == 1  # a memo of four thousand million places


def rebuild(key: str, elements: int, offset: int, shape: str, stride: str) -> bytes:
    storage = f"(S'storage'\nctorch\nFloatStorage\nS'{key}'\nS'cpu'\nI{elements}\ntQ"
    tensor = f"I{offset}\n({shape}t({stride}tI00\nNtR"
    return f"}}S't'\nctorch._utils\n_rebuild_tensor_v2\n({storage}{tensor}s.".encode()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (rebuild("0", 4, 0, "I5\n", "I1\n"), "a tensor reaches beyond its storage `0`; the file is damaged."),
        (rebuild("0", 400, 0, "I5\n", "I1\n"), "a tensor reaches beyond its storage `0`; the file is damaged."),
        (rebuild("0", 4, 3, "I2\n", "I1\n"), "a tensor reaches beyond its storage `0`; the file is damaged."),
        (rebuild("0", 4, 0, "I2\n", "I9\n"), "a tensor reaches beyond its storage `0`; the file is damaged."),
        (rebuild("7", 4, 0, "I4\n", "I1\n"), "the values of storage `7` are missing; the file is damaged."),
        (rebuild("0", 4, 0, "I-4\n", "I1\n"), "not a readable pickle (ValueError: a tensor's sizes are no sizes)."),
        (rebuild("0", 4, -1, "I1\n", "I1\n"), "not a readable pickle (ValueError: a tensor's sizes are no sizes)."),
        (rebuild("0", 4, 0, "I4\n", ""), "not a readable pickle (ValueError: a tensor's sizes are no sizes)."),
        (
            rebuild("0", 4, 0, "I99999999\nI99999999\n", "I0\nI0\n"),
            "not a readable pickle (ValueError: a tensor is larger than any).",
        ),
    ],
)
def test_tensors_stay_within_their_storage(tmp_path, program, reason):
    path = write_program(tmp_path / "file.pth", program)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(16))
    assert refusal(path) == reason


# Files that are not what they should be


def test_a_git_lfs_stub_is_called_one(tmp_path):
    path = tmp_path / "ckpt_00360000.pth"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"c8" * 32 + b"\nsize 1360444883\n")
    assert refusal(path) == f"a git-lfs stub of {path.stat().st_size} bytes, not the model; fetch the file itself."


def test_a_truncated_zip_is_told(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"t": torch.ones(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    size = len(whole) - 100
    assert refusal(path) == f"not a whole zip file ({size:,} bytes); it was not copied as a whole."


def test_a_truncated_legacy_file_is_told(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"t": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert refusal(path) == f"has {len(whole) - 100:,} bytes of {len(whole):,}; it was not copied as a whole."


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", bytes(1000), pickle.dumps({"t": 1}), b"\x80\x02K\x01."])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    assert refusal(path) == "not a file that PyTorch wrote."


def test_a_zip_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "file.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert refusal(path) == "a zip file, but not one that PyTorch wrote: it has no data.pkl."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    assert refusal(path) == "a compressed zip file; PyTorch writes uncompressed ones."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"}.")
        archive.writestr("archive/byteorder", "big")
    assert refusal(path) == "was written on a big-endian machine, which is not supported."


def test_a_missing_file_is_named(tmp_path):
    assert refusal(tmp_path / "file.pth") == "no such file."


# Only what is wanted is read


def add_hole(path: Path, name: str, size: int) -> None:
    """Add an entry to a zip file whose data are a hole in the file, so that it takes no disk."""
    with zipfile.ZipFile(path, "a", allowZip64=True) as archive:
        entry = zipfile.ZipInfo(name)
        archive.fp.seek(archive.start_dir)
        entry.header_offset = archive.fp.tell()
        entry.file_size = entry.compress_size = size
        entry.CRC = 0
        archive.fp.write(entry.FileHeader(zip64=False))
        archive.fp.seek(size, os.SEEK_CUR)
        archive.start_dir = archive.fp.tell()
        archive.filelist.append(entry)
        archive.NameToInfo[name] = entry
        archive._didModify = True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_a_large_file_costs_no_memory(tmp_path):
    path = tmp_path / "file.pth"
    wanted = torch.arange(10.0**6)
    torch.save({"codec_model": {"t": wanted}, "optimizer": torch.ones(1).expand(10**9)}, path)
    add_hole(path, "file/data/99", 2 * 10**9)
    assert path.stat().st_size > 2 * 10**9
    script = r"""
        import re, sys
        from pathlib import Path
        from xcodec_mini_infer.pickles import open_pickle
        def peak():
            return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
        before = peak()
        with open_pickle(Path(sys.argv[1])) as content:
            assert content["codec_model"]["t"].read()[-1] == 10**6 - 1
        print(peak() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert kilobytes < 20_000  # the 4 MB that are wanted, and change
