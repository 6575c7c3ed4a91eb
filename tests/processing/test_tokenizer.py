from __future__ import annotations

import io
import json
import random
import shutil

import jax
import numpy as np
import pytest
import sentencepiece
import transformers
from tokenizers import ByteLevelBPETokenizer

from trocr_jax.processing.sentencepiece import CONTROL, UNIGRAM, read_sentencepiece
from trocr_jax.processing.tokenizer import TrOCRTokenizer

ORACLES = {"bpe": transformers.RobertaTokenizer, "unigram": transformers.XLMRobertaTokenizer}
SENTENCES = """
the of and to a in that he was it his is with as had for at you not be on by which which have from said
industry , " Mr. Brown commented icily . " Let us have a CHARLES , 39 presto ! TOTAL RM 12.50 (GST 6%) don't we'll I'm
l'été “naïve” café — £5 №7 ½ ﬁne e\u0301 Straße ŁÓDŹ привет мир Ελληνικά שלום مرحبا नमस्ते สวัสดี こんにちは 日本語 한국어
🙂👍🏽 ﷺ Ⅳ ｆｕｌｌ
"""
WORDS = SENTENCES.split()
SCRIPTS = [
    (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x58F), (0x590, 0x5FF),
    (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x10A0, 0x10FF), (0x1200, 0x137F), (0x2000, 0x206F),
    (0x20A0, 0x20BF), (0x2150, 0x218F), (0x2200, 0x22FF), (0x3040, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xADFF),
    (0xE000, 0xE0FF), (0xFB00, 0xFB4F), (0xFE00, 0xFEFF), (0xFF00, 0xFFEF), (0x1D400, 0x1D4FF), (0x1F300, 0x1F64F),
    (0x0, 0x1F), (0x7F, 0x9F),
]  # fmt: skip
SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<mask>", " <mask>", "▁", "Ġ", "<0x0A>", "<extra>", "<|endoftext|>"]
SPACES = [" ", "  ", "", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u200b", "\ufeff"]
# As in microsoft's repositories: the mask token takes the space before it along.
MASK = {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}


def random_texts(count, seed=0):
    chosen = random.Random(seed)

    def piece():
        kind = chosen.random()
        if kind < 0.4:
            return chosen.choice(WORDS)
        if kind < 0.8:
            low, high = chosen.choice(SCRIPTS)
            return "".join(chr(chosen.randint(low, high)) for _ in range(chosen.randint(1, 6)))
        return chosen.choice(SPECIAL if kind < 0.9 else SPACES)

    def text():
        joint = chosen.choice(["", " ", "  "]) if chosen.random() < 0.3 else " "
        return joint.join(piece() for _ in range(chosen.randint(0, 8)))

    return ["", " ", "   ", "\n", *(text() for _ in range(count - 4))]


TEXTS = random_texts(1000)


def corpus():
    chosen = random.Random(1)
    return [" ".join(chosen.choice(WORDS) for _ in range(12)) for _ in range(300)]


def train_sentencepiece(path, **options):
    buffer = io.BytesIO()
    settings = {
        "vocab_size": 220,
        "hard_vocab_limit": False,
        "model_type": "unigram",
        "normalization_rule_name": "nmt_nfkc",
        "character_coverage": 1.0,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentences = iter(corpus())
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=sentences, model_writer=buffer, **settings | options)
    path.write_bytes(buffer.getvalue())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of two tiny tokenizers: "bpe" as trocr-base has it, "unigram" as trocr-small."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for kind, oracle in ORACLES.items():
        (folder / kind).mkdir()
        (folder / kind / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": oracle.__name__}))
    bpe = ByteLevelBPETokenizer()
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(corpus(), vocab_size=450, special_tokens=first, show_progress=False)
    bpe.save_model(str(folder / "bpe"))
    vocab = json.loads((folder / "bpe" / "vocab.json").read_text())
    (folder / "bpe" / "vocab.json").write_text(json.dumps(vocab | {"<mask>": len(vocab)}))  # the last, as in RoBERTa's
    train_sentencepiece(folder / "unigram" / "sentencepiece.bpe.model")
    return folder


@pytest.fixture(params=ORACLES)
def kind(request):
    return request.param


@pytest.fixture
def folder(trained, kind, tmp_path):
    """A copy of one of the trained tokenizers that a test may change."""
    return shutil.copytree(trained / kind, tmp_path / kind)


@pytest.fixture
def bpe_folder(trained, tmp_path):
    return shutil.copytree(trained / "bpe", tmp_path / "bpe")


@pytest.fixture
def unigram_folder(trained, tmp_path):
    return shutil.copytree(trained / "unigram", tmp_path / "unigram")


@pytest.fixture
def tokenizers_folder(shared):
    folder = shared / "data" / "tokenizers"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/tokenizers")
    return folder


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def assert_same(ours, theirs, texts=TEXTS):
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.get_vocab() == theirs.get_vocab()
    for name in ("bos", "eos", "cls", "sep", "pad", "unk", "mask"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id"), name
    found, expected = ours(texts), theirs(texts)
    for text, ids, expected_ids in zip(texts, found["input_ids"], expected["input_ids"], strict=True):
        assert ids == expected_ids, text
        for is_skipped in (False, True):
            decoded = [tokenizer.decode(ids, skip_special_tokens=is_skipped) for tokenizer in (ours, theirs)]
            assert decoded[0] == decoded[1], text
    assert found["attention_mask"] == expected["attention_mask"]
    plain = [ours(text, add_special_tokens=False).input_ids for text in texts[:200]]
    assert plain == theirs(texts[:200], add_special_tokens=False)["input_ids"]


def test_the_texts_are_many_and_varied():
    assert len(TEXTS) == 1000
    assert len(set("".join(TEXTS))) > 1500
    assert all(any(token in text for text in TEXTS) for token in (*SPECIAL, *SPACES))


def test_ids_and_text_are_the_references(trained, kind):
    assert_same(TrOCRTokenizer.from_pretrained(trained / kind), ORACLES[kind].from_pretrained(trained / kind))


def test_random_ids_decode_as_in_the_reference(trained, kind):
    ours, theirs = TrOCRTokenizer.from_pretrained(trained / kind), ORACLES[kind].from_pretrained(trained / kind)
    chosen = random.Random(2)
    rows = [[chosen.randrange(len(theirs) + 50) for _ in range(chosen.randint(0, 20))] for _ in range(300)]
    for is_skipped in (False, True):
        expected = theirs.batch_decode(rows, skip_special_tokens=is_skipped)
        assert ours.batch_decode(rows, skip_special_tokens=is_skipped) == expected
    ids = range(len(theirs) + 5)
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    tokens = ["<s>", "<mask>", "a", "no such token"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_ids("</s>") == 2


@pytest.mark.parametrize("source", ["vocab", "tokenizer_json"])
def test_the_real_roberta_tokenizer_is_the_references(tokenizers_folder, source, tmp_path):
    names = ["vocab.json", "merges.txt"] if source == "vocab" else ["tokenizer.json"]
    for name in names:
        shutil.copy(tokenizers_folder / "roberta-base" / name, tmp_path)
    write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"})
    ours = TrOCRTokenizer.from_pretrained(tmp_path)
    assert (len(ours), ours.mask_token_id) == (50265, 50264)
    assert_same(ours, transformers.RobertaTokenizer.from_pretrained(tmp_path))


def test_known_encodings_of_roberta(tokenizers_folder):
    ours = TrOCRTokenizer.from_pretrained(tokenizers_folder / "roberta-base")
    known = json.loads((tokenizers_folder / "known_encodings.json").read_text(encoding="utf-8"))
    assert known
    for case in known:
        assert ours(case["text"]).input_ids == case["ids"]
        assert ours.decode(case["ids"], skip_special_tokens=True) == case["text"]


def test_the_real_trocr_small_tokenizer_is_the_references(tokenizers_folder, tmp_path):
    shutil.copy(tokenizers_folder / "sentencepiece" / "unilm3-cased.model", tmp_path / "sentencepiece.bpe.model")
    write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"})
    write(tmp_path / "special_tokens_map.json", {"mask_token": MASK})
    ours = TrOCRTokenizer.from_pretrained(tmp_path)
    assert (len(ours), ours.mask_token_id, ours.pad_token_id) == (64002, 64001, 1)
    assert_same(ours, transformers.XLMRobertaTokenizer.from_pretrained(tmp_path))
    # The network has 64044 ids.
    ids = ours("industry .", add_special_tokens=False).input_ids
    assert ours.decode([0, *range(64002, 64044), *ids, 64043, 2], skip_special_tokens=True) == "industry ."


@pytest.mark.parametrize(
    "name", ["kosmos2_xlmr_subset_65k.sentencepiece.bpe", "spm_example_torchtext_20k", "t5_base_32k"]
)
def test_other_sentencepiece_models_are_the_references(tokenizers_folder, name, tmp_path):
    shutil.copy(tokenizers_folder / "sentencepiece" / f"{name}.model", tmp_path / "sentencepiece.bpe.model")
    ours, theirs = TrOCRTokenizer.from_pretrained(tmp_path), transformers.XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert_same(ours, theirs, TEXTS[:200])


def test_the_sentencepiece_file_is_read_as_its_own_library_reads_it(trained):
    path = trained / "unigram" / "sentencepiece.bpe.model"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = read_sentencepiece(path)
    assert ours.model_type == UNIGRAM
    assert len(ours.charsmap) > 100_000
    ids = range(theirs.get_piece_size())
    assert [piece.text for piece in ours.pieces] == [theirs.id_to_piece(i) for i in ids]
    assert [piece.score for piece in ours.pieces] == [theirs.get_score(i) for i in ids]
    assert [piece.kind == CONTROL for piece in ours.pieces] == [theirs.is_control(i) for i in ids]


def test_ids_without_a_token_are_left_out(trained, kind):
    ours = TrOCRTokenizer.from_pretrained(trained / kind)
    ids = ours("industry", add_special_tokens=False).input_ids
    beyond = list(range(len(ours), len(ours) + 42))
    assert ours.decode([*beyond, *ids, -100, -1]) == "industry"
    assert ours.decode(beyond) == ""
    assert ours.decode([]) == ""
    assert ours.convert_ids_to_tokens([len(ours)]) == [None]


def test_ids_come_as_lists_or_arrays(trained, kind):
    ours = TrOCRTokenizer.from_pretrained(trained / kind)
    ids = ours("the industry").input_ids
    expected = ours.decode(ids)
    for given in (np.asarray(ids), np.asarray(ids, np.int32), jax.numpy.asarray(ids), tuple(ids)):
        assert ours.decode(given) == expected
    assert ours.decode(np.int64(ids[1])) == ours.decode([ids[1]])
    assert ours.decode(np.asarray([ids])) == [expected]
    assert ours.batch_decode(np.asarray([ids, ids])) == [expected] * 2


def test_decoding_is_raw(trained, kind):
    ours = TrOCRTokenizer.from_pretrained(trained / kind)
    text = 'industry , " Mr. Brown commented icily . " I \'m presto !'
    assert ours.decode(ours(text).input_ids, skip_special_tokens=True) == text


def test_decoding_is_raw_whatever_an_old_configuration_says(bpe_folder):
    write(bpe_folder / "tokenizer_config.json", {"clean_up_tokenization_spaces": True})
    ours, theirs = (cls.from_pretrained(bpe_folder) for cls in (TrOCRTokenizer, transformers.RobertaTokenizer))
    ids = ours("presto !").input_ids
    assert ours.decode(ids, skip_special_tokens=True) == "presto !" == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"padding": "longest"},
        {"padding": "do_not_pad"},
        {"padding": "max_length", "max_length": 40},
        {"padding": "max_length", "max_length": 6},
        {"truncation": True, "max_length": 7},
        {"truncation": True, "max_length": 2},
        {"truncation": True, "max_length": 3, "add_special_tokens": False},
        {"truncation": True, "padding": True, "max_length": 7},
        {"truncation": True, "padding": "max_length", "max_length": 30},
        {"truncation": True, "padding": "max_length", "max_length": 7, "add_special_tokens": False},
    ],
    ids=str,
)
def test_padding_and_truncation_are_the_references(trained, kind, options):
    ours, theirs = TrOCRTokenizer.from_pretrained(trained / kind), ORACLES[kind].from_pretrained(trained / kind)
    texts = ["the industry of the year , presto !", "a", "", "日本語 <mask> café"]
    assert ours(texts, **options) == dict(theirs(texts, **options))
    assert ours(texts[0], **options) == dict(theirs(texts[0], **options))
    # Nothing of it stays behind.
    assert ours(texts) == dict(theirs(texts))


def test_arrays_are_the_references(trained, kind):
    ours, theirs = TrOCRTokenizer.from_pretrained(trained / kind), ORACLES[kind].from_pretrained(trained / kind)
    texts = ["the industry", "a"]
    expected = theirs(texts, padding=True, return_tensors="np")
    for name, array in ours(texts, padding=True, return_tensors="np").items():
        np.testing.assert_array_equal(array, expected[name])
        assert array.dtype == expected[name].dtype
    found = ours(texts, padding=True, return_tensors="jax")
    assert isinstance(found.input_ids, jax.Array)
    np.testing.assert_array_equal(found.input_ids, expected["input_ids"])
    # One text is a batch of one there.
    assert ours("a", return_tensors="np").input_ids.shape == (1, 3)


def test_maximum_length_comes_from_the_configuration(folder, kind):
    write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": ORACLES[kind].__name__, "model_max_length": 6},
    )
    ours, theirs = TrOCRTokenizer.from_pretrained(folder), ORACLES[kind].from_pretrained(folder)
    text = "the industry of the year"
    for options in ({"truncation": True}, {"truncation": True, "padding": "max_length"}):
        assert ours([text, "a"], **options) == dict(theirs([text, "a"], **options))
    assert len(ours(text, truncation=True).input_ids) == 6


