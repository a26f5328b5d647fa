"""The HTTP contract without Ray: what a request may hold, and what every refusal looks like."""

import gzip
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from starlette.testclient import TestClient

from helpers.example import CHECKPOINT, ROOT
from sheen.lm.checkpoint import ENGLISH_VOICE
from sheen.serve.app import build
from sheen.serve.capabilities import check_language
from sheen.serve.config import ServeArgs, checkpoint_location, with_absolute_paths
from sheen.serve.errors import APIError, install_error_handlers
from sheen.serve.schema.messages import Start
from sheen.serve.schema.requests import (
    MAX_INPUT_CHARACTERS,
    BatchRequest,
    SpeechRequest,
    SpeechSettings,
)

GOOD = {"model": "sheen", "input": "four two", "voice": "heart"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """An application that has the real request and the real handlers, and no model."""
    app = FastAPI()
    install_error_handlers(app)

    @app.post("/v1/audio/speech")
    async def speech(body: SpeechRequest) -> dict[str, Any]:
        return {**body.model_dump(), "voice_name": body.voice_name}

    @app.get("/refuse/{status}")
    async def refuse(status: int, retry_after_s: int | None = None) -> None:
        raise APIError(status, "no", retry_after_s=retry_after_s)

    @app.get("/break")
    async def break_down() -> None:
        raise RuntimeError("what the log must hold and no client may read")

    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def refused(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    """The error that a request gets, which must be a 400 in OpenAI's shape."""
    response = client.post("/v1/audio/speech", json=body)
    assert response.status_code == 400
    return error_of(response.json())


def error_of(body: dict[str, Any]) -> dict[str, Any]:
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    return error


def accepted(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/audio/speech", json=body)
    assert response.status_code == 200, response.text
    read: dict[str, Any] = response.json()
    return read


# Requests


def test_a_missing_field_is_named(client: TestClient) -> None:
    error = refused(client, {"model": "sheen", "voice": "heart"})
    assert error["param"] == "input"
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", ""),
        ("input", None),
        ("input", ["four"]),
        ("input", "x" * (MAX_INPUT_CHARACTERS + 1)),
        ("input", "x" * 5000),
        ("voice", 7),
        ("voice", "x" * 1001),
        ("voice", {"id": "x" * 1001}),
        ("voice", ["heart"]),
        ("voice", {}),
        ("voice", {"name": "heart"}),
        ("voice", {"id": 7}),
        ("ref_audio", ""),
        ("ref_audio", ["a", "b"]),
        ("references", "a"),
        ("references", []),
        ("references", [{"audio_path": "a"}, {"audio_path": "b"}]),
        ("references", [{"audio": "a", "text": "four"}]),
        ("references", [{"audio_path": ""}]),
        ("references", [{"audio_path": "a", "text": 4}]),
        ("instructions", "x" * 4097),
        ("instructions", 7),
        ("lexicon", ["SQL"]),
        ("lexicon", {"SQL": ""}),
        ("lexicon", {"SQL": 1}),
        ("lexicon", {"x" * 101: "x"}),
        ("lexicon", {str(number): "x" for number in range(201)}),
        ("response_format", "ogg"),
        ("response_format", "MP3"),
        ("stream_format", "events"),
        ("stream", "perhaps"),
        ("speed", 0.24),
        ("speed", 4.01),
        ("speed", "fast"),
        ("language", "x" * 36),
        ("language", 7),
        ("temperature", -0.1),
        ("temperature", 5.1),
        ("temperature", "warm"),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("seed", -2),
        ("seed", 2**63),
        ("seed", 0.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", 6),
    ],
)
def test_a_bad_value_is_refused_by_its_fields_name(
    client: TestClient, field: str, value: object
) -> None:
    error = refused(client, {**GOOD, field: value})
    assert error["param"] == field
    assert error["message"].startswith(f"{field}: ")
    assert error["type"] == "invalid_request_error"


def test_the_limit_is_in_the_message_and_is_openais(client: TestClient) -> None:
    assert MAX_INPUT_CHARACTERS == 4096
    assert "4096" in refused(client, {**GOOD, "input": "x" * 4097})["message"]
    assert len(accepted(client, {**GOOD, "input": "x" * 4096})["input"]) == 4096
    # Characters, not bytes.
    assert len(accepted(client, {**GOOD, "input": "é" * 4096})["input"]) == 4096


def test_an_unknown_format_names_the_known_ones(client: TestClient) -> None:
    message = refused(client, {**GOOD, "response_format": "ogg"})["message"]
    for name in ("mp3", "opus", "aac", "flac", "wav", "pcm"):
        assert f"'{name}'" in message


def test_a_plain_request_gets_a_streamed_mp3_at_speed_1(client: TestClient) -> None:
    read = accepted(client, GOOD)
    assert (read["response_format"], read["stream_format"]) == ("mp3", "audio")
    assert (read["speed"], read["stream"], read["seed"]) == (1.0, True, None)


def test_the_edges_of_every_range_are_accepted(client: TestClient) -> None:
    low = {"speed": 0.25, "temperature": 0, "top_p": 0.01, "top_k": 0, "seed": -1}
    high = {"speed": 4.0, "temperature": 5.0, "top_p": 1, "top_k": 4097, "seed": 2**63 - 1}
    for values in (low, high):
        read = accepted(client, {**GOOD, **values})
        assert {name: read[name] for name in values} == values


def test_voice_is_a_name_or_an_object_with_an_id(client: TestClient) -> None:
    assert accepted(client, {**GOOD, "voice": "heart"})["voice_name"] == "heart"
    assert accepted(client, {**GOOD, "voice": {"id": "heart"}})["voice_name"] == "heart"


def test_a_recording_is_ref_audio_or_the_only_one_of_references(client: TestClient) -> None:
    flat = accepted(client, {**GOOD, "ref_audio": "a", "ref_text": "four"})
    nested = {"audio_path": "a", "text": "four"}
    assert accepted(client, {**GOOD, "references": [nested]}) == flat
    outside = {"references": [{"audio_path": "a"}], "ref_text": "four"}
    assert accepted(client, {**GOOD, **outside}) == flat
    assert refused(client, {**GOOD, "ref_audio": "b", "references": [nested]})["param"] == (
        "references"
    )
    assert "[0].audio_path: " in refused(client, {**GOOD, "references": [{}]})["message"]


def test_an_item_with_a_voice_of_its_own_has_nothing_of_the_batchs_recording() -> None:
    def recording(shared: dict[str, Any], item: dict[str, Any]) -> tuple[str | None, str | None]:
        batch = BatchRequest.model_validate({**shared, "items": [{"input": "four", **item}]})
        [request] = map(batch.request, batch.items)
        return request.ref_audio, request.ref_text

    shared = {"ref_audio": "a", "ref_text": "four", "max_new_tokens": 9}
    assert recording(shared, {}) == ("a", "four")
    assert recording(shared, {"ref_text": "two"}) == ("a", "two")
    assert recording(shared, {"speaker": "heart"}) == (None, None)
    assert recording(shared, {"references": [{"audio_path": "b"}]}) == ("b", None)
    assert recording({"ref_text": "four"}, {"ref_audio": "b"}) == ("b", "four")


OPTIONAL = [
    (model, name)
    for model in (SpeechRequest, BatchRequest, Start)
    for name, field in model.model_fields.items()
    if not field.is_required()
]


@pytest.mark.parametrize(("model", "name"), OPTIONAL)
def test_null_is_the_default_of_every_field_that_has_one(
    model: type[SpeechSettings], name: str
) -> None:
    fields: dict[str, Any] = {**GOOD, "type": "start", "items": [{"input": "nine"}]}
    fields.pop(name, None)
    assert model.model_validate({**fields, name: None}) == model.model_validate(fields)
    assert model.model_validate_json(
        json.dumps({**fields, name: None})
    ) == model.model_validate_json(json.dumps(fields))


VALUES = (
    *(None, True, False, -1, 0, 1, 7.0, 0.5, "", "x", "true", "1", "0.5", "mp3", "sse", "start"),
    *([], ["heart"], [{}], {}, {"id": "heart"}, {"id": 7}, {"name": "heart"}, 2**63, "x" * 5000),
)


@pytest.mark.parametrize("model", [SpeechRequest, BatchRequest, Start])
def test_what_the_schema_allows_is_taken_and_nothing_else(model: type[SpeechSettings]) -> None:
    schema = Draft202012Validator(model.model_json_schema())
    for name in model.model_fields:
        for value in VALUES:
            body = {**GOOD, "type": "start", "items": [{}], name: value}
            try:
                model.model_validate(body)
                taken = True
            except ValidationError:
                taken = False
            assert taken == schema.is_valid(body), (name, value)


@pytest.mark.parametrize(
    "asked", [None, "", " ", "auto", "Auto", "en", "EN", " en", "en-US", "en_GB", "eng", "English"]
)
def test_a_models_language_may_be_asked_for_by_any_of_its_names(asked: str | None) -> None:
    check_language(asked, "en")


@pytest.mark.parametrize("asked", ["de", "German", "deu", "fr-CA", "english-ish?", "Klingon"])
def test_another_language_is_refused_and_both_are_named(asked: str) -> None:
    if asked.startswith("english"):
        check_language(asked, "en")
        return
    with pytest.raises(APIError, match=rf"'{asked}'.*speaks en") as refusal:
        check_language(asked, "en")
    assert (refusal.value.param, refusal.value.code) == ("language", "language_not_supported")
    check_language(asked, None)  # a model that was taught texts as they are


def test_unknown_fields_are_ignored(client: TestClient) -> None:
    extra = {"instructions": None, "non_streaming_mode": False, "task_type": "tts", "user": "me"}
    assert accepted(client, {**GOOD, **extra}) == accepted(client, GOOD)


@pytest.mark.parametrize("field", ["speed", "temperature", "top_p"])
def test_a_value_that_is_no_number_is_refused(client: TestClient, field: str) -> None:
    # NaN is no JSON, but Python's parser reads it, and it passes any `value < limit`.
    content = json.dumps({**GOOD, field: float("nan")}).encode()
    response = client.post("/v1/audio/speech", content=content, headers=JSON)
    assert response.status_code == 400
    assert error_of(response.json())["param"] == field


def test_half_a_surrogate_pair_is_no_text(client: TestClient) -> None:
    # JSON can write it, UTF-8 and so the tokenizer cannot.
    content = json.dumps({**GOOD, "input": "half: \ud800"}).encode()
    response = client.post("/v1/audio/speech", content=content, headers=JSON)
    assert response.status_code == 400
    assert error_of(response.json())["param"] == "input"


@pytest.mark.parametrize(
    "content",
    [b'{"model": "sheen", ', b"", b"four two", b'"four two"', b"[]", b"null", b'{"model": "\xff"}'],
)
def test_a_body_that_is_no_object_blames_no_field(client: TestClient, content: bytes) -> None:
    response = client.post("/v1/audio/speech", content=content, headers=JSON)
    assert response.status_code == 400
    error = error_of(response.json())
    assert error["param"] is None
    assert error["type"] == "invalid_request_error"


BODY = json.dumps(GOOD).encode()
FORM = "application/x-www-form-urlencoded"
GZIPPED = gzip.compress(BODY, mtime=0)  # the same test ids in every process


@pytest.mark.parametrize(
    ("headers", "content", "status", "told"),
    [
        ({}, BODY, 415, "with Content-Type: application/json; this one has no Content-Type"),
        ({"Content-Type": FORM}, BODY, 415, f"application/json; this one is declared as {FORM}"),
        ({"Content-Type": "text/plain"}, BODY, 415, "declared as text/plain"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, BODY, 415, "multipart/form-data"),
        (JSON | {"Content-Encoding": "gzip"}, GZIPPED, 415, "this one has gzip"),
        (JSON, GZIPPED, 400, "byte 0x8b at 1 is not UTF-8"),
        (JSON, b'{"input": "gr\xfc\xdf"}', 400, "byte 0xfc at 13 is not UTF-8"),
        (JSON, b'{"seed": 1' + b"0" * 5000 + b"}", 400, "too many digits"),
        (JSON, b"[" * 50_000, 400, "nested too deeply"),
        (JSON, b'{"input": four}', 400, "not JSON: Expecting value, at character 10"),
    ],
)
def test_what_keeps_a_body_from_being_read_is_named(
    client: TestClient, headers: dict[str, str], content: bytes, status: int, told: str
) -> None:
    response = client.post("/v1/audio/speech", content=content, headers=headers)
    assert response.status_code == status
    error = error_of(response.json())
    assert told in error["message"]
    assert error["code"] == ("unsupported_media_type" if status == 415 else "json_invalid")


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "APPLICATION/problem+json"]
)
def test_json_may_be_declared_in_every_way(client: TestClient, kind: str) -> None:
    response = client.post("/v1/audio/speech", content=BODY, headers={"Content-Type": kind})
    assert response.status_code == 200


