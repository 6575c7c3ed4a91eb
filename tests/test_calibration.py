"""Calibrated confidences: what is fitted, how it is stored, and that nothing but confidences changes."""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile

import numpy as np
import pytest

from tests.conftest import SAMPLES
from tests.test_recognizer import PATHS, TEXTS
from trocr_jax import Calibration, Recognition, TrOCR, VisionEncoderDecoderModel, cli
from trocr_jax.calibration import CALIBRATION_NAME, Scaling, calibration_error, mean_nll
from trocr_jax.checkpoints.conversion import convert
from trocr_jax.checkpoints.hub import stale_files
from trocr_jax.recognizer import EMBEDDED
from trocr_jax.results import find_words, judge

LINES = Scaling(2.0, -0.5, 200, 90, (0.5, 0.25), (0.125, 0.0625))
WORDS = Scaling(0.5, 0.25, 900, 700, (0.5, 0.25), (0.125, 0.0625))
CALIBRATION = Calibration(LINES, WORDS)


@pytest.fixture(scope="module")
def ocr():
    return TrOCR.from_pretrained()


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def sample(count, temperature, bias, seed):
    """Confidences of a model that is wrong about itself by a known scaling, and what came true."""
    draw = np.random.default_rng(seed)
    log_odds = draw.normal(1, 3, count)
    is_right = draw.random(count) < sigmoid(log_odds / temperature + bias)
    return list(zip(np.log(sigmoid(log_odds)), is_right, strict=True))


@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.0), (2.5, -0.4), (0.6, 0.8)])
def test_a_known_scaling_is_found(temperature, bias):
    found = Scaling.fit(sample(20_000, temperature, bias, seed=1))
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.bias == pytest.approx(bias, abs=0.06)
    assert found.count == 20_000


def test_an_overconfident_model_is_mended_on_lines_that_were_not_fitted_on():
    found = Scaling.fit(sample(2000, 3.0, -0.5, seed=2))
    held_out = sample(2000, 3.0, -0.5, seed=3)
    log_probs, is_right = np.array([row[0] for row in held_out]), np.array([row[1] for row in held_out])
    before, after = np.exp(log_probs), np.array([found(log_prob) for log_prob in log_probs])
    assert mean_nll(after, is_right) < 0.8 * mean_nll(before, is_right)
    assert calibration_error(after, is_right) < 0.3 * calibration_error(before, is_right)
    assert found.nll[1] < found.nll[0]
    assert found.ece[1] < found.ece[0]


def test_order_and_range_are_kept_from_impossible_to_certain():
    for scaling in (LINES, WORDS):
        confidences = [scaling(x) for x in (-math.inf, -2000.0, -700.0, -30.0, -1.0, -1e-3, -1e-6, 0.0)]
        assert confidences == sorted(confidences)
        assert 0 <= confidences[0] < confidences[3] < confidences[4] < confidences[5] < confidences[6]
        assert confidences[-1] <= 1
    assert LINES(math.log(0.8)) == pytest.approx(sigmoid(math.log(4) / 2 - 0.5))


def test_samples_that_settle_nothing_move_little():
    # All right, so that without a prior no number would be large enough; and one line alone.
    found = Scaling.fit([(-0.1, True)] * 30)
    assert 0 < found.temperature < 2
    assert 0.9 < found(-0.1) < 1
    one = Scaling.fit([(-0.1, False)])
    assert one(-0.1) < math.exp(-0.1)
    with pytest.raises(ValueError, match="no words to calibrate on"):
        Calibration.fit([(-0.1, True)], [])
    with pytest.raises(ValueError, match="order of the images"):
        Scaling.fit([(-0.001, False), (-9.0, True)] * 50)


def test_calibration_error_by_hand():
    confidences = np.array([0.9, 0.1, 0.8, 0.3])
    is_right = np.array([True, False, False, True])
    # By size: 0.1 and 0.3 of which one was right, 0.8 and 0.9 of which one was.
    assert calibration_error(confidences, is_right, bins=2) == pytest.approx((abs(0.2 - 0.5) + abs(0.85 - 0.5)) / 2)
    assert mean_nll(confidences, is_right) == pytest.approx(-np.log([0.9, 0.9, 0.2, 0.3]).mean())
    assert math.isfinite(mean_nll(np.array([1.0, 0.0]), np.array([False, True])))


def test_lines_and_words_are_judged():
    def line(text):
        spans = [(i, i + 1) for i in range(len(text))]
        return Recognition(
            text, (5,) * len(text), (-0.5,) * len(text), words=find_words(text, spans, [-0.5] * len(text))
        )

    lines, words = judge([line("a bb c"), line("a  c"), line("")], ["a c", "a c ", "x"])
    assert lines == [(-3.0, False), (-2.0, True), (0.0, False)]
    assert [right for _, right in words] == [True, False, True, True, True]
    np.testing.assert_allclose([log_prob for log_prob, _ in words], [-0.5, -1.0, -0.5, -0.5, -0.5])


