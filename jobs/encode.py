"""Recordings -> a Parquet dataset of SNAC codes. See `--help`."""

import sys

from sheen.config import load_config
from sheen.encode.config import EncodeConfig
from sheen.encode.job import run
from sheen.encode.output import TRANSIENT
from sheen.runs.exits import run_job

PROG = "jobs/encode.py"


def main(argv: list[str]) -> int:
    return run_job(PROG, lambda: encode(argv))


def encode(argv: list[str]) -> int:
    report = run(load_config(EncodeConfig, argv, PROG))
    print(
        f"{report['rows_out']} of {report['rows_in']} recordings encoded, "
        f"{report['utterances']} utterances, "
        f"{report['hours'] * 60:.1f} minutes, {report['audio_seconds_per_second']} x realtime"
    )
    for reason, entry in report["rejects"].items():
        print(f"  rejected, {reason}: {entry['rows']} ({entry['examples'][0]})")
    if again := sum(report["rejects"].get(reason, {"rows": 0})["rows"] for reason in TRANSIENT):
        print(f"  {again} of those may be there later: the same command tries them again")
    if not report["rows_out"]:
        raise ValueError("nothing could be encoded; see report.json in the output")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
