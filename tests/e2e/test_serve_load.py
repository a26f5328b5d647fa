"""The served application under more than it can do, as its clients see it, and its end.

One application that runs one request, lets one wait, wants a key, and stands below a route prefix.
"""

import http.client
import json
import select
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from ray import serve
from ray.serve._private.constants import SERVE_PROXY_NAME

from helpers.doors import (
    DOORS,
    FIELDS,
    PLACES,
    START,
    TIMED,
    WAIT_S,
    Break,
    begin,
    closed,
    line,
    the_oldest_of_too_many,
)
from helpers.example import VOICE
from helpers.served import (
    BEARER,
    FRAME,
    HTTP_TIMEOUT_S,
    KEY,
    MAX_SECONDS,
    connect,
    create,
    get,
    opened,
    serving,
    spoken_here,
    state,
    wait_until_free,
    wait_until_inside,
)
from helpers.speaking import assert_close
from sheen.audio.encoders import MEDIA_TYPES
from sheen.engine.types import Sampling
from sheen.engine.voice import Voice
from sheen.serve.app import build
from sheen.serve.config import ClientLimits, ServeArgs
from sheen.serve.drain import drain

# The first test here may have to make the checkpoint, and then starts Serve.
pytestmark = pytest.mark.timeout(600)

LONG = {
    "input": " ".join(["four two"] * 24),
    "response_format": "pcm",
    "temperature": 0.0,
    "seed": 1,
}
"""Greedy: after a few training steps `<audio_end>` is never the likeliest, so only the budgets of
its chunks end this, a hundred frames later."""


