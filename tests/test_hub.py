"""Fetching from a hub: what is asked, what is kept, what is said when it fails."""

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import huggingface_hub.file_download
import pytest

from tests.hub_stand_in import Repository, serve
from yue_cli import hub as hub_module
from yue_cli.errors import DownloadError, StorageError
from yue_cli.events import Finished, Progress, ignore
from yue_cli.hub import Hub, known_sha256
from yue_cli.models import Source

LARGE = bytes(range(256)) * 40
FILES = {"config.json": b"{}", "model.safetensors": LARGE, "tokenizer.model": b"t" * 2000, "README.md": b"hello"}
WANTED = ["config.json", "tokenizer.model", "model.safetensors"]
SOURCE = Source("owner/model", "owner/model")


@pytest.fixture
def stand_in():
    with serve({"owner/model": Repository(dict(FILES))}) as served:
        yield served


@pytest.fixture
def hub(stand_in, tmp_path, monkeypatch) -> Hub:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 512)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    return Hub(tmp_path / "hub", stand_in.endpoint)


def fetch(hub: Hub, source: Source = SOURCE, emit=ignore) -> Path:
    return hub.fetch(hub.look(source).only(WANTED), emit)


def refusal(action, kind=DownloadError) -> str:
    with pytest.raises(kind) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_wanted_is_fetched_and_nothing_else(hub, stand_in):
    folder = fetch(hub)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: FILES[name] for name in WANTED}
    assert hub.snapshot(SOURCE) == (folder, "c" * 40)
    assert not any("README" in line for line in stand_in.asked)
    assert stand_in.sent < sum(map(len, FILES.values())) + 1000


def test_sizes_are_known_before_anything_is_fetched(hub, stand_in):
    offer = hub.look(SOURCE).only(WANTED)
    assert hub.to_fetch(offer) == sum(len(FILES[name]) for name in WANTED)
    assert not stand_in.bodies()
    hub.fetch(offer, ignore)
    assert hub.to_fetch(offer) == 0


def test_a_second_fetch_asks_for_no_file(hub, stand_in):
    fetch(hub)
    stand_in.asked.clear()
    fetch(hub)
    assert stand_in.asked == ["GET /api/models/owner/model/revision/main"]


def test_progress_counts_bytes_of_all_files(hub):
    events: list = []
    fetch(hub, emit=events.append)
    progress = [event for event in events if isinstance(event, Progress) and event.topic == "download"]
    total = sum(len(FILES[name]) for name in WANTED)
    assert {(event.topic, event.unit, event.total) for event in progress} == {("download", "bytes", total)}
    done = [event.done for event in progress]
    assert done == sorted(done)
    assert done[-1] == total
    assert progress[-1].label == "owner/model 3 of 3 files"
    assert isinstance(events[-1], Finished)
    assert (events[-1].label, events[-1].done) == ("owner/model", total)


def test_progress_tells_of_the_hashing_of_every_large_file(hub, monkeypatch):
    monkeypatch.setattr(hub_module, "_PIECE", 4096)
    events: list = []
    fetch(hub, emit=events.append)
    checked = [(event.label, event.done, event.total) for event in events if getattr(event, "topic", "") == "check"]
    assert checked[:3] == [("owner/model 2 of 3 files", done, len(LARGE)) for done in (4096, 8192, 10240)]
    assert checked[3:] == [("owner/model 3 of 3 files", 2000, 2000)]


def test_a_cut_connection_is_taken_up_where_it_broke(hub, stand_in):
    stand_in.cuts = [2048, 512]
    folder = fetch(hub)
    assert (folder / "model.safetensors").read_bytes() == LARGE
    assert stand_in.sent < sum(map(len, FILES.values())) + 4000


def test_a_download_that_fails_goes_on_the_next_time(hub, stand_in, monkeypatch):
    stand_in.cuts = [0, 0, 4096, *[0] * 20]
    fetched = hub.look(SOURCE).only(["model.safetensors"])
    text = refusal(lambda: hub.fetch(fetched, ignore))
    assert text == (
        f"no connection to {stand_in.endpoint} (RemoteProtocolError). What was downloaded is kept; the same command "
        "goes on when there is a network."
    )
    left = list((hub.cache / "models--owner--model" / "blobs").glob("*.incomplete"))
    assert [path.stat().st_size for path in left] == [4096]
    assert hub.to_fetch(fetched) == len(LARGE) - 4096
    stand_in.cuts, stand_in.sent = [], 0
    assert (hub.fetch(fetched, ignore) / "model.safetensors").read_bytes() == LARGE
    assert stand_in.sent == len(LARGE) - 4096
    assert not left[0].exists()


