"""Speed of reading and decoding: measured on a few photos, judged from numbers."""

import pytest

from carvision.diagnosis import speed

GOOD = {"found": 100, "all": True, "bad": 0, "tried": 64}
GOOD |= {"reads": 2000.0, "bytes": 60e3, "decodes": 300.0, "by_clock": 250.0}
FAST = {"rates": [400.0, 100.0], "shared": 1.0}


def test_a_folder_is_measured_and_bad_photos_are_counted(tmp_path, monkeypatch):
    for number in range(6):
        (tmp_path / "a" / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / f"{number % 2}" / f"{number}.JPG").write_bytes(speed.draw_jpeg(64, 48))
    (tmp_path / "a" / "bad.png").write_bytes(b"no photo")
    (tmp_path / "a" / "notes.txt").write_text("")
    answer = speed.measure_data(str(tmp_path))
    assert answer["found"] == answer["tried"] == 7 and answer["bad"] == 1 and answer["all"]
    assert answer["reads"] > 0 and answer["decodes"] > 0 and answer["bytes"] > 1000
    assert speed.describe_data(answer, "ext4").startswith("7 photos of about ")
    findings = speed.judge_data("photos", answer, "ext4")
    assert findings[0].severity == "breaks" and "1 of 7 photos" in findings[0].what
    monkeypatch.setattr(speed, "MAX_FILES", 3)  # a large folder is read in part
    assert len(speed.find_sample_photos(tmp_path)) == 3


@pytest.mark.parametrize("answer, severity, words", [
    ({"found": 0, "all": True, "bad": 0, "tried": 0}, "breaks", "holds no photos"),
    ({**GOOD, "bad": 2}, "breaks", "2 of 64 photos"),
    ({**GOOD, "reads": 20.0}, "slow", "(50 ms) than decoding it (4 ms): photos waits for its network file system"),
    ({**GOOD, "bytes": 4e6}, "slow", "large (4 MB each)"),
])  # fmt: skip
def test_a_folder_that_breaks_or_slows_training(answer, severity, words):
    assert speed.judge_data("photos", GOOD, "nfs4") == []
    [finding] = speed.judge_data("photos", answer, "nfs4")
    assert finding.severity == severity and words in finding.what


def test_decoding_compared_with_the_needs_of_a_gpu():
    for facts, num_workers, num_gpus, words in (
        ({}, 1, 1, "about 400 photos a second"),
        ({"rates": [40.0, 9.0]}, 15, 0, "40 photos a second"),
    ):
        [finding] = speed.judge_decoding({**FAST, **facts}, num_workers, num_gpus)
        assert finding.severity == "slow" and words in finding.what, finding
    assert speed.judge_decoding(FAST, 15, 1) == speed.judge_decoding(FAST, 1, 0) == []
    assert speed.judge_decoding({"error": "x"}, 1, 1) == [] and speed.describe_decoding({}) == "not measured"
