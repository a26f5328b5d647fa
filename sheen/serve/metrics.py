"""What is counted: Prometheus metrics through Ray's exporter, and one log line per request.

Owns the names. Ray's exporter puts `ray_` before each, `_total` behind a counter's, and tags all
with application, deployment and replica; `deploy/grafana-dashboard.json` shows them. Neither
metrics nor log lines hold a text or a key.
"""

import logging
from collections.abc import Mapping

from ray.serve.metrics import Counter, Gauge, Histogram

from sheen.serve.accounting import Entry

logger = logging.getLogger(__name__)

SECONDS = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0]
FACTORS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0]

SPEECH = "/v1/audio/speech"
"""Requests for paths below this get a log line of their own; Serve's access log has the others."""

NAMES = {
    "sheen_requests": "counter",
    "sheen_refusals": "counter",
    "sheen_tokens": "counter",
    "sheen_audio_seconds": "counter",
    "sheen_underruns": "counter",
    "sheen_length_stops": "counter",
    "sheen_cancels": "counter",
    "sheen_texts_as_written": "counter",
    "sheen_running_streams": "gauge",
    "sheen_waiting_requests": "gauge",
    "sheen_slots": "gauge",
    "sheen_batch_fill": "gauge",
    "sheen_queue_seconds": "histogram",
    "sheen_first_audio_seconds": "histogram",
    "sheen_realtime_factor": "histogram",
}


class Metrics:
    """A replica's metrics. Make it in the replica: Ray tags them with where they are made."""

    def __init__(self) -> None:
        self._requests = Counter(
            "sheen_requests",
            "Answers, by HTTP status and by how the speech ended (stop, length, cancelled, error; "
            "none where nothing was spoken).",
            tag_keys=("status", "ending"),  # type: ignore[arg-type]  # Ray means any number
        )
        self._refusals = Counter(
            "sheen_refusals",
            "Refusals and failures, by the code of their error, on every way in.",
            tag_keys=("reason",),
        )
        self._tokens = Counter("sheen_tokens", "Audio tokens generated.")
        self._audio = Counter("sheen_audio_seconds", "Seconds of audio sent.")
        self._underruns = Counter(
            "sheen_underruns", "Chunks that came after a listener who plays at once had run out."
        )
        self._length_stops = Counter(
            "sheen_length_stops", "Speech that its budget ended, and not the model."
        )
        self._cancels = Counter("sheen_cancels", "Speech that its client left or cancelled.")
        self._as_written = Counter(
            "sheen_texts_as_written",
            "Parts of texts that were spoken as written, because normalising them took too long.",
        )
        self._running = Gauge("sheen_running_streams", "Pieces of text being spoken now.")
        self._waiting = Gauge("sheen_waiting_requests", "Pieces of text that wait for a slot.")
        self._slots = Gauge("sheen_slots", "Pieces of text that can be spoken at a time.")
        self._fill = Gauge("sheen_batch_fill", "Mean share of slots in a step since the start.")
        self._queue = Histogram("sheen_queue_seconds", "Seconds until a slot was free.", SECONDS)
        self._first = Histogram(
            "sheen_first_audio_seconds", "Seconds from the request to its first audio.", SECONDS
        )
        self._factor = Histogram(
            "sheen_realtime_factor",
            "Seconds from a request's first to its last audio, per second of audio after the first "
            "chunk; below 1 is faster than it is played.",
            FACTORS,
        )
        self._before = {"tokens": 0.0, "texts_as_written": 0.0}

    def engine(self, values: Mapping[str, float]) -> None:
        """Take over the numbers of what is behind the routes (`Backend.metrics`)."""
        self._running.set(values["running"])
        self._waiting.set(values["waiting"])
        self._slots.set(values["slots"])
        self._fill.set(values["batch_fill"])
        for name, counter in (("tokens", self._tokens), ("texts_as_written", self._as_written)):
            if more := values[name] - self._before[name]:
                counter.inc(more)
                self._before[name] = values[name]

    def ended(self, entry: Entry) -> None:
        """A request was answered, or its client left: count it, and log speech."""
        playback = entry.playback
        self._requests.inc(1.0, {"status": str(entry.status), "ending": entry.ending or "none"})
        if entry.code is not None:
            self._refusals.inc(1.0, {"reason": entry.code})
        if entry.queue_s is not None:
            self._queue.observe(entry.queue_s)
        if playback.seconds:
            self._audio.inc(playback.seconds)
        if playback.first_audio_s is not None:
            self._first.observe(playback.first_audio_s)
        if entry.realtime_factor is not None:
            self._factor.observe(entry.realtime_factor)
        if playback.underruns:
            self._underruns.inc(playback.underruns)
        if entry.ending == "length":
            self._length_stops.inc()
        if entry.ending == "cancelled":
            self._cancels.inc()
        if entry.path.startswith(SPEECH):
            fields = entry.fields()
            logger.info("speech %s", fields["ending"] or fields["status"], extra={"speech": fields})
