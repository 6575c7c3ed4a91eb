"""Other vocabularies: tokenizers with more characters, the rows that new tokens start from, and how they learn."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from tests.processing.test_tokenizer import train_sentencepiece
from tests.training.small import CONFIG, examples, options, small_ocr
from trocr_jax import TrOCR, VisionEncoderDecoderConfig, VisionEncoderDecoderModel
from trocr_jax.checkpoints.conversion import convert
from trocr_jax.datasets.coverage import Coverage
from trocr_jax.evaluation.metrics import character_error_rate
from trocr_jax.processing.added_characters import with_characters
from trocr_jax.processing.processor import TrOCRProcessor
from trocr_jax.processing.tokenizer import TrOCRTokenizer
from trocr_jax.training import TextEncoder, extend_vocabulary, fit, replace_tokenizer
from trocr_jax.training.plan import _check_rows_are_trained
from trocr_jax.training.settings import TrainingSettings
from trocr_jax.training.vocabulary import EMBEDDING, HEAD, missing_characters

# Two, three and four bytes; "é" alone is in the alphabet that byte-level tokenizers write bytes in.
CHARACTERS = "жéếẽ🙂"
TEXTS = ["жж aжb ж", "é", "bế ẽ🙂", "Total 12.50 (naïve, ия)", "ề ế 😀", "", " ж"]


@pytest.fixture(scope="module")
def ocr():
    return small_ocr()


@pytest.fixture(scope="module")
def embedding(ocr):
    return np.asarray(ocr.params["decoder"]["embed_tokens"]["embedding"])


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    """A tokenizer as trocr-small has it, whose vocabulary lacks "ж"s in capitals."""
    folder = tmp_path_factory.mktemp("unigram")
    train_sentencepiece(folder / "sentencepiece.bpe.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    return TrOCRTokenizer.from_pretrained(folder)


def assert_reference_reads_it(tokenizer, folder, texts):
    """transformers loads the saved tokenizer and gives the same ids and texts."""
    tokenizer.save_pretrained(folder)
    (pathlib.Path(folder) / "config.json").write_text(json.dumps(CONFIG))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == len(tokenizer)
    rows = tokenizer(texts).input_ids
    assert theirs(texts)["input_ids"] == rows
    assert theirs.batch_decode(rows, skip_special_tokens=True) == tokenizer.batch_decode(rows, skip_special_tokens=True)
    again = TrOCRTokenizer.from_pretrained(folder)
    assert again(texts).input_ids == rows
    assert again.get_vocab() == tokenizer.get_vocab()


def test_each_character_is_a_token_in_byte_level_bpe(ocr, tmp_path):
    old = ocr.processor.tokenizer
    new = with_characters(old, CHARACTERS + "a ")
    # Three and four bytes need their first ones joined, too: E1 BA for two of them, F0 9F, F0 9F 99.
    assert len(new) == len(old) + len(CHARACTERS) + 3
    assert old.get_vocab().items() <= new.get_vocab().items()
    for text in TEXTS:
        ids = new(text, add_special_tokens=False).input_ids
        assert new.decode(ids) == text
    pieces = new.convert_ids_to_tokens(new("жж aжb ế", add_special_tokens=False).input_ids)
    assert pieces == ["Ð¶", "Ð¶", *old.convert_ids_to_tokens(old(" a", add_special_tokens=False).input_ids), "Ð¶", "b",
                      "Ġ", "áº¿"]  # fmt: skip
    plain = ["Total 12.50", "the quick brown fox", "ия naïve"]
    assert new(plain).input_ids == old(plain).input_ids
    assert_reference_reads_it(new, tmp_path, TEXTS)


def test_added_tokens_keep_their_ids(ocr, tmp_path):
    backend = Tokenizer.from_str(ocr.processor.tokenizer.backend.to_str())
    backend.add_tokens(["<new>"])
    old = TrOCRTokenizer(backend, ocr.processor.tokenizer.special_tokens)
    new = with_characters(old, "ж")
    assert new.convert_tokens_to_ids(["<new>", "Ð¶"]) == [512, 513]
    assert new("a<new>ж", add_special_tokens=False).input_ids[-2:] == [512, 513]
    assert_reference_reads_it(new, tmp_path, ["a<new>ж"])


def test_each_character_is_a_token_in_unigram(unigram, tmp_path):
    assert Coverage.of(examples(["Ж Щa"]), unigram).lost.keys() == {"Ж", "Щ"}
    new = with_characters(unigram, "ЖЩ")
    assert len(new) == len(unigram) + 2
    text = "ЩaЖ the ЖЖ"
    ids = new(text, add_special_tokens=False).input_ids
    assert new.decode(ids) == text
    assert ids.count(len(unigram)) == 3
    plain = ["the industry", "привет 12"]
    assert new(plain).input_ids == unigram(plain).input_ids
    assert_reference_reads_it(new, tmp_path, [text, *plain])
    # It makes "fi" of it before it looks for pieces.
    with pytest.raises(ValueError, match=r"changes 'ﬁ' U\+FB01 .* to 'fi'"):
        with_characters(unigram, "ﬁ")


@pytest.mark.parametrize(("text", "count"), [("बराबर हैं मनुष्यों", 12), ("mọi người đều được", 6), ("свободны", 1)])
def test_robertas_own_tokenizer_gets_what_other_scripts_need(shared, tmp_path, text, count):
    folder = shared / "data" / "tokenizers" / "roberta-base"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/tokenizers")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder / name, tmp_path)
    old, lines = TrOCRTokenizer.from_pretrained(tmp_path), examples([text] * 10)
    found = missing_characters(lines, old)
    new = with_characters(old, found)
    assert len(found) == count
    assert not Coverage.of(lines, new).several
    english = ["industry, ' Mr. Brown commented icily.' It’s “fine” – €5 naïve", "CHARLES , 39"]
    assert new(english).input_ids == old(english).input_ids
    assert_reference_reads_it(new, tmp_path / "new", [text, *text.split(), *english])


def test_other_kinds_are_refused():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer = TrOCRTokenizer(backend, {"unk_token": "<unk>"})
    with pytest.raises(ValueError, match="WordLevel"):
        with_characters(tokenizer, "b")
    assert with_characters(tokenizer, "") is tokenizer  # as every training without other characters asks for


def test_a_space_that_the_tokenizer_puts_in_front_is_no_loss(ocr):
    content = json.loads(ocr.processor.tokenizer.backend.to_str())
    content["pre_tokenizer"]["add_prefix_space"] = True
    old = ocr.processor.tokenizer
    prefixed = TrOCRTokenizer(Tokenizer.from_str(json.dumps(content)), old.special_tokens, old.config)
    lines = examples(["жab"] * 10)
    assert not Coverage.of(lines, prefixed).lost
    assert missing_characters(lines, prefixed) == "ж"
    assert not Coverage.of(lines, with_characters(prefixed, "ж")).several


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_new_rows_have_to_be_trained(name):
    _check_rows_are_trained(TrainingSettings(frozen="^encoder/"), {EMBEDDING, HEAD})
    with pytest.raises(ValueError, match=f"leaves {name} as it is"):
        _check_rows_are_trained(TrainingSettings(frozen=name), {EMBEDDING, HEAD})
    _check_rows_are_trained(TrainingSettings(frozen=HEAD), {EMBEDDING})


def test_auto_takes_what_cannot_be_spelled_and_what_is_frequent(ocr, unigram):
    bpe = ocr.processor.tokenizer
    lines = examples(["жa"] * 9 + ["щ ж", "щщщ щщщ щщщ"])
    assert missing_characters(lines, bpe) == "жщ"
    assert missing_characters(lines[1:], bpe) == "щ"
    # None may stay unknown, but for those that the tokenizer takes for others.
    assert missing_characters(examples(["Ж ﬁ", "Щ Щ the"]), unigram) == "ЩЖ"


def test_rows_start_from_the_means_of_the_old_spelling(ocr, embedding):
    old, new = ocr.processor.tokenizer, extend_vocabulary(ocr, "жế")
    rows = np.asarray(new.params["decoder"]["embed_tokens"]["embedding"])
    assert new.config.decoder.vocab_size == len(rows) == len(new.processor.tokenizer) == 515
    np.testing.assert_array_equal(rows[:512], embedding)
    for token in ("Ð¶", "áº", "áº¿"):
        pieces = old.convert_tokens_to_ids(list(token))
        number = new.processor.tokenizer.convert_tokens_to_ids(token)
        np.testing.assert_allclose(rows[number], embedding[pieces].mean(axis=0), rtol=1e-6)
    assert extend_vocabulary(ocr, "abc") is ocr


def test_rows_without_an_old_spelling_and_rows_that_no_token_had(unigram):
    # As trocr-small: an untied head, and more rows than tokens.
    decoder = {**CONFIG["decoder"], "vocab_size": len(unigram) + 2, "tie_word_embeddings": False}
    config = VisionEncoderDecoderConfig.from_dict({**CONFIG, "decoder": decoder, "vocab_size": len(unigram) + 2})
    ocr = TrOCR(VisionEncoderDecoderModel(config), TrOCRProcessor(small_ocr().processor.image_processor, unigram))
    size = len(unigram)
    first, again, other = (extend_vocabulary(ocr, "ЖЩЫ", seed=seed) for seed in (0, 0, 1))
    assert first.config.decoder.vocab_size == first.config.extra["vocab_size"] == size + 3

    def tables(ocr):
        decoder = ocr.params["decoder"]
        return np.asarray(decoder["embed_tokens"]["embedding"]), np.asarray(decoder["output_projection"]["kernel"]).T

    for old, found, same, differs in zip(*map(tables, (ocr, first, again, other)), strict=True):
        np.testing.assert_array_equal(found[:size], old[:size])
        np.testing.assert_array_equal(found, same)
        assert not np.array_equal(found[size:], differs[size:])
        mean = old[:size].mean(axis=0)
        distances = np.abs(found[size:] - mean).max(axis=1)
        assert (distances > 0).all()
        assert (distances < 0.5 * old.std()).all()
        assert len({row.tobytes() for row in found[size:]}) == 3


def test_the_reference_computes_the_same_with_an_extended_model(ocr, tmp_path):
    new = extend_vocabulary(ocr, CHARACTERS)
    new.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "torch", to="torch")
    theirs = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path / "torch").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "torch")
    encoder = TextEncoder.of(new)
    labels = encoder.labels(TEXTS)[:, :9]
    ids = np.where(labels < 0, 1, labels)
    assert [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS] == [
        new.processor.tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS
    ]
    pixels = np.random.default_rng(0).uniform(-1, 1, (len(TEXTS), 3, 32, 320)).astype(np.float32)
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(pixels), decoder_input_ids=torch.from_numpy(ids).long()).logits.numpy()
    assert expected.shape[-1] == new.config.decoder.vocab_size == 520
    np.testing.assert_allclose(new.logits(pixels, ids), expected, atol=2e-5)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A folder with a tokenizer of another kind, whose special tokens have other ids and names."""
    pieces = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "▁", "a", "b", "▁the", "ж", "quick", "brown", "№"]
    backend = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    backend.add_special_tokens(pieces[:4])
    backend.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    folder = tmp_path_factory.mktemp("words")
    backend.save(str(folder / "tokenizer.json"))
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    rest = {"cls_token": "[BOS]", "sep_token": "[EOS]", "mask_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, **rest}))
    return folder


def test_another_tokenizer_takes_rows_along_and_ids_by_role(ocr, embedding, words, tmp_path):
    old = ocr.processor.tokenizer
    settings = ocr.generation_config.replace(suppress_tokens=(7,), forced_eos_token_id=2)
    with pytest.warns(UserWarning, match="left out .*suppress_tokens"):
        new = replace_tokenizer(ocr.with_params(ocr.params, generation_config=settings), words)
    rows = np.asarray(new.params["decoder"]["embed_tokens"]["embedding"])
    assert len(rows) == new.config.decoder.vocab_size == 12
    special = old.convert_tokens_to_ids(["<pad>", "<unk>", "<s>", "</s>"])
    same = old.convert_tokens_to_ids(["Ġ", "a", "b"])
    np.testing.assert_array_equal(rows[:7], embedding[[*special, *same]])
    for number, text in ((7, " the"), (8, "ж"), (9, "quick"), (11, "№")):
        pieces = old(text, add_special_tokens=False).input_ids
        assert pieces
        np.testing.assert_allclose(rows[number], embedding[pieces].mean(axis=0), rtol=1e-6, err_msg=text)
    for owner in (new.config, new.config.decoder, new.generation_config):
        assert (owner.decoder_start_token_id, owner.pad_token_id, owner.eos_token_id) == (3, 0, 3)
    assert new.generation_config.forced_eos_token_id == 3
    assert new.generation_config.suppress_tokens is None
    assert TextEncoder.of(new).encode(["ab the"]) == [[5, 6, 7, 3]]
    assert_reference_reads_it(new.processor.tokenizer, tmp_path, ["ab the a", "quick ж№ brown"])
    # Back again: "a" comes back as it was, and what neither spelled is near the mean.
    back = replace_tokenizer(new, old)
    again = np.asarray(back.params["decoder"]["embed_tokens"]["embedding"])
    np.testing.assert_array_equal(again[[*special, *same]], embedding[[*special, *same]])
    assert back.config == ocr.config
    assert np.abs(again[old.convert_tokens_to_ids("Z")] - rows.mean(axis=0)).max() < 0.5 * rows.std()


def test_a_special_token_that_the_new_tokenizer_lacks_is_named(ocr, words, tmp_path):
    new = TrOCRTokenizer.from_pretrained(words)
    starts_from_bos = ocr.with_params(
        ocr.params, generation_config=ocr.generation_config.replace(decoder_start_token_id=0)
    )
    for role in ("bos_token", "cls_token"):
        del new.special_tokens[role]
    with pytest.raises(ValueError, match=r"is 0, '<s>', .* such as bos_token"):
        replace_tokenizer(starts_from_bos, new)
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        replace_tokenizer(ocr, tmp_path)


def test_sinusoidal_positions_count_from_the_padding_token(ocr, words):
    decoder = {**CONFIG["decoder"], "use_learned_position_embeddings": False}
    config = VisionEncoderDecoderConfig.from_dict({**CONFIG, "decoder": decoder})
    with pytest.warns(UserWarning, match="padding token, which was 1 and is 0"):
        replace_tokenizer(TrOCR(VisionEncoderDecoderModel(config), ocr.processor), words)


LEARNED = ("жa", "щ", "bж a", "é", "aéщ")


class Killed(BaseException):
    pass


def keep(image, rng):
    return image


def interrupt(ocr, lines, output, **arguments):
    """A training that ends behind its first checkpoint, as if it had been killed."""
    opened = []

    def stop(image, rng):
        opened.append(image)
        if len(opened) > 8 * 40:
            raise Killed
        return image

    stop.__name__ = "keep"
    with pytest.raises(Killed):
        fit(ocr, lines, lines, output, **{**arguments, "augment": stop})


@pytest.fixture(scope="module")
def interrupted(ocr, tmp_path_factory):
    """A training with new characters that ended behind a checkpoint."""
    output = tmp_path_factory.mktemp("vocabulary") / "out"
    interrupt(ocr, examples(LEARNED), output, add_characters="жщéa", **options(150))
    return output


def test_new_characters_are_learned_and_a_resumed_training_knows_them(ocr, interrupted):
    lines, told = examples(LEARNED), []
    arguments = {**options(150), "augment": keep, "resume": True}
    with pytest.raises(ValueError, match=r"added characters \(was 'жщé', is ''\)"):
        fit(ocr, lines, lines, interrupted, **arguments)
    result = fit(ocr, lines, lines, interrupted, add_characters="жщéa", tell=told.append, **arguments)
    assert result.num_steps == 150
    reader = TrOCR.from_pretrained(interrupted)
    assert reader.config.decoder.vocab_size == 515
    texts = [line.text for line in reader([line.open() for line in lines])]
    assert set("".join(texts)) >= set("жщé")
    assert result.best_cer < 0.3
    assert told[2] == "with tokens for 3 characters, 'жщé', 515 tokens in all:"
    assert told[0].startswith("training lines: 5 lines, 1.4")
    assert "in several tokens each: 'é' U+00E9 (2), 'ж' U+0436 (2), 'щ' U+0449 (2)" in told[0]
    assert told[3] == "training lines: 5 lines, 0.91 tokens a character; every character is spelled"
    report = json.loads((interrupted / "training" / "coverage.json").read_text())
    assert report["added"] == "жщé"
    assert report["before"]["training lines"]["several"]["ж"] == {"count": 2, "num_lines": 2,
                                                                  "lines": ["line 0", "line 2"]}  # fmt: skip
    assert report["after"]["validation lines"]["tokens_per_character"] == 0.9091


def test_another_tokenizer_is_kept_and_a_resumed_training_knows_it(ocr, words, tmp_path):
    lines, told, output = examples(("ж a", "№", "ab", "b ж", "a№")), [], tmp_path / "out"
    arguments = {**options(60), "tokenizer": words}
    interrupt(ocr, lines, output, **arguments)
    arguments |= {"augment": keep, "resume": True}
    with pytest.raises(ValueError, match="model and labels"):
        fit(ocr, lines, lines, output, **{**arguments, "tokenizer": None})
    result = fit(ocr, lines, lines, output, tell=told.append, **arguments)
    assert result.num_steps == 60
    assert result.best_cer < result.first_cer
    assert told[2] == "with another tokenizer, 12 tokens in all:"
    reader = TrOCR.from_pretrained(output)
    assert reader.config.decoder.vocab_size == 12
    assert reader.processor.tokenizer.get_vocab() == TrOCRTokenizer.from_pretrained(words).get_vocab()
    texts = [line.text for line in reader([line.open() for line in lines])]
    assert character_error_rate(texts, [line.text for line in lines]) == result.best_cer


def test_rows_that_would_not_be_trained_are_refused(ocr, tmp_path):
    def complaint(**settings):
        with pytest.raises(ValueError, match="would never be learned") as caught:
            fit(ocr, examples(), examples(), tmp_path / "out", add_characters="ж", **settings)
        return str(caught.value)

    assert "lora_pattern=" in complaint(lora_rank=2)
    assert "frozen='embed_'" in complaint(frozen="embed_")
    assert not (tmp_path / "out").exists()


def test_characters_that_stay_unknown_are_told_of(ocr, unigram, tmp_path):
    lines = examples(["Ж", "ab ﬁ"])

    def told(expected, **options):
        with pytest.warns(UserWarning, match=expected), pytest.raises(ValueError, match="schedule"):
            fit(ocr, lines, lines, tmp_path / "out", tokenizer=unigram, schedule="none", **options)

    told(r"cannot spell .*'Ж' U\+0416 \(1\), 'ﬁ' U\+FB01 \(1\); add_characters=")
    told(r"cannot spell .*: 'ﬁ' U\+FB01 \(1\); replace them in the texts", add_characters="auto")
