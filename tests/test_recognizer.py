"""The one door: images of all kinds in, results out, with the embedded model."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import trocr_jax
from tests.conftest import SAMPLES
from trocr_jax import AllowedCharacters, Lexicon, Pattern, Recognition, TrOCR
from trocr_jax.decoding.generate import run
from trocr_jax.modeling.model import apply
from trocr_jax.processing.image import ImageError
from trocr_jax.recognizer import EMBEDDED

TEXTS = {
    "capitals.png": "BRASHEST SUBSCRIBING SHARKSKIN",
    "date.png": "Date: 09.10.93 07:53:40",
    "number.png": "No. 139KN",
    "price.png": "RM3.01",
    "printed-long.png": "ward by meeting with community",
    "printed.png": "such a structure.",
    "receipt-amount.png": "$0.60",
    "receipt-line.png": "RM13.50 SR",
    "words.png": "or how he spells his name",
}
PATHS = [str(SAMPLES / name) for name in TEXTS]


@pytest.fixture(scope="module")
def ocr():
    return TrOCR.from_pretrained()


@pytest.mark.parametrize("num_beams", [1, 4])
def test_reads_the_samples(ocr, num_beams):
    lines = ocr(PATHS, num_beams=num_beams)
    assert [line.text for line in lines] == list(TEXTS.values())
    for line, path in zip(lines, PATHS, strict=True):
        assert line.source == path
        assert line.finish_reason == "eos"
        assert not line.is_truncated
        assert line.error is None
        assert line.token_ids[-1] == 2
        assert len(line.token_ids) == len(line.token_log_probs)
        np.testing.assert_allclose(line.log_prob, sum(line.token_log_probs))
        assert (line.sequence_score is None) == (num_beams == 1)
        if num_beams > 1:
            np.testing.assert_allclose(line.sequence_score, line.log_prob / len(line.token_ids), rtol=1e-4)


def test_images_of_every_kind_read_alike(ocr):
    with Image.open(PATHS[1]) as opened:
        image = opened.convert("RGB")
    array = np.asarray(image)
    kinds = [PATHS[1], SAMPLES / "date.png", image, image.convert("L"), array, array.transpose(2, 0, 1), array[:, :, 0]]
    content = (SAMPLES / "date.png").read_bytes()
    with (SAMPLES / "date.png").open("rb") as file:
        lines = ocr([*kinds, content, io.BytesIO(content), file])
    assert {line.text for line in lines} == {TEXTS["date.png"]}
    assert [line.source for line in lines] == [PATHS[1], PATHS[1], *[None] * 8]


def test_a_single_image_gives_a_single_result(ocr):
    with Image.open(PATHS[0]) as opened:
        image = opened.copy()
    content = (SAMPLES / "capitals.png").read_bytes()
    for kind in (PATHS[0], image, np.asarray(image), content, io.BytesIO(content)):
        assert isinstance(ocr(kind), Recognition)
    assert [line.text for line in ocr([PATHS[0]])] == [TEXTS["capitals.png"]]
    assert ocr([]) == []
    batch = np.stack([np.zeros((8, 80, 3), np.uint8)] * 2)
    assert len(ocr(batch)) == 2
    with pytest.raises(TypeError, match="int"):
        ocr(5)


def test_a_broken_image_loses_no_other(ocr, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes((SAMPLES / "capitals.png").read_bytes()[:100])
    images = [PATHS[0], str(broken), tmp_path / "missing.png", np.zeros((3, 5, 7, 9)), PATHS[1]]
    lines = ocr(images, batch_size=2)
    assert [line.text for line in lines] == [TEXTS["capitals.png"], "", "", "", TEXTS["date.png"]]
    for line, name in zip(lines[1:4], ("broken.png", "missing.png", "array of shape"), strict=True):
        assert line.finish_reason == "error"
        assert name in line.error
        assert line.token_ids == ()
    assert [line.source for line in lines[1:4]] == [str(broken), str(tmp_path / "missing.png"), None]
    assert all(line.finish_reason == "error" for line in ocr([broken, broken]))
    with pytest.raises(ImageError, match=r"broken\.png"):
        ocr(images, on_error="raise")
    with pytest.raises(ValueError, match="on_error"):
        ocr(images, on_error="ignore")


def test_a_text_cut_off_says_so(ocr):
    line = ocr(PATHS[0], max_new_tokens=3)
    assert line.is_truncated
    assert line.finish_reason == "length"
    assert len(line.token_ids) == 3
    assert TEXTS["capitals.png"].startswith(line.text)


def test_further_hypotheses_are_alternatives(ocr):
    lines = ocr(PATHS[:2], num_beams=4, num_return_sequences=3)
    for line in lines:
        scores = [line.sequence_score, *[other.sequence_score for other in line.alternatives]]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        assert len({line.token_ids, *[other.token_ids for other in line.alternatives]}) == 3
        assert {other.source for other in line.alternatives} == {line.source}


def test_results_are_json_both_ways(ocr):
    line = ocr(PATHS[1], num_beams=2, num_return_sequences=2)
    content = json.loads(json.dumps(line.to_dict()))
    assert Recognition.from_dict(content) == line
    assert content["schema"] == 2
    assert content["text"] == line.text
    assert content["log_prob"] == line.log_prob
    assert content["confidence"] == line.confidence
    assert [word["text"] for word in content["words"]] == line.text.split()
    with pytest.raises(ValueError, match="schema 3"):
        Recognition.from_dict({**content, "schema": 3})


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}, {"do_sample": True, "top_k": 3, "key": 1}], ids=str)
def test_confidences_are_the_models_probabilities(ocr, options):
    for line in ocr(PATHS, **options):
        ids = [ocr.generation_config.start_token_id, *line.token_ids]
        pixels = ocr.processor(line.source).pixel_values
        own = np.asarray(jax.nn.log_softmax(ocr.logits(pixels, [ids[:-1]])[0], axis=-1))
        probabilities = np.exp(own[np.arange(len(line.token_ids)), line.token_ids].astype(np.float64))
        np.testing.assert_allclose(line.confidence, probabilities.prod(), rtol=1e-3)
        np.testing.assert_allclose(
            np.exp(line.mean_log_prob), probabilities.prod() ** (1 / len(probabilities)), rtol=1e-3
        )
        assert [word.text for word in line.words] == line.text.split()
        assert all(line.text[word.start : word.end] == word.text for word in line.words)
        # This tokenizer's words are whole tokens, the end token apart: together they make the line's confidence.
        np.testing.assert_allclose(
            np.prod([word.confidence for word in line.words]) * probabilities[-1], line.confidence, rtol=1e-3
        )


def test_a_text_of_low_confidence_is_rejected(ocr):
    plain = ocr(PATHS)
    confidences = sorted(line.confidence for line in plain)
    limit = (confidences[0] + confidences[1]) / 2
    found = ocr(PATHS, reject_below=limit)
    for before, after in zip(plain, found, strict=True):
        if before.confidence >= limit:
            assert after == before
        else:
            assert (after.text, after.words, after.finish_reason) == ("", (), "rejected")
            assert after.alternatives == (before,)
            assert after.confidence == before.confidence
    assert sum(line.finish_reason == "rejected" for line in found) == 1
    several = ocr(PATHS[0], num_beams=3, num_return_sequences=2, reject_below=1.0)
    assert len(several.alternatives) == 2
    assert Recognition.from_dict(several.to_dict()) == several
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match="reject_below"):
            ocr(PATHS, reject_below=wrong)


def test_images_without_ink_are_skipped_on_demand(ocr, tmp_path, monkeypatch):
    blank = np.full((40, 300), 250, np.uint8)
    assert ocr(blank).finish_reason != "blank"  # a model always reads something
    images = [PATHS[0], blank, tmp_path / "missing.png", PATHS[1]]
    lines = ocr(images, skip_blank=True)
    assert [line.finish_reason for line in lines] == ["eos", "blank", "error", "eos"]
    assert [line.text for line in lines] == [TEXTS["capitals.png"], "", "", TEXTS["date.png"]]
    assert lines[1].confidence is None
    assert Recognition.from_dict(lines[1].to_dict()) == lines[1]
    # Nothing to read: the model is not asked.
    monkeypatch.setattr("trocr_jax.reading.launch", None)
    assert ocr([blank, blank], skip_blank=True, reject_below=0.9) == [lines[1], lines[1]]


@pytest.mark.parametrize("num_beams", [1, 4])
def test_texts_obey_their_constraints(ocr, num_beams):
    paths = [str(SAMPLES / name) for name in ("date.png", "number.png", "price.png")]
    # The price is read right where a pattern or a lexicon leaves the choice between things like it.
    prices = Pattern(r"RM[0-9]+\.[0-9]{2}") & AllowedCharacters("RM.0123456789")
    lines = ocr(paths, num_beams=num_beams, constraint=[Pattern(r"Date: [0-9.]{8} [0-9:]{8}"), None, prices])
    assert [line.text for line in lines] == ["Date: 09.10.93 07:53:40", "No. 139KN", "RM3.01"]
    lexicon = Lexicon(["No. 139KN", "No. 138KN", "RM3.01", "RM3.07", "Date: 09.10.93 07:53:40"])
    lines = ocr(iter(paths), num_beams=num_beams, constraint=lexicon, batch_size=2)
    assert [line.text for line in lines] == [TEXTS[name] for name in ("date.png", "number.png", "price.png")]
    digits = ocr(paths[0], num_beams=num_beams, constraint=AllowedCharacters("0123456789"), boxes=True)
    assert digits.text.isdigit()
    assert digits.finish_reason == "eos"
    assert len(digits.words) == 1


def test_constraints_go_with_their_images_past_broken_ones_and_batches(ocr, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    paths = [str(tmp_path / "broken.png"), *PATHS[:4]]
    constraints = [Pattern("x"), *(Pattern(letter + "{3}") for letter in "abcd")]
    lines = ocr(paths, constraint=constraints, batch_size=2)
    assert [line.text for line in lines] == ["", "aaa", "bbb", "ccc", "ddd"]
    assert "broken.png" in lines[0].error


def test_constraints_are_checked_before_an_image_is_opened(ocr):
    for constraint, message in (
        ([Pattern("a")], "1 constraints for 2 images"),
        ([None, Pattern("a{60}")], "image 1: the shortest text that the constraint allows has"),
        (Pattern("a") & Pattern("b"), "no text satisfies"),
        ("abc", "make one with"),
    ):
        with pytest.raises(ValueError, match=message):
            ocr(["missing.png", "missing.png"], constraint=constraint, max_new_tokens=20, on_error="raise")
    endless = itertools.repeat(PATHS[3])
    with pytest.raises(ValueError, match="2 constraints, but more images"):
        list(ocr.stream(endless, constraint=[Pattern("a")] * 2, batch_size=3))


def test_the_fairseq_preset_resizes_as_fairseq_does(ocr):
    bicubic = dataclasses.replace(ocr.processor.image_processor, resample=3)
    pixels = bicubic([PATHS[1]])
    assert not np.array_equal(pixels, ocr.processor(PATHS[1]).pixel_values)
    output = ocr.generate(pixels, preset="fairseq")
    line = ocr(PATHS[1], preset="fairseq")
    assert line.token_ids == tuple(output.sequences[0, 1 : 1 + output.num_tokens[0]].tolist())
    assert line.sequence_score == float(output.sequences_scores[0])
    assert line.sequence_score != ocr(PATHS[1], num_beams=10, early_stopping=True).sequence_score


def test_results_stream_batch_by_batch(ocr):
    taken = []

    def images():
        for path in PATHS:
            taken.append(path)
            yield path

    stream = ocr.stream(images(), batch_size=2)
    assert next(stream).text == TEXTS["capitals.png"]
    assert len(taken) == 2
    assert [line.text for line in stream] == list(TEXTS.values())[1:]


def test_parts_fit_together(ocr):
    pixels = ocr.processor(PATHS[:3]).pixel_values
    assert pixels.shape == (3, 3, 32, 512)
    assert pixels.dtype == np.float32
    states = ocr.encode(pixels)
    assert states.shape == (3, ocr.config.encoder.num_tokens, 192)
    output = ocr.generate(pixels)
    assert ocr.processor.batch_decode(output.sequences, skip_special_tokens=True) == list(TEXTS.values())[:3]
    again = ocr.generate(encoder_hidden_states=states)
    np.testing.assert_array_equal(again.sequences, output.sequences)
    logits = ocr.logits(pixels, output.sequences[:, :-1])
    assert logits.shape == (3, output.sequences.shape[1] - 1, 512)
    first = int(output.num_tokens[0])
    assert logits[0].argmax(-1)[:first].tolist() == output.sequences[0, 1 : 1 + first].tolist()
    direct = apply(ocr.model, ocr.params, pixels, output.sequences[:, :-1])
    np.testing.assert_allclose(logits, direct, atol=1e-4)
    prompt = output.sequences[:1, :4]
    continued = ocr.generate(pixels[:1], decoder_input_ids=prompt)
    np.testing.assert_array_equal(continued.sequences, output.sequences[:1, : continued.sequences.shape[1]])


def test_logits_refuse_what_jax_would_clamp(ocr):
    pixels = ocr.processor(PATHS[:1]).pixel_values
    for ids, message in (([[2, 512]], "0 to 511"), ([[-1]], "0 to 511"), ([[2] * 65], "T from 1 to 64")):
        with pytest.raises(ValueError, match=message):
            ocr.logits(pixels, ids)


def test_saved_models_read_the_same(ocr, tmp_path):
    ocr.save_pretrained(tmp_path / "saved")
    loaded = TrOCR.from_pretrained(tmp_path / "saved")
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), ocr.params, loaded.params)
    assert jax.tree.all(same)
    assert loaded.config == ocr.config
    assert loaded.generation_config == ocr.generation_config
    assert [line.text for line in loaded(PATHS)] == list(TEXTS.values())
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {path.name for path in EMBEDDED.iterdir()} | {
        "README.md"
    }


def test_a_folder_without_tokenizer_loads_and_says_what_is_missing(tmp_path):
    folder = shutil.copytree(EMBEDDED, tmp_path / "model")
    for path in folder.glob("*token*"):
        path.unlink()
    ocr = TrOCR.from_pretrained(folder)
    pixels = ocr.processor(PATHS[:1]).pixel_values
    assert ocr.generate(pixels).sequences.shape[0] == 1
    for call in (lambda: ocr(PATHS), lambda: ocr.processor.decode([5]), lambda: ocr.processor.tokenizer("a")):
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            call()


def test_models_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        TrOCR.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(OSError, match="org/nothing"):
        TrOCR.from_pretrained("org/nothing", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="float16"):
        TrOCR.from_pretrained(dtype="float16")
    with pytest.raises(ValueError, match="jax_enable_x64"):
        TrOCR.from_pretrained(dtype="float64")


def test_unknown_options_are_errors(ocr):
    with pytest.raises(ValueError, match="num_beam'"):
        ocr(PATHS[0], num_beam=4)
    with pytest.raises(ValueError, match="batch_size is -1"):
        ocr(PATHS[0], batch_size=-1)
    with pytest.raises(ValueError, match="batch_sizes is 0"):
        ocr.warmup(batch_sizes=0)
    for load in (TrOCR, trocr_jax.VisionEncoderDecoderModel, trocr_jax.TrOCRProcessor):
        with pytest.raises(TypeError, match="no option 'device_map': JAX's devices are used"):
            load.from_pretrained(EMBEDDED, device_map="auto")


def test_options_are_checked_before_an_image_is_opened(ocr):
    with pytest.raises(ValueError, match="num_beam'"):
        ocr(["nowhere.png"], num_beam=3)
    with pytest.raises(ValueError, match="num_beam'"):
        ocr([], num_beam=3)
    with pytest.raises(ValueError, match="batch_size is 0"):
        ocr(PATHS, batch_size=0)


def test_collections_of_every_kind_are_read(ocr):
    expected = list(TEXTS.values())[:2]
    for images in (tuple(PATHS[:2]), (path for path in PATHS[:2]), np.array(PATHS[:2]), iter(PATHS[:2])):
        assert [line.text for line in ocr(images)] == expected
    assert [line.text for line in ocr.stream(PATHS[0])] == expected[:1]
    for images in (5, {"a": 1}):
        with pytest.raises(TypeError, match="pass a path"):
            ocr(images)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_damaged_weights_give_an_error_not_an_empty_line(num_beams):
    ocr = TrOCR.from_pretrained()
    params = jax.tree.map(np.array, ocr.params)
    params["decoder"]["layers_0"]["mlp"]["fc1"]["bias"][:] = np.nan
    ocr._network.params = params
    line = ocr(PATHS[0], num_beams=num_beams)
    assert line.finish_reason == "error"
    assert line.error.startswith(f"{PATHS[0]}: no text was left")


def test_a_row_without_a_text_is_its_prompt_alone_whatever_is_beside_it(ocr):
    pixels = ocr.processor([PATHS[0]] * 2).pixel_values
    # No token may come twice: the first text, of one token again and again, ends in nothing.
    constraint = [Pattern(r"0{12}"), None]
    output = ocr.generate(pixels, constraint=constraint, no_repeat_ngram_size=1, max_new_tokens=20)
    assert output.num_tokens[0] == 0 < output.num_tokens[1]
    assert set(output.sequences[0, 1:].tolist()) <= {1, 2}
    assert not output.token_log_probs[0].any()


def test_scores_of_every_step_are_generates(ocr):
    with pytest.raises(TypeError, match=r"\['output_scores'\] are in no Recognition; call generate"):
        ocr(PATHS[0], output_scores=True)


def test_a_stream_keeps_the_settings_it_began_with():
    ocr = TrOCR.from_pretrained()
    found = ocr.stream(PATHS[:2], batch_size=1, read_ahead=0)
    first = next(found)
    ocr.generation_config = ocr.generation_config.replace(max_length=3)
    assert [line.finish_reason for line in (first, *found)] == ["eos", "eos"]
    assert ocr(PATHS[0]).finish_reason == "length"


def test_parts_refuse_what_does_not_fit(ocr):
    pixels = ocr.processor(PATHS[:2]).pixel_values
    for call in (
        lambda: ocr.encode(pixels[0]),
        lambda: ocr.logits(pixels, [[2]]),
        lambda: ocr.logits(pixels[:1], [[2], [3]]),
        lambda: ocr.logits(pixels, [2, 2]),
        lambda: ocr.logits(pixels, np.zeros((2, 0), int)),
        lambda: ocr.generate(pixels, decoder_input_ids=[[2.7], [2.0]]),
    ):
        with pytest.raises(ValueError, match=r"shape|float64"):
            call()


def test_generation_settings_can_be_replaced(ocr):
    settings = ocr.generation_config
    try:
        ocr.generation_config = settings.replace(max_length=4)
        assert len(ocr(PATHS[0]).token_ids) == 3
    finally:
        ocr.generation_config = settings
    pixels = ocr.processor(PATHS[:1]).pixel_values
    found = ocr.generate(pixels, generation_config=settings.replace(max_length=6), return_dict_in_generate=True)
    assert found.sequences.shape == (1, 6)
    # Special tokens that settings do not name are the model's, as in the reference.
    own = trocr_jax.GenerationConfig(num_beams=2, max_length=6)
    expected = ocr.generate(pixels, num_beams=2, max_length=6).sequences
    np.testing.assert_array_equal(ocr.generate(pixels, generation_config=own).sequences, expected)
    assert len(ocr(PATHS[0], generation_config=own).token_ids) == 5
    for call in (lambda: ocr(PATHS[0], generation_config={}), lambda: setattr(ocr, "generation_config", {})):
        with pytest.raises(TypeError, match="given as dict"):
            call()


def test_objects_say_what_they_are(ocr):
    assert repr(ocr) == f"TrOCR(trocr-nano-printed, {ocr._network!r})"
    assert "5 layers of width 192" in repr(ocr._network)
    assert repr(ocr._network).endswith("; float32>")
    assert repr(ocr.processor).startswith("TrOCRProcessor(ImageProcessor(")
    assert repr(ocr.processor.tokenizer) == "<TrOCRTokenizer: RobertaTokenizer of 512 tokens>"


def test_warmup_leaves_nothing_to_compile(ocr):
    options = {"num_beams": 3, "max_new_tokens": 20}
    ocr.warmup(batch_sizes=[5, 6], **options)
    ocr.warmup(batch_sizes=1, **options)
    ocr.warmup(boxes=True, skip_blank=True)
    before = run._cache_size()
    ocr(PATHS[0], boxes=True)
    ocr(PATHS[:5], **options)
    ocr(PATHS[:1], **{**options, "length_penalty": 2.0})
    assert run._cache_size() == before


def test_bfloat16_reads_the_samples():
    ocr = TrOCR.from_pretrained(dtype="bfloat16")
    assert ocr.model.policy.name == "bfloat16"
    right = sum(line.text == text for line, text in zip(ocr(PATHS), TEXTS.values(), strict=True))
    assert right >= 8


def test_public_names_are_there():
    for name in trocr_jax.__all__:
        assert getattr(trocr_jax, name) is not None
    assert set(trocr_jax.__all__) <= set(dir(trocr_jax))
    told = "import trocr_jax; trocr_jax.training.fit; trocr_jax.constraints.Pattern; trocr_jax.evaluation.evaluate"
    subprocess.run([sys.executable, "-c", told], check=True)
    with pytest.raises(AttributeError, match="TrOCL"):
        trocr_jax.TrOCL  # noqa: B018