def test_options_that_cannot_be_followed_are_refused(trained):
    ours = TrOCRTokenizer.from_pretrained(trained / "bpe")
    with pytest.raises(ValueError, match="need max_length="):
        ours("a", truncation=True)
    with pytest.raises(ValueError, match="need max_length="):
        ours("a", padding="max_length")
    with pytest.raises(ValueError, match="return_tensors is 'pt'"):
        ours("a", return_tensors="pt")
    with pytest.raises(ValueError, match="pass padding=True"):
        ours(["a", "the industry of"], return_tensors="np")
    with pytest.raises(ValueError, match="padding is 'left'"):
        ours(["a"], padding="left")


def test_encodings_have_attributes(trained):
    encoding = TrOCRTokenizer.from_pretrained(trained / "bpe")("a")
    assert encoding.input_ids is encoding["input_ids"]
    assert not hasattr(encoding, "labels")


def added_token(content, **flags):
    off = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
    return {**off, "content": content, **flags}


def with_added_tokens(folder, kind, case):
    size = len(ORACLES[kind].from_pretrained(folder))
    config = {"tokenizer_class": ORACLES[kind].__name__}
    if case == "added_tokens_json":
        write(folder / "added_tokens.json", {"<extra>": size, "weiß": size + 1})
    elif case == "special_added_tokens_json":
        write(folder / "added_tokens.json", {"<extra>": size})
        config["additional_special_tokens"] = ["<extra>"]
    elif case == "additional_special_tokens":
        greedy = {"__type": "AddedToken", **added_token("<sep>", special=True, rstrip=True)}
        config["additional_special_tokens"] = ["<extra>", greedy]
    elif case == "additional_in_map":
        write(folder / "added_tokens.json", {"<extra>": size})
        write(folder / "special_tokens_map.json", {"additional_special_tokens": ["<extra>"]})
    elif case == "added_tokens_decoder":
        plain, greedy = added_token("<extra>"), added_token("<sep>", special=True, lstrip=True, rstrip=True)
        config["added_tokens_decoder"] = {str(size): plain, str(size + 1): greedy}
    elif case == "mask_in_map":
        write(folder / "special_tokens_map.json", {"mask_token": MASK, "bos_token": "<s>"})
    elif case == "mask_in_config":
        config["mask_token"] = {"__type": "AddedToken", **MASK}
    elif case == "mask_in_both":
        config["mask_token"] = "<mask>"
        write(folder / "special_tokens_map.json", {"mask_token": MASK})
    elif case == "map_beside_decoder":
        write(folder / "special_tokens_map.json", {"mask_token": MASK})
        number = ORACLES[kind].from_pretrained(folder).mask_token_id
        config["added_tokens_decoder"] = {str(number): added_token("<mask>", special=True)}
    elif case == "prefix_space":
        config["add_prefix_space"] = True
    write(folder / "tokenizer_config.json", config)