def test_a_killed_download_goes_on_the_next_time(hub, stand_in, tmp_path):
    script = """
        import os, signal, sys
        import huggingface_hub.constants
        from pathlib import Path
        from yue_cli.hub import Hub
        from yue_cli.models import Source
        huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 512
        hub = Hub(Path(sys.argv[1]), sys.argv[2])
        def emit(event):
            if event.done > 5000:
                os.kill(os.getpid(), signal.SIGKILL)
        hub.fetch(hub.look(Source("owner/model", "owner/model")).only(["model.safetensors"]), emit)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(hub.cache), stand_in.endpoint]
    environment = os.environ | {"HF_HUB_OFFLINE": "0"}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not list(hub.cache.rglob("model.safetensors"))
    (left,) = hub.cache.rglob("*.incomplete")
    there = left.stat().st_size
    assert there > 5000
    stand_in.sent = 0
    hub.fetch(hub.look(SOURCE).only(["model.safetensors"]), ignore)
    assert stand_in.sent == len(LARGE) - there
    assert not list(hub.cache.rglob("*.incomplete"))


def test_a_file_of_another_hash_is_removed_and_said(hub, stand_in):
    stand_in.repositories["owner/model"].false_digests["model.safetensors"] = "a" * 64
    text = refusal(lambda: fetch(hub))
    assert re.fullmatch(
        r"owner/model/model\.safetensors: wrong hash, SHA-256 [0-9a-f]{12}…, expected aaaaaaaaaaaa…\. The file was "
        r"removed; `yue models pull owner/model` fetches it again\.",
        text,
    )
    assert not list(hub.cache.rglob("*.incomplete"))
    assert not list(hub.cache.rglob("model.safetensors"))


def test_a_published_file_with_a_known_hash_is_refused_before_the_download(hub, stand_in):
    source = Source("m", "owner/model", digests={"model.safetensors": "b" * 64})
    text = refusal(lambda: hub.look(source))
    assert text.endswith("expected bbbbbbbbbbbb…; it is not the published file. Nothing was downloaded.")
    assert not stand_in.bodies()


def test_a_listed_file_that_is_not_there_is_said(hub, stand_in):
    stand_in.repositories["owner/model"].lost = ("model.safetensors",)
    assert refusal(lambda: fetch(hub)) == "owner/model at main: a file that it lists is not there."


def test_without_a_network_one_line_says_so(hub, tmp_path):
    away = Hub(tmp_path / "hub", "http://127.0.0.1:9")
    assert refusal(lambda: away.look(SOURCE)) == (
        "no connection to http://127.0.0.1:9 (ConnectError). What was downloaded is kept; the same command goes on "
        "when there is a network."
    )


def test_offline_nothing_is_asked(hub, stand_in):
    fetch(hub)
    stand_in.asked.clear()
    offline = Hub(hub.cache, stand_in.endpoint, offline=True)
    assert offline.snapshot(SOURCE) is not None
    assert (
        refusal(lambda: offline.look(SOURCE)) == "owner/model is not on this machine, and offline nothing is fetched."
    )
    assert not stand_in.asked


def test_an_unknown_repository_or_revision_is_said(hub, stand_in):
    assert refusal(lambda: hub.look(Source("a/b", "a/b"))) == (
        f"a/b: there is no such model on {stand_in.endpoint}, or it is private and needs HF_TOKEN; nor is there such a "
        "folder here."
    )
    assert refusal(lambda: hub.look(Source("x", "owner/model", "8.0bpw"))) == "owner/model has no revision `8.0bpw`."


def test_a_gated_model_needs_a_token(hub, stand_in, monkeypatch):
    stand_in.repositories["owner/model"].gated = True
    assert refusal(lambda: hub.look(SOURCE)) == (
        f"owner/model is gated: accept its terms on {stand_in.endpoint}/owner/model and set HF_TOKEN."
    )
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert (fetch(hub) / "model.safetensors").read_bytes() == LARGE


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (403, "set HF_TOKEN to a token that may read it"),
        (429, "wait a while and run the same command again"),
        (503, "run the same command again later"),
    ],
)
def test_a_refusal_of_the_hub_is_said(hub, stand_in, status, remedy):
    stand_in.refuse = status
    assert (
        refusal(lambda: hub.look(SOURCE)) == f"{stand_in.endpoint} answered {status} for owner/model at main; {remedy}."
    )


def test_an_answer_that_is_none_of_a_hub_is_said(hub, stand_in):
    stand_in.portal = True
    text = refusal(lambda: hub.look(SOURCE))
    assert text.startswith(f"{stand_in.endpoint} gave no hub's answer for owner/model at main (")
    assert text.endswith("). Is something in between?")
    assert refusal(lambda: hub.look(Source("owner/na--me", "owner/na--me"))).startswith("owner/na--me is no hub id: ")


def test_a_full_disk_is_said(hub, stand_in, monkeypatch):
    def full(self, chunk):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_module._Told, "write", full)
    assert refusal(lambda: fetch(hub), StorageError).startswith("no space left for ")


def test_a_kill_between_download_and_cache_costs_nothing(hub, stand_in, monkeypatch):
    def killed(offer, file):
        raise KeyboardInterrupt

    offer = hub.look(SOURCE).only(["model.safetensors"])
    with monkeypatch.context() as patch:
        patch.setattr(hub, "_link", killed)
        with pytest.raises(KeyboardInterrupt):
            hub.fetch(offer, ignore)
    assert hub.to_fetch(offer) == 0
    stand_in.sent = 0
    assert (hub.fetch(offer, ignore) / "model.safetensors").read_bytes() == LARGE
    assert stand_in.sent == 0


def test_branches_are_revisions_of_their_own(hub, stand_in):
    stand_in.repositories["owner/model"].revisions = ("main", "8.0bpw-h8")
    source = Source("owner/model@8.0bpw-h8", "owner/model", "8.0bpw-h8")
    folder = fetch(hub, source)
    assert hub.snapshot(source) == (folder, "c" * 40)
    assert hub.snapshot(SOURCE) is None


def test_the_cache_is_that_of_huggingface_hub(hub, stand_in):
    folder = fetch(hub)
    for name in WANTED:
        found = huggingface_hub.try_to_load_from_cache("owner/model", name, cache_dir=hub.cache)
        assert found == str(folder / name)
    assert known_sha256(folder / "model.safetensors") == hub_module.sha256(folder / "model.safetensors")
    assert known_sha256(folder / "config.json") is None


def test_what_is_removed_is_gone(hub, stand_in):
    fetch(hub)
    assert hub.remove(SOURCE) >= len(LARGE)
    assert hub.snapshot(SOURCE) is None
    assert hub.remove(SOURCE) == 0