def test_only_confidences_change(ocr):
    plain = ocr(PATHS[:3], num_beams=2, num_return_sequences=2)
    calibrated = TrOCR(ocr._network, ocr.processor, CALIBRATION)(PATHS[:3], num_beams=2, num_return_sequences=2)
    for before, after in zip(plain, calibrated, strict=True):
        for a, b in ((before, after), (before.alternatives[0], after.alternatives[0])):
            assert not a.is_calibrated
            assert b.is_calibrated
            assert b.confidence == pytest.approx(LINES(a.log_prob))
            assert b.log_prob == a.log_prob
            for word, mapped in zip(a.words, b.words, strict=True):
                assert mapped.confidence == pytest.approx(WORDS(math.log(word.confidence)))
                assert dataclasses.replace(mapped, confidence=word.confidence) == word
            kept = dataclasses.replace(b, words=a.words, calibrated_confidence=None, alternatives=a.alternatives)
            assert kept == a


def test_rejection_goes_by_the_calibrated_confidence(ocr):
    plain = ocr(PATHS[:6])[2]
    assert plain.confidence > 0.5
    doubtful = Calibration(dataclasses.replace(LINES, temperature=1.0, bias=-9.0), WORDS)
    rejected = TrOCR(ocr._network, ocr.processor, doubtful)(PATHS[:6], reject_below=0.5)[2]
    assert rejected.finish_reason == "rejected"
    assert rejected.confidence < 0.5
    assert rejected.alternatives[0].text == plain.text


def test_json_says_whether_a_confidence_is_calibrated(ocr):
    plain = ocr(PATHS[:6])[0]
    after = plain.calibrated(CALIBRATION)
    for line in (plain, after):
        content = json.loads(json.dumps(line.to_dict()))
        assert content["is_calibrated"] == line.is_calibrated
        assert content["confidence"] == line.confidence
        assert Recognition.from_dict(content) == line
    content = plain.to_dict()
    del content["is_calibrated"]  # as it was written before there were calibrations
    assert Recognition.from_dict(content) == plain


def test_a_model_calibrates_itself_by_its_own_confidences(ocr):
    texts = [*list(TEXTS.values())[:5], "wrong"]
    fresh = TrOCR(ocr._network, ocr.processor)
    found = fresh.calibrate(PATHS[:6], texts)
    assert (found.lines.count, found.lines.right) == (6, 5)
    assert fresh.calibration is found
    # Once more gives the same: it is fitted on the model's confidences, not on those that it has calibrated.
    assert fresh.calibrate(PATHS[:6], texts) == found
    with pytest.raises(ValueError, match="2 images have 1 texts"):
        fresh.calibrate(PATHS[:2], ["one"])
    with pytest.raises(ValueError, match="5 is no text"):
        fresh.calibrate(PATHS[:1], [5])
    with pytest.raises(TypeError, match="reject_below"):
        fresh.calibrate(PATHS[:1], ["a"], reject_below=0.5)
    with pytest.raises(ValueError, match="does not exist"):
        fresh.calibrate(["absent.png"], ["a"])
    assert fresh.calibration == found


def test_a_calibration_goes_where_its_weights_go(ocr, tmp_path):
    calibrated = TrOCR(ocr._network, ocr.processor, CALIBRATION)
    calibrated.save_pretrained(tmp_path / "saved")
    assert TrOCR.from_pretrained(tmp_path / "saved").calibration == CALIBRATION
    convert(tmp_path / "saved", tmp_path / "torch", to="torch")
    assert Calibration.from_pretrained(tmp_path / "torch") == CALIBRATION
    # Other weights, or the same without it, do not keep the calibration that lies there.
    network = VisionEncoderDecoderModel.from_pretrained(tmp_path / "saved")
    network.save_pretrained(tmp_path / "torch")
    assert Calibration.from_pretrained(tmp_path / "torch") is None
    convert(EMBEDDED, tmp_path / "saved")
    assert Calibration.from_pretrained(tmp_path / "saved") is None
    assert stale_files({CALIBRATION_NAME}, {"tokenizer.json"}) == set()