@pytest.mark.parametrize(
    "case",
    [
        "added_tokens_json",
        "special_added_tokens_json",
        "additional_special_tokens",
        "additional_in_map",
        "added_tokens_decoder",
        "mask_in_map",
        "mask_in_config",
        "mask_in_both",
        "map_beside_decoder",
        "prefix_space",
    ],
)
def test_added_tokens_and_their_flags_are_the_references(folder, kind, case):
    with_added_tokens(folder, kind, case)
    ours, theirs = TrOCRTokenizer.from_pretrained(folder), ORACLES[kind].from_pretrained(folder)
    texts = ["a <extra> b<extra>c", "a <sep> b", "weiß weißer Schweiß", "a <mask> b", "a<mask>  b", *TEXTS[:200]]
    assert_same(ours, theirs, texts)
    # And after saving, for both libraries.
    saved = folder / "saved"
    saved.mkdir()
    ours.save_pretrained(saved)
    assert_same(TrOCRTokenizer.from_pretrained(saved), theirs, texts)
    assert_same(ours, ORACLES[kind].from_pretrained(saved), texts)


def test_added_tokens_get_the_ids_of_their_files(bpe_folder):
    size = len(TrOCRTokenizer.from_pretrained(bpe_folder))
    write(bpe_folder / "added_tokens.json", {"<second>": size + 1, "<first>": size})
    ours = TrOCRTokenizer.from_pretrained(bpe_folder)
    assert ours.convert_tokens_to_ids(["<first>", "<second>"]) == [size, size + 1]
    assert len(ours) == size + 2
    assert ours.vocab_size == size
    assert ours("<first><second>", add_special_tokens=False).input_ids == [size, size + 1]