# Every other error


def test_an_unknown_path_is_a_404_in_openais_shape(client: TestClient) -> None:
    response = client.get("/v1/audio/nothing")
    assert response.status_code == 404
    assert error_of(response.json())["type"] == "invalid_request_error"


def test_a_method_that_is_not_allowed_is_a_405_in_openais_shape(client: TestClient) -> None:
    response = client.get("/v1/audio/speech")
    assert response.status_code == 405
    assert error_of(response.json())["type"] == "invalid_request_error"


def test_a_405_names_the_allowed_method(client: TestClient) -> None:
    # RFC 9110, 15.5.6: the server must send Allow.
    assert client.get("/v1/audio/speech").headers.get("Allow") == "POST"


def test_an_unforeseen_error_has_openais_shape_too(client: TestClient) -> None:
    response = client.get("/break")
    assert response.status_code == 500
    assert response.headers["Content-Type"] == "application/json"
    error = error_of(response.json())
    assert error["type"] == "server_error"
    assert "no client may read" not in error["message"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_an_error_of_the_application_has_the_type_of_its_status(
    client: TestClient, status: int, kind: str
) -> None:
    response = client.get(f"/refuse/{status}")
    assert response.status_code == status
    error = error_of(response.json())
    assert (error["message"], error["type"]) == ("no", kind)
    assert (error["param"], error["code"]) == (None, None)


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_that_says_come_back_later_says_when_in_whole_seconds(
    client: TestClient, status: int
) -> None:
    response = client.get(f"/refuse/{status}", params={"retry_after_s": 1})
    assert response.status_code == status
    # int() refuses "1.0" and a date, the other forms that a client might not read.
    assert int(response.headers["Retry-After"]) >= 1


# The application's arguments


def test_arguments_refuse_an_unknown_key() -> None:
    with pytest.raises(ValidationError, match="slosts"):
        ServeArgs.model_validate({"slosts": 4})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_seconds", 0),
        ("slots", 0),
        ("max_queue", 0),
        ("look_ahead", -1),
        ("torch_threads", 0),
        ("first_audio_timeout_s", 0),
        ("auth", "open"),
        ("cors_origins", ["https://app.example/page"]),
        ("cors_origins", ["app.example"]),
        ("cors_origins", ["https://*.example"]),
        ("max_body_bytes", 0),
    ],
)
def test_arguments_refuse_what_could_not_serve(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        ServeArgs.model_validate({key: value})


def test_ray_sees_that_build_takes_typed_arguments() -> None:
    # Ray asks inspect.isclass: a postponed annotation is a string, and build would get a plain
    # dict without any check.
    [parameter] = inspect.signature(build).parameters.values()
    assert parameter.annotation is ServeArgs


def test_every_line_of_the_configuration_for_a_gpu_is_explained() -> None:
    raw = yaml.safe_load((ROOT / "serve_config.gpu.yaml").read_text("utf-8"))
    [application] = raw["applications"]
    [deployment] = application["deployments"]
    set_there = [*application["args"], "num_replicas", *deployment["ray_actor_options"]]
    text = (ROOT / "docs" / "serving.md").read_text("utf-8")
    section = text.split("## On a GPU", 1)[1].split("\n## ", 1)[0]
    missing = [name for name in set_there if f"`{name}" not in section]
    assert not missing


def test_a_missing_checkpoint_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=ENGLISH_VOICE) as raised:
        checkpoint_location(str(tmp_path))
    assert "sheen train" in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_build_refuses_a_missing_checkpoint_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint in"):
        build(ServeArgs(model=str(tmp_path / "nothing"), auth="none"))


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"form": "orfeus"}, "args.form 'orfeus': expected one of orpheus, maya1"),
        ({"form": "maya1"}, "args.form maya1: by .*, the checkpoint was trained with 'speaker-te"),
        ({"info": "x.json"}, "args.info: .*/x.json"),
        ({"info": "voice.json"}, "args.info: .*/voice.json: not JSON"),
        ({"codec": "./codec"}, "args.codec: codec '/.*/codec': no such folder"),
        ({"codec": "someone/codec"}, "args.codec: .*'someone/codec'.*the hub did not give it"),
    ],
)
def test_build_refuses_a_wrong_description_of_the_model(
    wrong: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "voice.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=expected):
        build(ServeArgs(auth="none", **wrong))


def test_replicas_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKPOINT)
    args = ServeArgs(codec="codec", info="sheen.json")
    found = with_absolute_paths(args, str(tmp_path))
    assert (found.codec, found.info) == (str(CHECKPOINT / "codec"), str(CHECKPOINT / "sheen.json"))


def test_build_refuses_to_serve_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHEEN_API_KEYS", raising=False)
    with pytest.raises(ValueError, match="SHEEN_API_KEYS holds no key"):
        build(ServeArgs())


def test_a_relative_checkpoint_is_one_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sheen.json").write_text("{}")
    # A replica's working directory is nobody's choice: it must not matter.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint") as raised:
        checkpoint_location(".")
    assert str(ROOT) in str(raised.value)
    location = checkpoint_location(os.path.relpath(tmp_path, ROOT))
    assert Path(location).is_absolute()
    assert Path(location).samefile(tmp_path)


def test_an_absolute_path_and_a_uri_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "sheen.json").write_text("{}")
    assert checkpoint_location(str(tmp_path)) == str(tmp_path)
    uri = "s3://bucket/voice/checkpoint"
    assert checkpoint_location(uri) == uri


def test_building_the_application_loads_no_torch() -> None:
    """Serve builds it in a process of its own before it starts a replica, which waits for that."""
    code = "import sys, sheen.serve.app; print({'torch', 'transformers'} & {*sys.modules})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "set()"
