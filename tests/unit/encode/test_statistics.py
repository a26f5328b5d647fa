"""The encode job's statistics: every number by hand on few rows, and no recording counted twice."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.encoded_rows import SIZE, TIMES, Row, encoded, rejected, report_of, write
from sheen.encode.statistics import RunTimes


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """Three recordings encoded, four rejected, in no order and in several files."""
    write(
        tmp_path,
        "encoded",
        [encoded(5, 6.0, "twelve chars", speaker="Åsa", snac_codes=[[0, 0], [7, 7, 7, 1]])],
        [
            encoded(0, 2.0, "eight ch", speaker="kal", snac_codes=[[3], [1, 1]]),
            encoded(2, 1.0, "\u00e5\u00e5", snac_codes=[[3], [1, 1]]),
        ],
    )
    return write(
        tmp_path,
        "rejected",
        [rejected(6, "missing"), rejected(3, "too long", 30.0)],
        [rejected(1, "missing"), rejected(4, "unreadable")],
    )


def test_rows_hours_and_speakers_of_a_mixed_folder_are_counted(mixed: str) -> None:
    report = report_of(mixed)
    assert (report["rows_in"], report["rows_out"], report["utterances"]) == (7, 3, 3)
    assert report["hours"] == round(9 / 3600, 6)
    assert report["hours_in"] == round(39 / 3600, 6)
    assert report["hours_rejected"] == round(30 / 3600, 6)
    assert report["speakers"] == {
        "Åsa": {"recordings": 1, "hours": round(6 / 3600, 6)},
        "kal": {"recordings": 1, "hours": round(2 / 3600, 6)},
        "": {"recordings": 1, "hours": round(1 / 3600, 6)},
    }
    assert list(report["speakers"]) == ["Åsa", "kal", ""]
    assert report["speaker_count"] == 3


def test_rejects_stand_in_the_order_of_the_input(mixed: str) -> None:
    rejects = report_of(mixed)["rejects"]
    assert rejects == {
        "missing": {
            "rows": 2,
            "ids": ["clip-1", "clip-6"],
            "examples": ["list.jsonl:2: why 1", "list.jsonl:7: why 6"],
        },
        "too long": {"rows": 1, "ids": ["clip-3"], "examples": ["list.jsonl:4: why 3"]},
        "unreadable": {"rows": 1, "ids": ["clip-4"], "examples": ["list.jsonl:5: why 4"]},
    }
    assert next(iter(rejects)) == "missing"  # the most frequent


def test_durations_and_speech_rates_of_a_mixed_folder_are_summed_up(mixed: str) -> None:
    report = report_of(mixed)
    histogram = report["duration"].pop("histogram")
    # The nearest rank, to a tenth of a second.
    assert report["duration"] == {
        "count": 3,
        "mean": 3.0,
        "min": 1.0,
        "p5": 1.0,
        "p50": 2.0,
        "p95": 6.0,
        "max": 6.0,
    }
    assert histogram["edges"] == [round(0.2 * place, 9) for place in range(32)]
    counted = dict.fromkeys(range(31), 0) | {5: 1, 10: 1, 30: 1}
    assert (histogram["counts"], histogram["above"]) == (list(counted.values()), 0)
    rate = report["speech_rate"]  # characters, not bytes: 8 / 2, 12 / 6, 2 / 1
    assert (rate["count"], rate["min"], rate["p50"], rate["max"]) == (3, 2.0, 2.0, 4.0)
    assert rate["mean"] == pytest.approx(8 / 3, abs=1e-3)


def test_usage_of_codes_is_counted_by_level(mixed: str) -> None:
    first, second = report_of(mixed)["codes"]
    # 0 and 3 twice each: one bit.
    assert first == {"codes": 4, "used": 2, "size": SIZE, "perplexity": 2.0, "entropy_bits": 1.0}
    # 1 five times, 7 three times.
    bits = -(5 / 8 * np.log2(5 / 8) + 3 / 8 * np.log2(3 / 8))
    assert (second["codes"], second["used"]) == (8, 2)
    assert second["entropy_bits"] == pytest.approx(bits, abs=5e-4)
    assert second["perplexity"] == pytest.approx(2**bits, abs=0.05)


def test_times_are_those_of_this_run(mixed: str) -> None:
    report = report_of(mixed)
    assert (report["seconds"], report["audio_seconds_per_second"]) == (8.0, 2.5)
    assert report["this_run"] == {
        "seconds": 8.0,
        "stages": TIMES.stages,
        "idle": 1.6,
        "workers": 2,
        "audio_seconds": 20.0,
        "steady": 3.5,
        "rows": 4,
        "audio_hours_per_hour": 2.5,
        "idle_share": 0.1,
    }


def test_a_run_that_had_nothing_to_do_reports_the_rows_before_it(mixed: str) -> None:
    nothing = RunTimes(1e-9, {"encode": 0.0}, 0.0, 0, 0.0, None, 0)
    report = report_of(mixed, nothing)
    assert (report["rows_in"], report["audio_seconds_per_second"]) == (7, 0.0)
    assert report["this_run"]["idle_share"] is None
    assert report | report_of(mixed) == report_of(mixed)


def test_shifts_are_one_recording_and_several_utterances(tmp_path: Path) -> None:
    def shifted(key: int, seconds: float) -> list[Row]:
        base = encoded(key, seconds, "ab", speaker="kal")
        later = [{"id": f"clip-{key}~{n}", "n_samples": base["n_samples"] + n} for n in (1, 2)]
        return [base, *(base | more for more in later)]

    one, two = shifted(0, 1.0), shifted(1, 3.0)
    folder = write(tmp_path, "encoded", [*one, *two])
    report = report_of(folder)
    assert (report["rows_in"], report["rows_out"], report["utterances"]) == (2, 2, 6)
    assert report["hours"] == round((3 * 4 + 2 * 0.03) / 3600, 6)
    assert report["hours_in"] == round(4 / 3600, 6)
    assert (report["duration"]["count"], report["duration"]["mean"]) == (2, 2.0)
    assert report["speech_rate"]["count"] == 2
    assert report["speakers"] == {"kal": {"recordings": 2, "hours": round(4 / 3600, 6)}}
    assert [level["codes"] for level in report["codes"]] == [6, 12]


def test_recordings_that_came_as_codes_are_as_long_as_their_codes(tmp_path: Path) -> None:
    folder = write(tmp_path, "encoded", [encoded(0, None, "ab", n_samples=50), encoded(1, 1.5)])
    report = report_of(folder)
    assert report["hours_in"] == report["hours"] == round(2 / 3600, 6)
    assert (report["duration"]["min"], report["speech_rate"]["max"]) == (0.5, 4.0)


def test_statistics_of_nothing_encoded_are_zeros_and_nulls(tmp_path: Path) -> None:
    report = report_of(write(tmp_path, "rejected", [rejected(0, "missing"), rejected(1, "silent")]))
    assert (report["rows_in"], report["rows_out"], report["hours_in"]) == (2, 0, 0.0)
    assert report["codes"] == []
    assert report["speakers"] == {}
    for spread in (report["duration"], report["speech_rate"]):
        assert (spread["count"], spread["p50"], spread["max"]) == (0, None, None)
    json.dumps(report, allow_nan=False)


def test_files_without_rows_count_for_nothing(mixed: str, tmp_path: Path) -> None:
    """A block of rejected rows leaves an empty file of encoded ones."""
    before = report_of(mixed)
    write(Path(mixed), "encoded", [], [])
    assert report_of(mixed) == before
    alone = write(tmp_path / "alone", "encoded", [])
    assert report_of(alone)["rows_in"] == 0


def test_statistics_of_one_encoded_row_have_no_rejects(tmp_path: Path) -> None:
    report = report_of(write(tmp_path, "encoded", [encoded(0, 2.0)]))
    assert (report["rows_in"], report["rejects"]) == (1, {})
    assert report["duration"]["min"] == report["duration"]["max"] == 2.0
    assert sum(report["duration"]["histogram"]["counts"]) == 1
    json.dumps(report, allow_nan=False)


def test_a_very_long_recording_leaves_the_histogram_its_shape(tmp_path: Path) -> None:
    lengths = [1 + n % 10 for n in range(2500)]
    rows = [encoded(n, float(seconds)) for n, seconds in enumerate(lengths)]
    report = report_of(write(tmp_path, "encoded", [*rows, encoded(2500, 3600.0)]))
    histogram = report["duration"]["histogram"]
    assert histogram["edges"][-1] == 20.5
    assert (histogram["above"], report["duration"]["max"]) == (1, 3600.0)
    assert [n for n in histogram["counts"] if n] == [250] * 10
    assert sum(level["codes"] for level in report["codes"]) == 3 * 2501


def test_ids_and_examples_are_capped_and_counted(tmp_path: Path) -> None:
    keys = np.random.default_rng(0).permutation(2600).tolist()
    parts = [[rejected(key, "missing") for key in keys[start::2]] for start in (0, 1)]
    entry = report_of(write(tmp_path, "rejected", *parts))["rejects"]["missing"]
    assert entry["rows"] == 2600
    assert entry["ids"] == [f"clip-{key}" for key in range(1000)]
    assert entry["examples"] == [f"list.jsonl:{key + 1}: why {key}" for key in range(5)]


def test_speakers_are_capped_and_counted(tmp_path: Path) -> None:
    rows = [encoded(n, 1.0 + n, speaker=f"voice {n}") for n in range(1200)]
    report = report_of(write(tmp_path, "encoded", rows))
    assert report["speaker_count"] == 1200
    assert list(report["speakers"]) == [f"voice {n}" for n in range(1199, 199, -1)]


# What must not be


def test_a_recording_both_encoded_and_rejected_is_refused(mixed: str) -> None:
    write(Path(mixed), "encoded", [encoded(6, 1.0), encoded(4, 1.0), encoded(9, 1.0)])
    with pytest.raises(RuntimeError, match="key 4 is there twice: was another run"):
        report_of(mixed)


@pytest.mark.parametrize("status", ["encoded", "rejected"])
def test_a_row_that_stands_there_twice_is_refused(mixed: str, status: str) -> None:
    copies = {
        "encoded": [encoded(5, 6.0), encoded(2, 1.0)],
        "rejected": [rejected(6, "missing"), rejected(4, "missing")],
    }
    write(Path(mixed), status, copies[status])
    first = {"encoded": 2, "rejected": 4}[status]
    with pytest.raises(RuntimeError, match=rf"key {first} is there twice: was another run"):
        report_of(mixed)


def test_one_id_of_two_recordings_is_no_double(tmp_path: Path) -> None:
    rows = [encoded(0, 1.0, id="same"), rejected(1, "duplicate id", id="same")]
    write(tmp_path, "encoded", rows[:1])
    assert report_of(write(tmp_path, "rejected", rows[1:]))["rows_in"] == 2


@pytest.mark.parametrize("code", [-1, SIZE])
def test_a_code_of_another_codec_is_refused(mixed: str, code: int) -> None:
    write(Path(mixed), "encoded", [encoded(8, 1.0), encoded(9, 1.0, snac_codes=[[0], [1, code]])])
    with pytest.raises(RuntimeError, match=rf"'clip-9' \(key 9\).* holds {code}, .* 0 to 7"):
        report_of(mixed)
