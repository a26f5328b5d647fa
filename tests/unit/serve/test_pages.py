"""The documentation: what it says, and that it needs nothing from elsewhere."""

import json
import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from sheen.serve.app import app
from sheen.serve.schema.requests import SpeechRequest
from sheen.serve.web.pages import SpeechAPI, page_response, reference_response

VOICES = ["heart", "alloy"]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    assert isinstance(app, SpeechAPI)
    return app.document(VOICES, "/some/prefix")


@pytest.fixture(scope="module")
def html(document: dict[str, Any]) -> str:
    return bytes(reference_response(document).body).decode()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_error_is_json_in_openais_shape(document: dict[str, Any]) -> None:
    seen = set()
    others = {("/v1/audio/voices/{name}", "delete", "404"): "NoSuchVoice"}
    for path, method, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                seen.add(status)
                [(kind, content)] = response["content"].items()
                assert kind == "application/json"
                body = others.get((path, method, status), "ErrorBody")
                assert content["schema"]["$ref"] == f"#/components/schemas/{body}"
    assert {"400", "401", "404", "415", "429", "500", "503"} <= seen
    assert "422" not in seen  # the framework's own, which is never sent
    assert "ErrorBody" in document["components"]["schemas"]


def test_the_document_names_the_voices_and_the_servers_address(
    document: dict[str, Any],
) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["SpeechRequest"]["properties"]["voice"]["anyOf"][0]["enum"] == VOICES
    assert schemas["VoiceId"]["properties"]["id"]["enum"] == VOICES
    assert document["servers"] == [{"url": "/some/prefix"}]
    assert isinstance(app, SpeechAPI)
    assert "servers" not in app.document(VOICES, "")


def test_a_person_reads_every_path_field_and_status(html: str, document: dict[str, Any]) -> None:
    text = re.sub(r"<style>.*?</style>", "", html, flags=re.S)
    for path, method, operation in operations(document):
        assert f"{method.upper()} <code>{path}</code>" in text
        for status in operation["responses"]:
            assert f"<td><code>{status}</code></td>" in text
    for name in SpeechRequest.model_fields:
        assert f"<td><code>{name}</code></td>" in text
    for value in (*VOICES, "sse", "opus"):
        assert f"<code>{value}</code>" in text
    assert "number from 0.25 to 4" in text
    assert "curl http://HOST:PORT/some/prefix/v1/audio/speech" in text
    examples = re.findall(r"-d '(.*?)'", unescape(text))
    assert [{"ref_audio", "references"} & json.loads(one).keys() for one in examples] == [set()] * 2


def test_what_clients_wrote_into_the_document_is_text(document: dict[str, Any]) -> None:
    assert isinstance(app, SpeechAPI)
    response = reference_response(app.document(["<script>alert(1)</script>"], "/'><b>"))
    html = bytes(response.body).decode()
    assert "<script>" not in html
    assert "<b>" not in html


def test_bounds_that_are_whole_are_integers(document: dict[str, Any]) -> None:
    """As a float, the bound of a seed less one is the bound again."""
    seed, _ = document["components"]["schemas"]["SpeechRequest"]["properties"]["seed"]["anyOf"]
    assert isinstance(seed["exclusiveMaximum"], int)
    assert seed["exclusiveMaximum"] == 2**63


class Addresses(HTMLParser):
    """What a page would load or lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("href", "src", "action")]


def test_no_address_of_a_page_is_absolute(html: str) -> None:
    # So that it is right behind whatever prefix, and there without Internet.
    parser = Addresses()
    for page in (html, bytes(page_response().body).decode()):
        parser.feed(page)
    assert "openapi.json" in parser.found
    for address in parser.found:
        assert address.startswith("data:") or not re.match(r"/|\w+:", address), address


def test_the_policy_of_the_reference_page_lets_no_script_run(document: dict[str, Any]) -> None:
    policy = reference_response(document).headers["Content-Security-Policy"]
    assert "script-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_models_own_sampling_is_the_documents_default(document: dict[str, Any]) -> None:
    own = {"temperature": 0.6, "repetition_window": 64}
    fields = app.document(VOICES, "", own)["components"]["schemas"]["SpeechRequest"]["properties"]
    before = document["components"]["schemas"]["SpeechRequest"]["properties"]
    assert {name: fields[name]["default"] for name in own} == own
    assert (before["temperature"]["default"], before["repetition_window"]["default"]) == (0.3, 70)
    assert {"type": "null"} in fields["repetition_window"]["anyOf"]
    assert "enum" not in str(app.document([], "")["components"]["schemas"]["VoiceId"])