LIMITS = {
    "max_body_bytes": 4096,
    "body_timeout_s": 5.0,
    "max_messages_per_s": 20,
}


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A link, as where secrets are mounted: it is a change that it points to another file."""
    link = tmp_path_factory.mktemp("keys") / "keys"
    write_keys(link, KEY)
    return link


def write_keys(link: Path, key: str) -> None:
    old = link.resolve() if link.is_symlink() else None
    new = Path(tempfile.mkdtemp(dir=link.parent)) / "keys"
    new.write_text(f"{key}\n")
    (new.parent / "link").symlink_to(new)
    (new.parent / "link").replace(link)
    if old is not None:
        old.unlink()


@pytest.fixture(scope="module")
def small(serve_port: int, checkpoint: Path, keys_file: Path) -> Iterator[str]:
    args = ServeArgs(
        model=str(checkpoint),
        keys_file=str(keys_file),
        max_seconds=MAX_SECONDS,
        slots=1,
        max_queue=1,
        **LIMITS,
    )
    with serving(serve_port, args, "small", "/small") as url:
        yield url


def test_a_key_is_needed_where_keys_are_set(small: str) -> None:
    assert get(f"{small}/health") == (200, "OK")
    assert get(f"{small}/v1/models")[0] == 401
    assert get(f"{small}/v1/models", Authorization="Bearer another")[0] == 401
    assert get(f"{small}/v1/models", **BEARER)[0] == 200


@pytest.mark.parametrize(
    ("audio_format", "stream_format"),
    [
        *product(MEDIA_TYPES, ["audio"]),
        ("mp3", "sse"),
        *(pytest.param(n, "sse", marks=pytest.mark.soak) for n in MEDIA_TYPES if n != "mp3"),
    ],
)
def test_a_client_that_leaves_frees_its_slot(
    small: str, audio_format: str, stream_format: str
) -> None:
    # Of one slot: the next request gets it, although the one before had minutes to go.
    settings = LONG | {"response_format": audio_format, "stream_format": stream_format}
    with opened(small, **settings) as response:
        assert response.status == 200
        assert response.read1()
    with opened(small, input="one", seed=1) as response:
        assert response.read()
    wait_until_free("small")


def test_clients_that_leave_half_way_leave_the_server_serving(small: str, voice: Voice) -> None:
    # More than this application, and Serve before it, would hold if they kept their places.
    for _ in range(6):
        with opened(small, **LONG) as response:
            assert response.status == 200
            assert len(response.read(1000)) == 1000
    with connect(small) as client:
        pcm, _ = create(client, "one", response_format="pcm", seed=2)
    expected = spoken_here(voice, "one", VOICE, Sampling(seed=2))
    assert_close(np.frombuffer(pcm, "<i2"), expected)


def test_beyond_what_may_wait_clients_are_told_to_come_back(small: str, voice: Voice) -> None:
    def ask(seed: int) -> tuple[int, str | None, bytes]:
        with opened(small, input="one", response_format="pcm", seed=seed) as response:
            return response.status, response.getheader("Retry-After"), response.read()

    with opened(small, **LONG) as running:
        # Its samples have begun to come, so it runs, and nothing waits. It has most frames to go,
        # and the next four are refused or queued on arrival: one place, whatever their order.
        first = running.read(1)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, range(4)))
        answered = [seed for seed, (status, _, _) in enumerate(answers) if status == 200]
        assert sorted(status for status, _, _ in answers) == [200, 429, 429, 429]
        pcm = first + running.read()
    expected = spoken_here(voice, str(LONG["input"]), VOICE, Sampling(0.0, seed=1))
    assert len(expected) > 60 * FRAME
    assert_close(np.frombuffer(pcm, "<i2"), expected)
    expected = spoken_here(voice, "one", VOICE, Sampling(seed=answered[0]))
    assert_close(np.frombuffer(answers[answered[0]][2], "<i2"), expected)
    for status, retry_after, body in answers:
        if status == 429:
            assert retry_after
            assert int(retry_after) >= 1
            error = json.loads(body)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    "breaks",
    # Bodies wait in Ray's proxy, which has room for more of them: the oldest there is late.
    [row for row in DOORS if row not in (*TIMED, the_oldest_of_too_many)],
)
def test_every_door_has_its_limits(small: str, breaks: Break) -> None:
    assert breaks(small, ClientLimits(**LIMITS)) == DOORS[breaks]


def test_rays_proxy_keeps_what_is_too_large_or_incomplete(small: str) -> None:
    with line(small, START) as opened:
        # No byte of the message follows: without the middleware its end would be waited for.
        opened.socket.sendall(struct.pack("!BBQ4s", 0x81, 0xFF, 1 << 20, bytes(4)))
        assert closed(opened) == (1009, "message_too_large")
    [proxy] = [
        ray.get_actor(named["name"], named["namespace"])
        for named in ray.util.list_named_actors(all_namespaces=True)
        if SERVE_PROXY_NAME in named["name"]
    ]

    def held() -> int:
        """Bytes of incomplete bodies."""
        # A lambda, because the proxy cannot import this module.
        ask = proxy.__ray_call__.remote(
            lambda actor: actor._start_http_server_task.result()[1].config.loaded_app.held
        )
        return int(ray.get(ask))

    with begin(small, 500, b"{"):
        wait_for(lambda: held() == 1)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_whoever_is_too_slow_is_told_so(small: str) -> None:
    with ThreadPoolExecutor(len(TIMED)) as pool:
        outcomes = pool.map(lambda breaks: breaks(small, ClientLimits(**LIMITS)), TIMED)
        assert dict(zip(TIMED, outcomes, strict=True)) == {row: DOORS[row] for row in TIMED}


def test_with_every_other_place_taken_health_and_readiness_are_told(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that can be held is held: requests, WebSockets, and more unfinished bodies than there are
    places of any kind. Neither question waits for one of them to go."""
    longer = LONG | {"input": " ".join(["four two"] * 400)}  # nobody waits for its end
    body = json.dumps(FIELDS | longer).encode()

    def told_while_all_is_held() -> bool:
        with ExitStack() as stack:
            for _ in range(PLACES):
                stack.enter_context(line(small, START))
            assert stack.enter_context(opened(small, **longer)).status == 200
            # These get no answer while that one speaks, and nobody waits for theirs.
            for _ in range(PLACES - 1):
                stack.enter_context(begin(small, len(body), body))
            wait_until_inside("small", PLACES)
            begun = [stack.enter_context(begin(small, 500, b"{")) for _ in range(100)]
            asked = time.monotonic()
            statuses = [get(f"{small}/{path}")[0] for path in ("health", "ready")]
            took_s = time.monotonic() - asked
            held = not select.select(begun[-1:], [], [], 0)[0]
            held = held and state("small")["inside"] == PLACES
        wait_until_free("small")
        assert statuses == [200, 503]
        with capsys.disabled():
            print(f"\ntold after {took_s:.2f} s, all {'still' if held else 'no longer'} held")
        return held

    # Where somebody else has the whole machine, the bodies may time out before anything is asked.
    deadline = time.monotonic() + WAIT_S
    while not told_while_all_is_held():
        assert time.monotonic() < deadline


