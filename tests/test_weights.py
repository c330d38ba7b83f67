"""From a model's name to a folder: which one is meant, what is fetched and converted, what is said without it."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from tests import small_codec
from tests.hub_stand_in import Repository, serve
from xcodec_mini_infer import checkpoint, convert
from yue_cli import inventory, weights
from yue_cli.errors import CheckpointError, DownloadError, Interrupted, StorageError
from yue_cli.events import Note, Progress
from yue_cli.hub import Hub
from yue_cli.models import CATALOGUE, CODEC_FILES, DEFAULTS
from yue_cli.weights import PARTS, Library, ModelFolder

STUB = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"c8" * 32 + b"\nsize 1360444883\n"
LAYOUT = convert.Layout(
    decoding=checkpoint.codec_shapes(small_codec.CODEC),
    encoding={},
    vocoder=checkpoint.vocoder_shapes(small_codec.VOCODER),
    codec_config=small_codec.CODEC,
    vocoder_config=small_codec.VOCODER,
)


def no_maker(home):
    raise AssertionError("nothing should be made")


def language_model(*more: str, shards: int = 1) -> dict[str, bytes]:
    files = {"config.json": b"{}", "generation_config.json": b"{}"} | dict.fromkeys(more, b"t" * 1500)
    if shards == 1:
        return files | {"model.safetensors": b"w" * 5000}
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    index = json.dumps({"weight_map": {f"layer{number}": name for number, name in enumerate(names)}})
    return files | {"model.safetensors.index.json": index.encode()} | {name: name.encode() * 200 for name in names}


def write_published_codec(folder: Path) -> dict[str, bytes]:
    """Write the three files as published, at a small size; returns them by path."""
    tensors = small_codec.random_tensors()
    contents = {
        "codec": {"codec_model": {name: tensors[checkpoint.CODEC_FILE][name] for name in LAYOUT.decoding}, "steps": 1},
        "vocal": tensors[checkpoint.VOCAL_FILE],
        "instrumental": tensors[checkpoint.INSTRUMENTAL_FILE],
    }
    files = {}
    for part, file in CODEC_FILES.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(contents[part], folder / file)
        files[file] = (folder / file).read_bytes()
    return files


@pytest.fixture
def small_layout(monkeypatch):
    monkeypatch.setattr(convert, "published_layout", lambda: LAYOUT)
    monkeypatch.setitem(CATALOGUE, "codec", weights.replace(CATALOGUE["codec"], digests={}))


@pytest.fixture
def stand_in(tmp_path, small_layout):
    codec = write_published_codec(tmp_path / "published")
    with serve(
        {
            CATALOGUE["en-cot"].repository: Repository(
                language_model("tokenizer.model", shards=3), commit=CATALOGUE["en-cot"].revision
            ),
            CATALOGUE["zh-cot"].repository: Repository(language_model("tokenizer.model")),
            CATALOGUE["s2"].repository: Repository(language_model(), commit=CATALOGUE["s2"].revision),
            CATALOGUE["codec"].repository: Repository(codec, commit=CATALOGUE["codec"].revision),
            "owner/empty": Repository({"README.md": b"nothing"}),
        }
    ) as served:
        yield served


@pytest.fixture
def library(stand_in, tmp_path, monkeypatch) -> Library:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return make_library(stand_in, tmp_path)


def make_library(stand_in, tmp_path, offline: bool = False) -> Library:
    events: list = []
    hub = Hub(tmp_path / "hub", stand_in.endpoint, offline)
    made = Library(tmp_path / "home", {"toy": no_maker}, events.append, offline, hub)
    made.events = events
    return made


def notes(library: Library) -> list[str]:
    return [f"{event.topic}: {event.text}" for event in library.events if isinstance(event, Note)]


def refusal(action, kind=CheckpointError) -> str:
    with pytest.raises(kind) as refused:
        action()
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Folders of the user's own


@pytest.fixture
def alone(tmp_path) -> Library:
    return Library(tmp_path / "home", {"toy": no_maker}, hub=Hub(tmp_path / "hub", "http://127.0.0.1:9", offline=True))


def test_a_folder_of_ones_own_is_taken_as_it_is(alone, tmp_path):
    assert alone.locate(str(tmp_path), "stage1") == ModelFolder(str(tmp_path), tmp_path)


def test_a_folder_that_holds_all_parts_gives_the_one_that_is_meant(alone, tmp_path):
    (tmp_path / "stage2").mkdir()
    assert alone.locate(str(tmp_path), "stage2").path == tmp_path / "stage2"
    assert alone.locate(str(tmp_path), "stage1").path == tmp_path


def test_a_folder_may_be_named_from_the_users_home(alone, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert alone.locate("~/mine", "codec").path == tmp_path / "mine"


def test_a_folder_comes_before_a_hub_id_of_the_same_name(alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("owner/model").mkdir(parents=True)
    assert alone.locate("owner/model", "stage1").path == Path("owner/model")


def test_a_file_is_no_model_folder(alone, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert refusal(lambda: alone.locate(str(tmp_path / "model.safetensors"), "stage2")) == (
        f"stage2.model: {tmp_path / 'model.safetensors'} is a file; expected a folder with config.json and "
        "model.safetensors."
    )


def test_a_name_that_means_nothing_says_what_was_expected(alone):
    assert refusal(lambda: alone.locate("/nowhere/at/all", "stage2")) == (
        "stage2.model: there is no folder /nowhere/at/all; expected a folder with config.json and model.safetensors, "
        "s2, toy, or a hub id OWNER/NAME."
    )


def test_a_model_of_another_part_is_refused(alone):
    text = refusal(lambda: alone.locate("s2", "stage1"))
    assert text == "stage1.model: s2 is a stage-2 model; expected a stage-1 model."


def test_a_model_that_is_made_on_first_use_knows_its_revision(tmp_path):
    library = Library(tmp_path, {"toy": lambda home: home / "toy-abc"})
    assert library.locate("toy", "stage1") == ModelFolder("toy", tmp_path / "toy-abc/stage1", "toy-abc")


@pytest.mark.parametrize("file", ["model-00001-of-00003.safetensors", "tokenizer.model"])
def test_a_git_lfs_stub_is_called_one(alone, tmp_path, file):
    (tmp_path / file).write_bytes(STUB)
    assert refusal(lambda: alone.locate(str(tmp_path), "stage1")) == (
        f"{tmp_path / file}: a git-lfs stub of {len(STUB)} bytes, not the model. `yue models pull en-cot` fetches it "
        "without git-lfs."
    )


def test_a_stub_of_the_codec_is_called_one(alone, tmp_path, small_layout):
    folder = tmp_path / "mine"
    write_published_codec(folder)
    (folder / CODEC_FILES["codec"]).write_bytes(STUB)
    assert refusal(lambda: alone.locate(str(folder), "codec")) == (
        f"{folder / CODEC_FILES['codec']}: a git-lfs stub of {len(STUB)} bytes, not the model. `yue models pull codec` "
        "fetches it without git-lfs."
    )


def test_a_published_codec_folder_is_converted_once(alone, tmp_path, small_layout):
    folder = tmp_path / "mine"
    write_published_codec(folder)
    found = alone.locate(str(folder), "codec")
    assert found.path.parent == tmp_path / "home" / "codec"
    checkpoint.load_codec(found.path)
    before = (found.path / "config.json").stat().st_mtime_ns
    assert alone.locate(str(folder), "codec") == found
    assert (found.path / "config.json").stat().st_mtime_ns == before
    (folder / CODEC_FILES["vocal"]).write_bytes(b"changed")
    assert refusal(lambda: alone.locate(str(folder), "codec")).endswith("not a file that PyTorch wrote.")


# Models of the hub


@pytest.mark.parametrize(
    ("name", "part", "pulled"), [(None, "stage1", "en-cot"), (None, "stage2", "s2"), (None, "codec", "codec")]
)
def test_what_is_not_here_says_how_it_is_fetched(alone, name, part, pulled):
    assert refusal(lambda: alone.locate(name, part)) == (
        f"{pulled} is not on this machine, and offline nothing is fetched: `yue models pull {pulled}`, with a network, "
        "fetches it. `yue demo` tries the tool without a model."
    )
    assert refusal(lambda: alone.fetch([(name, part)])) == refusal(lambda: alone.locate(name, part))


def test_all_that_is_missing_is_fetched_with_sizes_said_before(library, tmp_path):
    wanted = [(None, "stage1"), (None, "stage2"), (None, "codec")]
    library.fetch(wanted)
    said, converting = notes(library)
    assert said.startswith("models: en-cot 0.0 GB, s2 0.0 GB, codec 0.0 GB: 0.0 GB to download · ")
    assert converting == "codec: converting ckpt_00360000.pth, once"
    first, second, codec = (library.locate(*each) for each in wanted)
    assert (first.name, first.revision) == ("en-cot", CATALOGUE["en-cot"].revision)
    assert sorted(path.name for path in first.path.iterdir()) == [
        "config.json",
        "generation_config.json",
        *(f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)),
        "model.safetensors.index.json",
        "tokenizer.model",
    ]
    assert (second.name, second.revision) == ("s2", CATALOGUE["s2"].revision)
    assert codec == ModelFolder(
        "codec", tmp_path / "home" / "codec" / "m-a-p--xcodec_mini_infer-fe781a67815a", CATALOGUE["codec"].revision
    )
    checkpoint.load_codec(codec.path)


def test_what_is_here_is_not_asked_for_again(library, stand_in, tmp_path):
    library.pull(["en-cot", "codec"])
    stand_in.asked.clear()
    library.fetch([(None, "stage1"), (None, "codec")])
    offline = make_library(stand_in, tmp_path, offline=True)
    offline.fetch([("en-cot", "stage1"), ("codec", "codec")])
    assert offline.locate(None, "stage1").revision == CATALOGUE["en-cot"].revision
    assert stand_in.asked == []
    library.pull(["en-cot", "codec"])
    assert not stand_in.bodies()


def test_a_revision_that_was_not_pinned_is_remembered(library, stand_in, tmp_path):
    library.pull(["zh-cot"])
    offline = make_library(stand_in, tmp_path, offline=True)
    assert offline.locate("zh-cot", "stage1").revision == "c" * 40
    stand_in.repositories[CATALOGUE["zh-cot"].repository].commit = "d" * 40
    library.fetch([("zh-cot", "stage1")])
    assert library.locate("zh-cot", "stage1").revision == "c" * 40, "a run keeps what it has"
    library.pull(["zh-cot"])
    assert library.locate("zh-cot", "stage1").revision == "d" * 40


def test_shards_that_are_not_all_here_are_no_model(library):
    (folder,) = library.pull(["en-cot"])
    (folder.path / "model-00002-of-00003.safetensors").unlink()
    assert library.find("en-cot", "stage1") is None
    assert inventory.state(library, CATALOGUE["en-cot"]).word == "partly here"
    library.fetch([("en-cot", "stage1")])
    assert library.find("en-cot", "stage1") is not None


def test_quantized_files_beside_the_index_of_the_original_are_a_model(library, stand_in):
    published = language_model("tokenizer.model", shards=2)
    files = {name: content for name, content in published.items() if not name.startswith("model-")}
    shards = {f"output-{number:05}-of-00002.safetensors": b"q" * 900 for number in (1, 2)}
    stand_in.repositories["someone/YuE-exl2"] = Repository(files | shards)
    (folder,) = library.pull(["someone/YuE-exl2"])
    assert library.find("someone/YuE-exl2", "stage1") == folder
    (folder.path / "output-00001-of-00002.safetensors").unlink()
    assert library.find("someone/YuE-exl2", "stage1") is None


def test_a_converted_codec_on_the_hub_is_taken_as_it_is(library, stand_in, tmp_path):
    small_codec.write_checkpoint(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    stand_in.repositories["owner/codec"] = Repository(files)
    (found,) = library.pull(["owner/codec"])
    assert found.path == tmp_path / "hub/models--owner--codec/snapshots" / ("c" * 40)
    checkpoint.load_codec(found.path)


def test_a_converted_codec_needs_its_sources_no_more(library, tmp_path):
    library.pull(["codec"])
    shutil.rmtree(tmp_path / "hub")
    assert library.find(None, "codec") is not None


def test_a_conversion_that_was_killed_is_done_by_the_next_run(library, stand_in, tmp_path, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "convert", killed)
        with pytest.raises(Interrupted, match="what was downloaded is kept"):
            library.pull(["codec"])
    stand_in.asked.clear()
    offline = make_library(stand_in, tmp_path, offline=True)
    checkpoint.load_codec(offline.locate(None, "codec").path)
    assert stand_in.asked == []


def test_a_file_of_the_cache_that_is_not_the_published_one_is_not_converted(library, monkeypatch):
    library.pull(["codec"])
    shutil.rmtree(library.home / "codec")
    file = CODEC_FILES["codec"]
    monkeypatch.setitem(CATALOGUE, "codec", weights.replace(CATALOGUE["codec"], digests={file: "e" * 64}))
    assert refusal(lambda: library.locate(None, "codec")).endswith(f"… is not that of {file}, eeeeeeeeeeee….")


def test_a_repository_without_the_needed_files_is_refused(library):
    assert refusal(lambda: library.fetch([("owner/empty", "stage1")])) == (
        "owner/empty at ccccccc has no config.json and no model.safetensors and no tokenizer.model; it is no stage-1 "
        "model that yue reads."
    )


def test_room_on_the_disk_is_looked_at_first(library, stand_in, monkeypatch):
    monkeypatch.setattr(weights, "free_bytes", lambda folder: 7 * 10**8)
    text = refusal(lambda: library.pull(["codec"]), StorageError)
    assert text == (
        f"no space left on {library.hub.cache}: needed 0.8 GB, free 0.7 GB. Nothing was downloaded; free some space, "
        "or put the cache elsewhere with HF_HOME."
    )
    assert not stand_in.bodies()


def test_an_unknown_name_is_not_pulled(library):
    text = refusal(lambda: library.pull(["en-cto"]))
    assert text.startswith("en-cto: expected one of en-cot, en-icl, ")
    assert text.endswith(", or a hub id OWNER/NAME.")
    assert "there is no such model" in refusal(lambda: library.pull(["owner/other"]), DownloadError)


def test_files_are_verified_against_the_hub_s_hashes(library):
    (folder,) = library.pull(["en-cot"])
    results = {path.name: state for path, state in inventory.verify(library, "en-cot")}
    assert results["model-00001-of-00003.safetensors"] == "right"
    assert results["config.json"] == "unknown"
    size = (folder.path / "model-00003-of-00003.safetensors").stat().st_size
    assert library.events[-1] == Progress("check", "model-00003-of-00003.safetensors", size, size, "bytes")
    shard = (folder.path / "model-00001-of-00003.safetensors").resolve()
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    text = refusal(lambda: inventory.verify(library, "en-cot"))
    assert text == (
        f"{folder.path / 'model-00001-of-00003.safetensors'}: wrong hash, expected SHA-256 {shard.name[:12]}…; `yue "
        "models rm en-cot`, then `yue models pull en-cot` fetches it again."
    )
    assert refusal(lambda: inventory.verify(library, "zh-cot")) == "zh-cot is not in the hub's cache on this machine."


def test_a_removed_model_is_gone(library, tmp_path):
    library.pull(["codec"])
    assert inventory.remove(library, "codec") > 1000
    assert library.find("codec", "codec") is None
    assert inventory.state(library, CATALOGUE["codec"]) == inventory.State("absent", 0, None, None)
    assert refusal(lambda: inventory.remove(library, "codec")) == "codec is not on this machine."
    text = refusal(lambda: inventory.remove(library, "/some/folder"))
    assert text == "/some/folder: only models of the hub are removed; expected a short name or OWNER/NAME."


def test_another_process_is_waited_for(library, tmp_path, monkeypatch):
    other = Library(library.home, {}, hub=library.hub)
    acquire = library._lock.acquire

    def release_other(*arguments, **options):
        if "timeout" not in options:
            other._lock.release()
        return acquire(*arguments, **options)

    library.home.mkdir()
    other._lock.acquire()
    monkeypatch.setattr(library._lock, "acquire", release_other)
    library.pull(["s2"])
    assert notes(library)[0] == "models: another yue is fetching models; waiting for it"


def test_every_part_has_a_default():
    assert set(PARTS) == {model.part for model in CATALOGUE.values()} == set(DEFAULTS)