def broken():
    """Files that are no calibration, and what the error says."""
    good = {"version": 1, **dataclasses.asdict(CALIBRATION)}

    def lines(**changes):
        return json.dumps({**good, "lines": {**good["lines"], **changes}})

    yield "", "not valid JSON"
    yield "[]", "an object was expected"
    yield "1" * 5000, "not valid JSON"
    yield json.dumps({**good, "version": 2}), "version is 2"
    yield json.dumps({"version": 1, "lines": good["lines"]}), "an object of"
    yield json.dumps({**good, "lines": 7}), "an object of"
    yield lines(also=1), "an object of"
    yield lines(temperature=0), "above 0"
    yield lines(temperature=-1.0), "above 0"
    yield lines(temperature=math.nan), "temperature is nan"
    yield lines(temperature=math.inf), "temperature is inf"
    yield lines(temperature=True), "temperature is True"
    yield lines(temperature=10**400), "a number was expected"
    yield lines(bias="0"), "bias is '0'"
    yield lines(count=1.5), "whole numbers"
    yield lines(count=-1), "at least 0"
    yield lines(ece=[1]), "before and after"
    yield lines(nll=[0.5, None]), "nll is None"


@pytest.mark.parametrize(("content", "message"), list(broken()))
def test_a_file_that_is_no_calibration_is_refused_by_name(tmp_path, content, message):
    (tmp_path / CALIBRATION_NAME).write_text(content)
    with pytest.raises(ValueError, match=CALIBRATION_NAME) as caught:
        Calibration.from_pretrained(tmp_path)
    assert message in str(caught.value)


def test_a_bad_file_beside_weights_stops_loading_and_converting(ocr, tmp_path):
    ocr.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / CALIBRATION_NAME).write_text("{}")
    for use in (TrOCR.from_pretrained, lambda folder: convert(folder, tmp_path / "new")):
        with pytest.raises(ValueError, match="is no calibration"):
            use(tmp_path / "saved")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def calibrate(ocr, capsys, monkeypatch, tmp_path):
    """Runs `trocr-jax calibrate` in this process on a model that has a calibration -> (exit status, stdout, stderr)."""
    monkeypatch.setattr("trocr_jax.compilation_cache.enable_compilation_cache", lambda: None)
    TrOCR(ocr._network, ocr.processor, CALIBRATION).save_pretrained(tmp_path / "model")

    def run(*arguments, model=tmp_path / "model"):
        return cli.main(["calibrate", *map(str, (model, *arguments))]), *capsys.readouterr()

    return run


def test_the_command_writes_beside_the_weights(calibrate, ocr, tmp_path):
    names = list(TEXTS)[:6]
    lines = tmp_path / "lines.tsv"
    lines.write_text("".join(f"{SAMPLES / name}\t{TEXTS[name]}\n" for name in names))
    status, out, err = calibrate(lines)
    assert (status, err) == (0, "trocr-jax: 6 lines are few to calibrate on; pass some hundred\n")
    assert "lines: 6 of 6 right; temperature" in out
    # What the function fits: on the model's own confidences, whatever calibration was there.
    fitted = TrOCR(ocr._network, ocr.processor).calibrate([SAMPLES / name for name in names], list(TEXTS.values())[:6])
    assert TrOCR.from_pretrained(tmp_path / "model").calibration == fitted
    for model, file, message in (
        ("org/model", lines, "no folder"),
        (tmp_path / "model", tmp_path / "absent.tsv", "absent.tsv"),
        (tmp_path / "model", SAMPLES / "README.md", "README.md is no dataset of a known format"),
    ):
        status, _, err = calibrate(file, model=model)
        assert status == 2
        assert message in err


def test_the_command_takes_datasets_and_names_an_image_that_cannot_be_read(calibrate, ocr, tmp_path, monkeypatch):
    names = list(TEXTS)[:3]
    with zipfile.ZipFile(tmp_path / "lines.zip", "w") as archive:
        archive.writestr(
            "val/list.csv", "".join(["file_name,text\n", *(f'{name},"{TEXTS[name]}"\n' for name in names)])
        )
        for name in names:
            archive.write(SAMPLES / name, f"val/{name}")
        archive.writestr("broken/labels.tsv", f"../val/{names[0]}\tone\n{names[1]}\ttwo\n")
        archive.writestr(f"broken/{names[1]}", "no image")
    monkeypatch.chdir(tmp_path)
    status, out, _ = calibrate("lines.zip/val/list.csv", "--data-format", "csv", "--num-beams", 2)
    assert (status, out.split(";")[0]) == (0, "lines: 3 of 3 right")
    images, texts = [SAMPLES / name for name in names], [TEXTS[name] for name in names]
    fitted, greedily = (TrOCR(ocr._network, ocr.processor).calibrate(images, texts, num_beams=n) for n in (2, 1))
    assert TrOCR.from_pretrained(tmp_path / "model").calibration == fitted != greedily
    before = (tmp_path / "model" / CALIBRATION_NAME).read_bytes()
    status, out, err = calibrate("lines.zip/broken")
    assert (status, out) == (2, "")
    assert err == f"trocr-jax: lines.zip/broken/{names[1]} is not an image that Pillow can read\n"
    assert (tmp_path / "model" / CALIBRATION_NAME).read_bytes() == before