def test_added_tokens_that_do_not_fit_are_refused(folder):
    write(folder / "added_tokens.json", {"<extra>": 9999})
    with pytest.raises(ValueError, match=r"'<extra>' as 9999.*do not belong together"):
        TrOCRTokenizer.from_pretrained(folder)


def test_saving_keeps_every_id(trained, kind, tmp_path):
    ours = TrOCRTokenizer.from_pretrained(trained / kind)
    ours.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    again = TrOCRTokenizer.from_pretrained(tmp_path)
    assert again.special_tokens == ours.special_tokens
    assert_same(again, ORACLES[kind].from_pretrained(trained / kind))
    assert_same(ours, ORACLES[kind].from_pretrained(tmp_path))
    # Saving what was saved changes nothing.
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_tokenizer_saved_by_transformers_is_read(trained, kind, tmp_path):
    theirs = ORACLES[kind].from_pretrained(trained / kind)
    theirs.save_pretrained(tmp_path)
    assert_same(TrOCRTokenizer.from_pretrained(tmp_path), theirs)


def test_settings_worth_keeping_survive_saving(bpe_folder, tmp_path):
    write(bpe_folder / "tokenizer_config.json", {"model_max_length": 48, "do_lower_case": False, "bos_token": "<s>"})
    TrOCRTokenizer.from_pretrained(bpe_folder).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (saved["model_max_length"], saved["tokenizer_class"]) == (48, "RobertaTokenizer")
    assert "do_lower_case" not in saved


