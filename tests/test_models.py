"""Short names, hub ids, needed files, and whether a model fits the words."""

import pytest

from yue_cli import models
from yue_cli.models import CATALOGUE, CODEC_FILES, Source, find_source


def test_a_numbered_file_tells_of_the_others():
    assert models.missing_shards(["config.json", "model.safetensors"]) == set()
    assert models.missing_shards(["output-00002-of-00003.safetensors", "output-00003-of-00003.safetensors"]) == {
        "output-00001-of-00003.safetensors"
    }


def test_every_short_name_knows_its_part_and_repository():
    names = ["en-cot", "en-icl", "zh-cot", "zh-icl", "jp-kr-cot", "jp-kr-icl", "s2", "codec"]
    assert list(CATALOGUE) == names
    assert [CATALOGUE[name].part for name in names] == ["stage1"] * 6 + ["stage2", "codec"]
    assert CATALOGUE["jp-kr-icl"].repository == "m-a-p/YuE-s1-7B-anneal-jp-kr-icl"
    assert CATALOGUE["en-cot"].revision.startswith("454c20e")
    assert CATALOGUE["zh-cot"].revision == "main"
    assert all(len(digest) == 64 for digest in CATALOGUE["codec"].digests.values())
    assert [models.CATALOGUE[name].part for name in models.DEFAULTS.values()] == list(models.DEFAULTS)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("en-cot", CATALOGUE["en-cot"]),
        ("s2@8.0bpw-h8", Source("s2@8.0bpw-h8", "m-a-p/YuE-s2-1B-general", "8.0bpw-h8")),
        ("owner/model", Source("owner/model", "owner/model")),
        ("owner/mo.del-2@v1.0/x", Source("owner/mo.del-2@v1.0/x", "owner/mo.del-2", "v1.0/x")),
        ("nonsense", None),
        ("./owner/model", None),
        ("../model", None),
        ("/a/b", None),
        ("a/b/c", None),
        ("owner/..", None),
        ("owner/model@", None),
        ("~/model", None),
        ("", None),
    ],
)
def test_names_are_read(name, found):
    assert find_source(name) == found


def test_only_files_that_are_read_are_fetched():
    files = [
        "README.md",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "tokenizer.model",
        "sub/model.safetensors",
        ".gitattributes",
    ]
    assert models.needed_files(files) == [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.model",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    codec = [
        *CODEC_FILES.values(),
        "final_ckpt/config.yaml",
        "semantic_ckpts/hf_1_325000/pytorch_model.bin",
        "config.json",
    ]
    assert models.needed_files(codec) == list(CODEC_FILES.values())


def test_missing_files_are_those_of_the_part():
    assert models.missing_files(["model-00001-of-00002.safetensors"], "stage1") == ["config.json", "tokenizer.model"]
    assert models.missing_files(["config.json", "model.safetensors"], "stage2") == []
    assert models.missing_files(["config.json"], "stage2") == ["model.safetensors"]
    assert models.missing_files(["final_ckpt/ckpt_00360000.pth"], "codec") == list(CODEC_FILES.values())[1:]


def test_a_repository_is_known_by_its_files():
    assert models.guess_part(CODEC_FILES.values()) == "codec"
    assert models.guess_part(models.CONVERTED_FILES) == "codec"
    assert models.guess_part(["config.json", "tokenizer.model"]) == "stage1"
    assert models.guess_part(["config.json", "model.safetensors"]) == "stage2"


ENGLISH = "Carry me home"
CHINESE = "星光落在窗前 我等你回来 oh oh"
JAPANESE = "夜の海に 星が落ちる 君を待つ"
KOREAN = "별이 지는 밤에 너를 기다려"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        ("Voilà l'été", "en"),
        (CHINESE, "zh"),
        (JAPANESE, "jp-kr"),
        (KOREAN, "jp-kr"),
        ("12 … !", None),
        ("", None),
        ("Привет", None),
    ],
)
def test_the_language_is_guessed_from_the_letters(text, language):
    assert models.language_of([text]) == language


@pytest.mark.parametrize(
    ("name", "text", "has_reference", "remark"),
    [
        ("en-cot", ENGLISH, False, None),
        ("en-icl", ENGLISH, True, None),
        ("zh-cot", CHINESE, False, None),
        ("jp-kr-cot", KOREAN, False, None),
        ("toy", CHINESE, False, None),
        ("/models/mine", CHINESE, False, None),
        ("s2", CHINESE, False, None),
        ("en-cot", "", False, None),
        (
            "en-cot",
            CHINESE,
            False,
            "the lyrics look Chinese, en-cot was trained to sing English; --language zh takes zh-cot",
        ),
        (
            "m-a-p/YuE-s1-7B-anneal-zh-icl@main",
            JAPANESE,
            True,
            "the lyrics look Japanese or Korean, zh-icl was trained to sing Chinese; --language jp-kr takes jp-kr-icl",
        ),
        ("en-icl", ENGLISH, False, "en-icl expects a reference song; without one, en-cot sings better"),
        ("en-cot", ENGLISH, True, "en-cot does not follow a reference song; en-icl does"),
    ],
)
def test_a_model_that_does_not_fit_is_remarked(name, text, has_reference, remark):
    assert models.remarks(name, [text], has_reference) == ([remark] if remark else [])


def test_the_model_of_a_language_follows_a_reference_where_there_is_one():
    assert models.choose_stage1("zh", has_reference=False) == "zh-cot"
    assert models.choose_stage1("jp-kr", has_reference=True) == "jp-kr-icl"
