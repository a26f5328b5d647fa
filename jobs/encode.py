"""Recordings -> a Parquet dataset of SNAC codes. See `--help`."""

import logging
import sys

from sheen.config import ConfigError, fail, load_config
from sheen.encode.config import EncodeConfig
from sheen.encode.job import run

PROG = "jobs/encode.py"


def main(argv: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        report = run(load_config(EncodeConfig, argv, PROG))
    except (ConfigError, ValueError) as error:
        return fail(PROG, error)
    print(
        f"{report['rows_out']} of {report['rows_in']} recordings encoded, "
        f"{report['utterances']} utterances, "
        f"{report['hours'] * 60:.1f} minutes, {report['audio_seconds_per_second']} x realtime"
    )
    for reason, entry in report["rejects"].items():
        print(f"  rejected, {reason}: {entry['rows']} ({entry['examples'][0]})")
    if not report["rows_out"]:
        return fail(PROG, ValueError("nothing could be encoded; see report.json in the output"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