@pytest.mark.parametrize("present", [[], ["vocab.json"], ["merges.txt"], ["tokenizer_config.json"]], ids=str)
def test_missing_files_are_named(trained, present, tmp_path):
    for name in present:
        shutil.copy(trained / "bpe" / name, tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        TrOCRTokenizer.from_pretrained(tmp_path)
    for name in (str(tmp_path), "tokenizer.json", "vocab.json", "merges.txt", "sentencepiece.bpe.model"):
        assert name in str(caught.value)


def test_vocabulary_and_merges_of_different_models_are_refused(bpe_folder):
    with (bpe_folder / "merges.txt").open("a", encoding="utf-8") as file:
        file.write("zq zq\n")
    with pytest.raises(ValueError, match=r"vocab\.json and merges\.txt do not belong together"):
        TrOCRTokenizer.from_pretrained(bpe_folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("merges.txt", "#version: 0.2\na b c\n", r"merges\.txt: 'a b c' is not a pair"),
        ("vocab.json", '{"<s>": 0', r"vocab\.json is not valid JSON"),
        ("vocab.json", "[]", r"vocab\.json holds a JSON list"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is not valid JSON"),
        ("special_tokens_map.json", "{", r"special_tokens_map\.json is not valid JSON"),
        ("added_tokens.json", "{", r"added_tokens\.json is not valid JSON"),
        ("tokenizer.json", "", r"tokenizer\.json cannot be read"),
        ("tokenizer.json", '{"version": "1.0"', r"tokenizer\.json cannot be read"),
        ("tokenizer.json", '{"some": "other JSON"}', r"tokenizer\.json cannot be read"),
    ],
)
def test_damaged_files_are_named(bpe_folder, name, content, message):
    (bpe_folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        TrOCRTokenizer.from_pretrained(bpe_folder)


def test_a_vocabulary_without_the_end_token_is_refused(bpe_folder):
    vocab = json.loads((bpe_folder / "vocab.json").read_text())
    del vocab["</s>"]
    write(bpe_folder / "vocab.json", vocab)
    with pytest.raises(ValueError, match=r"vocab\.json has no '</s>'"):
        TrOCRTokenizer.from_pretrained(bpe_folder)


@pytest.mark.parametrize("content", [b"", b"not a model\n" * 20, bytes(100), b"\xff" * 100], ids=len)
def test_what_is_no_sentencepiece_model_is_refused(unigram_folder, content):
    (unigram_folder / "sentencepiece.bpe.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"sentencepiece\.bpe\.model is not a SentencePiece model"):
        TrOCRTokenizer.from_pretrained(unigram_folder)


def test_a_truncated_sentencepiece_model_is_refused(unigram_folder):
    path = unigram_folder / "sentencepiece.bpe.model"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"sentencepiece\.bpe\.model is not a SentencePiece model"):
        TrOCRTokenizer.from_pretrained(unigram_folder)


def test_damaged_sentencepiece_models_load_or_are_named(unigram_folder):
    path = unigram_folder / "sentencepiece.bpe.model"
    content = path.read_bytes()
    settings = content.index(b"nmt_nfkc")
    chosen = random.Random(3)
    messages = []
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(chosen.randint(1, 4)):
            start = chosen.choice([0, settings - 300])
            damaged[start + chosen.randrange(600)] = chosen.randrange(256)
        path.write_bytes(damaged)
        try:
            TrOCRTokenizer.from_pretrained(unigram_folder)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(str(path) in message for message in messages)


def test_a_damaged_normalisation_table_is_refused(unigram_folder):
    path = unigram_folder / "sentencepiece.bpe.model"
    content = bytearray(path.read_bytes())
    start = content.index(read_sentencepiece(path).charsmap)
    content[start : start + 4] = b"\xff\xff\xff\x7f"  # the size of its first part
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sentencepiece\.bpe\.model is damaged"):
        TrOCRTokenizer.from_pretrained(unigram_folder)


def test_a_sentencepiece_model_of_another_type_is_refused(unigram_folder):
    train_sentencepiece(unigram_folder / "sentencepiece.bpe.model", model_type="bpe")
    with pytest.raises(ValueError, match=r"sentencepiece\.bpe\.model is a SentencePiece model of type 2"):
        TrOCRTokenizer.from_pretrained(unigram_folder)


def test_a_sentencepiece_model_without_normalisation_is_the_references(unigram_folder):
    train_sentencepiece(unigram_folder / "sentencepiece.bpe.model", normalization_rule_name="identity")
    ours, theirs = (cls.from_pretrained(unigram_folder) for cls in (TrOCRTokenizer, ORACLES["unigram"]))
    assert_same(ours, theirs, TEXTS[:200])


def test_pieces_of_the_users_own_are_the_references(unigram_folder):
    train_sentencepiece(
        unigram_folder / "sentencepiece.bpe.model", user_defined_symbols=["<date>", "Mr."], control_symbols=["<ctl>"]
    )
    ours, theirs = (cls.from_pretrained(unigram_folder) for cls in (TrOCRTokenizer, ORACLES["unigram"]))
    assert_same(ours, theirs, ["a <date> b<date>", "Mr. Brown", "x<ctl> y", *TEXTS[:200]])