def test_keys_follow_their_file(
    small: str, keys_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(key: str) -> int:
        return get(f"{small}/v1/models", Authorization=f"Bearer {key}")[0]

    another = "another-key-of-the-tests"
    with line(small, START) as withdrawn:
        assert (status(KEY), status(another)) == (200, 401)
        changed = time.monotonic()
        write_keys(keys_file, another)
        try:
            while (status(KEY), status(another)) != (401, 200):
                assert time.monotonic() < changed + HTTP_TIMEOUT_S
                time.sleep(0.1)
            known_s = time.monotonic() - changed
            assert closed(withdrawn) == (1008, "invalid_api_key")
            closed_s = time.monotonic() - changed
        finally:
            write_keys(keys_file, KEY)
    while status(KEY) != 200:
        assert time.monotonic() < changed + 2 * HTTP_TIMEOUT_S
        time.sleep(0.1)
    with capsys.disabled():
        print(f"\nknown after {known_s:.1f} s, and to an open WebSocket after {closed_s:.1f} s")


def test_a_page_of_another_host_brings_its_key_as_a_subprotocol(small: str) -> None:
    headers = {"Origin": "https://elsewhere.example"}
    offered = ["realtime", f"openai-insecure-api-key.{KEY}"]
    with line(small, START, additional_headers=headers, subprotocols=offered) as opened:
        assert opened.subprotocol == "realtime"
        for message in ({"type": "text", "text": "one."}, {"type": "end"}):
            opened.send(json.dumps(message))
        assert isinstance(opened.recv(HTTP_TIMEOUT_S), bytes)
    wait_until_free("small")


@pytest.mark.soak
def test_a_killed_replica_is_replaced_and_its_listeners_hear_of_it(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(small, **LONG) as running:
        assert running.read1()
        [replica] = [
            process
            for process in psutil.process_iter(["cmdline"])
            if (process.info["cmdline"] or [""])[0].startswith("ray::ServeReplica:small")
        ]
        replica.kill()
        killed = time.monotonic()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            running.read()
        told_s = time.monotonic() - killed
    while True:
        with opened(small, input="one", seed=1) as response:
            if response.status == 200 and response.read():
                break
        assert time.monotonic() < killed + HTTP_TIMEOUT_S
    with capsys.disabled():
        restored_s = time.monotonic() - killed
        print(f"\nerror after {told_s:.2f} s, speech again after {restored_s:.1f} s")


def test_an_application_of_another_kind_cannot_be_drained(small: str) -> None:
    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Other:
        pass

    serve.run(Other.bind(), name="other", route_prefix="/other")
    try:
        with pytest.raises(ValueError, match="'other' cannot be drained"):
            drain("other", HTTP_TIMEOUT_S, 0.0)
    finally:
        serve.delete("other")


# The last tests: they replace what the others ask, and stop it


def test_a_change_of_checkpoint_fails_no_request(
    small: str, checkpoint: Path, tmp_path: Path
) -> None:
    """One replica, the hardest case: what comes while there is none waits for the next."""
    other = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    args = ServeArgs(
        model=str(other),
        model_id="other",
        auth="none",
        max_seconds=MAX_SECONDS,
        slots=1,
        max_queue=1,
    )
    assert '"other"' not in get(f"{small}/v1/models", **BEARER)[1]
    changed = threading.Event()

    def ask_again_and_again() -> list[tuple[int, int]]:
        answers = []
        while not changed.is_set():
            with opened(small, input="one", response_format="pcm", seed=1) as response:
                answers.append((response.status, len(response.read())))
        return answers

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_again_and_again)
        try:
            serve.run(build(args), name="small", route_prefix="/small")
        finally:
            changed.set()
        answers = asking.result()
    assert len(set(answers)) == 1
    assert answers[0][0] == 200
    assert '"other"' in get(f"{small}/v1/models")[1]


def test_while_it_drains_what_runs_ends_and_nothing_begins(small: str, voice: Voice) -> None:
    with opened(small, **LONG) as running:
        first = running.read1()
        handle = serve.get_app_handle("small")
        [(inside, _)] = handle.broadcast("drain").results(timeout_s=HTTP_TIMEOUT_S)
        assert inside == 1
        with opened(small, input="one") as refused:
            assert refused.status == 503
            assert int(refused.getheader("Retry-After") or 0) >= 1
            assert json.loads(refused.read())["error"]["code"] == "draining"
        assert get(f"{small}/ready")[0] == 503
        assert get(f"{small}/health")[0] == 200
        body = first + running.read()
    assert_close(
        np.frombuffer(body, "<i2"),
        spoken_here(voice, str(LONG["input"]), VOICE, Sampling(0.0, seed=1)),
    )
    assert drain("small", HTTP_TIMEOUT_S, 0.0) == 0
