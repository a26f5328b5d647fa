"""The fields `ref_audio` and `ref_text` of a request, checked before they become a reference.

Owns the two kinds of `ref_audio` that are not uploads, a data URL and a file on an allowed host,
with their limits: only hosts of `args.ref_audio_hosts`, only http and https, no redirect, a largest
size, a longest time. Owns whether a `ref_text` is the transcript of its recording, by the one that
an ASR model gave, and the error rate from which on it is not. Transcribes nothing itself.
"""

import base64
import binascii
import time
from collections.abc import Collection
from email.message import Message
from http.client import HTTPException
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from sheen.serve.errors import APIError
from sheen.text.segmentation import has_word

FETCH_S = 10.0
"""Total time to download a file from another host."""
PIECE = 1 << 16
WRONG_TEXT = 0.6
"""Character error rate above which a text is another one. Between unrelated English sentences of
similar length it was 0.62 to 1, half of them above 0.85 (240 pairs)."""


class _NoRedirect(HTTPRedirectHandler):
    """Refuses redirects, which could lead to a host that is not allowed."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def bad_reference(message: str, code: str = "invalid_reference") -> APIError:
    return APIError(400, f"ref_audio: {message}", param="ref_audio", code=code)


def recording_too_large(most: int) -> APIError:
    return bad_reference(f"the recording has more than {most} bytes; give 3 to 10 s of speech")


def decode_data_url(url: str, most: int) -> bytes:
    """The bytes of `data:audio/wav;base64,…`. Raises APIError."""
    head, comma, data = url.partition(",")
    if not comma:
        raise bad_reference("a data URL has a comma before its data")
    if not head.lower().endswith(";base64"):
        content = unquote_to_bytes(data)
    elif len(data) > most * 4 // 3 + 4:
        raise recording_too_large(most)
    else:
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise bad_reference(f"the data URL is not base64 ({error})") from error
    if len(content) > most:
        raise recording_too_large(most)
    return content


def fetch(url: str, hosts: Collection[str], most: int) -> bytes:
    """Download a file from an allowed host; blocks. Raises APIError."""
    if not (url.isascii() and url.isprintable()):
        raise bad_reference("this is not a URL: write other characters than ASCII's as %C3%A4")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise bad_reference("this is not a URL") from error
    named = host if port is None else f"{host}:{port}"
    if parts.scheme not in ("http", "https") or named not in hosts:
        allowed = f"; this server takes them from {', '.join(sorted(hosts))}" if hosts else ""
        raise bad_reference(
            f"no URL of {named[:100] or 'this kind'}{allowed}. Send the recording as a data URL, "
            "or upload it",
            "host_not_allowed",
        )
    deadline = time.monotonic() + FETCH_S
    content = bytearray()
    try:
        with build_opener(_NoRedirect).open(url, timeout=FETCH_S) as answer:
            while piece := answer.read1(PIECE):
                content += piece
                if len(content) > most:
                    raise recording_too_large(most)
                if time.monotonic() > deadline:
                    raise TimeoutError("it takes too long")
    except HTTPError as error:
        raise bad_reference(f"{named} answered {error.code}", "fetch_failed") from error
    except (URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise bad_reference(
            f"{named} did not return the file ({reason})", "fetch_failed"
        ) from error
    return bytes(content)


def check_transcript(text: str, transcribed: str, language: str | None) -> None:
    """Raise APIError for a `ref_text` that is not the text `transcribed` from its recording.

    Accepts any where the comparison would mean nothing: for a model of no known language, and for
    numbers outside English, which each side writes in its own way.
    """
    from sheen.scoring.wer import normalize_english, normalize_words, rate_of_each  # imports torch

    if language is None or not has_word(text):
        return
    if language != "en" and any(character.isdigit() for character in text + transcribed):
        return
    read = normalize_english if language == "en" else normalize_words
    # Without spaces: "four two seven" may be transcribed as 427.
    said, found = ("".join(normalize_words(read(words)).split()) for words in (text, transcribed))
    if rate_of_each("character", [said], [found])[0] > WRONG_TEXT:
        raise APIError(
            400,
            f"ref_text: these are not the words of the recording, whose transcript by ASR is "
            f"{transcribed[:200]!r}. Send all of its words and no others, or no ref_text: then the "
            "server takes that transcript",
            param="ref_text",
            code="invalid_reference",
        )
