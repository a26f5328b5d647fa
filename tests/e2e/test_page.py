"""The page at `/`, driven in a headless Chromium: pressed, heard, stopped, refused.

What is behind the page: tests/helpers/page_server.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.browser import CHROMIUM, CTRL, WAIT_S, Browser, Page
from helpers.page_server import HELD_AFTER, PREFIX, RATE, SAMPLES, SECONDS, Speaker, serving
from sheen.audio.encoders import MEDIA_TYPES
from sheen.audio.io import to_pcm16, wav_header
from sheen.serve.access.keys import digest
from sheen.serve.access.middleware import Gate, set_gate
from sheen.serve.web.pages import page_response

needs_chromium = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason=f"needs {CHROMIUM}, to drive the page"
)

TEXT = "four two"
SAMPLE = "Good morning, the coffee is ready."
"""What the page proposes."""
STATE = "document.body.dataset.state"
RECEIVED = "!document.querySelector('#download').disabled"
HEARD = "document.querySelector('#first-audio').textContent.endsWith(' ms')"
LASTS = "parseFloat(document.querySelector('#duration').textContent) > 0"
LOADED = "document.querySelector('#voice').options.length || error.textContent"
INK = """(() => {
  const canvas = document.querySelector('#waveform');
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((value, at) => at % 4 === 3 && value > 0).length;
})()"""
"""Pixels of the waveform that are not empty."""
CONTROLS = "[...document.querySelectorAll('a, button, input, select, summary, textarea')]"


@pytest.fixture(scope="module")
def shared_speaker() -> Speaker:
    return Speaker()


@pytest.fixture
def speaker(shared_speaker: Speaker) -> Speaker:
    shared_speaker.asked.clear()
    shared_speaker.left.clear()
    return shared_speaker


@pytest.fixture(scope="module")
def url(shared_speaker: Speaker) -> Iterator[str]:
    with serving(shared_speaker) as url:
        yield url


@pytest.fixture
def tab(browser: Browser, url: str) -> Iterator[Page]:
    tab = browser.open(url)
    tab.until(LOADED)
    yield tab
    tab.close()


def fill(tab: Page, text: str, audio_format: str = "wav") -> None:
    tab.click("#text")
    tab.type(text)
    tab.evaluate(f"document.querySelector('#format').value = {audio_format!r}")


@needs_chromium
@pytest.mark.parametrize("audio_format", MEDIA_TYPES)
def test_a_click_is_heard_and_shown_and_what_came_is_saved(
    tab: Page, speaker: Speaker, tmp_path: Path, audio_format: str
) -> None:
    blank = tab.evaluate(INK)
    fill(tab, TEXT, audio_format)
    tab.click("#speak")
    tab.until(f"{RECEIVED} && {HEARD} && {LASTS}")

    (asked,) = speaker.asked
    assert (asked.input, asked.model, asked.voice) == (TEXT, "english", "bf_alice")
    assert asked.response_format == audio_format
    file = tab.download("#download", tmp_path)
    assert file.name == f"speech-bf_alice.{audio_format}"
    assert file.read_bytes() == speaker.sent
    # An encoder may add two frames of its own.
    assert SECONDS - 0.01 <= float(tab.text("#duration").split()[0]) <= SECONDS + 0.1
    assert float(tab.text("#realtime-factor")) > 0
    tab.until(f"{INK} > {3 * blank}")  # drawn at the next frame, not at the last byte
    assert not tab.text("#error")
    assert not tab.errors()


@needs_chromium
def test_speak_has_a_sample_to_say_and_a_second_click_edits_it(tab: Page, speaker: Speaker) -> None:
    tab.click("#speak")
    tab.until(HEARD)
    assert [asked.input for asked in speaker.asked] == [SAMPLE]
    assert tab.text("#count") == f"{len(SAMPLE)} / 4096"
    selected = "text.selectionEnd - text.selectionStart"
    for length in (len(SAMPLE), 0):
        tab.click("#text")
        assert tab.evaluate(selected) == length


@needs_chromium
@pytest.mark.parametrize("audio_format", ["wav", "mp3"])
def test_the_page_plays_before_all_has_come_and_escape_stops_it(
    tab: Page, speaker: Speaker, audio_format: str
) -> None:
    fill(tab, "held", audio_format)
    tab.press("Enter", CTRL)
    tab.until(f"{STATE} === 'speaking'")
    tab.click("#speak")  # again: the first one is left
    assert speaker.left.wait(WAIT_S)
    speaker.left.clear()
    tab.until(f"{STATE} === 'speaking'")
    tab.press("Escape")
    assert speaker.left.wait(WAIT_S)
    assert len(speaker.asked) == 2
    assert tab.evaluate(STATE) == "stopped"
    assert tab.evaluate("stop.disabled") is not True
    assert not tab.errors()


@needs_chromium
def test_a_pause_of_the_stream_is_told(tab: Page, speaker: Speaker) -> None:
    fill(tab, "held")
    tab.click("#speak")
    tab.until(f"{STATE} === 'speaking'")
    # All that was sent has been received, and then played.
    tab.until(f"run.player.seconds > {HELD_AFTER / RATE - 0.001}")
    tab.until("run.player.context.currentTime > run.player.until")
    speaker.release()
    tab.until(f"{STATE} === 'done'")
    assert tab.text("#status") == "Done. The sound paused once: audio came too late."


@needs_chromium
def test_a_refusal_is_read_out(tab: Page, speaker: Speaker) -> None:
    fill(tab, "busy")
    tab.click("#speak")
    tab.until(f"{STATE} === 'failed'")
    assert tab.text("[role=alert]") == "all 8 slots are taken. Try again in 3 s."
    assert tab.text("#length") == ""  # not of the speech that was expected
    assert tab.errors() == {"network": 1}
    tab.evaluate("document.querySelector('#text').value = ''")
    fill(tab, TEXT)
    tab.click("#speak")
    tab.until(f"{STATE} === 'done'")
    assert not tab.text("[role=alert]")


@needs_chromium
@pytest.mark.parametrize("audio_format", ["wav", "mp3", "flac"])
def test_a_stream_that_breaks_off_says_so(
    tab: Page, speaker: Speaker, tmp_path: Path, audio_format: str
) -> None:
    fill(tab, "broken", audio_format)
    tab.click("#speak")
    tab.until("document.querySelector('#received').textContent.includes('kB')")
    speaker.release()
    tab.until(f"{STATE} === 'failed' && document.querySelector('#stop').disabled")
    assert re.match(r"The stream broke off after [\d.]+ kB", tab.text("[role=alert]"))
    came = tab.download("#download", tmp_path).read_bytes()
    assert came
    assert speaker.sent.startswith(came)


HOLD_DECODED = """(() => {
  const decode = AudioContext.prototype.decodeAudioData;
  const held = new Promise((resolve) => (window.letGo = resolve));
  AudioContext.prototype.decodeAudioData = async function (bytes) {
    const buffer = await decode.call(this, bytes);
    document.body.dataset.decoded = "held";
    await held;
    return buffer;
  };
})()"""
"""What is decoded comes after `letGo()`, as if there was much of it."""


@needs_chromium
@pytest.mark.parametrize("audio_format", ["mp3", "flac"])
def test_what_is_decoded_after_a_stop_is_neither_heard_nor_shown(
    tab: Page, speaker: Speaker, audio_format: str
) -> None:
    tab.evaluate(HOLD_DECODED)
    fill(tab, TEXT, audio_format)
    tab.click("#speak")
    tab.until("document.body.dataset.decoded")
    tab.evaluate("window.left = run.player; null")
    tab.press("Escape")
    assert tab.evaluate(STATE) == "stopped"
    tab.evaluate("letGo(); new Promise((resolve) => setTimeout(resolve))")
    assert tab.evaluate("left.nodes?.size ?? 0") == 0
    assert tab.text("#duration") == "–"
    assert not tab.errors()


@needs_chromium
def test_no_player_is_kept_for_good(tab: Page, speaker: Speaker) -> None:
    """The address of a media source holds it, its player and all that it has buffered."""
    tab.evaluate("""
      window.addresses = new Set();
      const [make, revoke] = [URL.createObjectURL, URL.revokeObjectURL];
      URL.createObjectURL = (one) => { const url = make(one); addresses.add(url); return url; };
      URL.revokeObjectURL = (url) => { addresses.delete(url); revoke(url); };
    """)
    fill(tab, TEXT, "mp3")
    tab.click("#speak")
    tab.until(HEARD)
    assert tab.evaluate("addresses.size") == 0


@pytest.fixture
def locked() -> Iterator[None]:
    set_gate(Gate(lambda: frozenset({digest("sesame")})))
    yield
    set_gate(Gate(None))


@needs_chromium
def test_a_key_is_asked_for_and_kept_in_the_tab_alone(
    locked: None, browser: Browser, url: str, speaker: Speaker
) -> None:
    tab = browser.open(url)
    tab.until("error.textContent")
    assert "API key" in tab.text("#error")
    tab.click("#key")
    tab.type("sesame")
    tab.press("Enter")
    tab.until("document.querySelector('#voice').options.length")
    assert not tab.text("#error")
    with browser.expecting("Page.loadEventFired"):
        tab.evaluate("location.reload()")
    tab.until("document.querySelector('#voice').options.length")
    fill(tab, TEXT)
    tab.click("#speak")
    tab.until(HEARD)
    assert tab.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    tab.close()


OPENED = """new Promise((resolve) => {
  const socket = new WebSocket(`ws://${location.host}PREFIX/v1/audio/speech/stream`, OFFERED);
  socket.onopen = () => resolve(socket.protocol);
  socket.onerror = () => resolve("refused");
})"""


@needs_chromium
def test_a_page_opens_a_websocket_with_its_key_as_a_subprotocol(
    locked: None, browser: Browser, url: str
) -> None:
    tab = browser.open(url)
    for key, protocol in (("sesame", "realtime"), ("poppy", "refused")):
        offered = f"['realtime', 'openai-insecure-api-key.{key}']"
        script = OPENED.replace("PREFIX", PREFIX).replace("OFFERED", offered)
        assert tab.evaluate(script) == protocol
    tab.close()


@needs_chromium
def test_the_page_is_used_with_a_keyboard_alone(tab: Page, speaker: Speaker) -> None:
    reached = []
    for keys in ([], ["ArrowDown"], ["ArrowDown"], ["ArrowRight"], ["Enter"]):
        tab.press("Tab")
        reached.append(tab.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
        if reached[-1] == "text":
            tab.type(TEXT)
        for key in keys:
            tab.press(key)
    for text in ("7", "0.5"):
        tab.press("Tab")
        tab.type(text)
    tab.press("Tab")
    tab.press("Tab")
    assert reached == ["text", "voice", "format", "speed", "SUMMARY"]
    assert tab.evaluate("document.activeElement.id") == "speak"
    tab.press("Enter")
    tab.until(HEARD)
    (asked,) = speaker.asked
    assert (asked.voice, asked.response_format, asked.speed) == ("heart", "mp3", 1.05)
    assert (asked.seed, asked.temperature) == (7, 0.5)


@needs_chromium
def test_every_control_has_a_name(tab: Page) -> None:
    tab.evaluate("more.open = true; askKey(true)")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "combobox", "link", "slider", "spinbutton", "textbox", "image"}
    found = [node for node in nodes if node.get("role", {}).get("value") in roles]
    assert len(found) >= 12
    assert [node for node in found if not node["name"]["value"]] == []


@needs_chromium
def test_the_page_fits_a_narrow_phone(tab: Page) -> None:
    tab.viewport(320, 640, phone=True)
    tab.evaluate("more.open = true; askKey(true)")
    tab.evaluate(f"voice.add(new Option({'long' * 30!r})); error.textContent = {'x' * 200!r}")
    assert tab.evaluate("document.documentElement.scrollWidth") == 320
    low = (
        f"{CONTROLS}.filter((one) => one.getBoundingClientRect().height < 44).map((one) => one.id)"
    )
    assert tab.evaluate(low) == []


@needs_chromium
def test_the_limit_counts_characters_as_the_server_does(tab: Page, speaker: Speaker) -> None:
    tab.click("#text")
    tab.type("\N{SMILING FACE WITH OPEN MOUTH}" * 4096)
    assert tab.evaluate("text.validity.valid")
    tab.type("x")
    assert tab.text("#count") == "4097 / 4096"
    tab.press("Enter", CTRL)
    assert tab.evaluate("[text.validity.valid, document.body.dataset.state]") == [False, "idle"]
    assert not speaker.asked


@needs_chromium
@pytest.mark.parametrize("n_samples", [None, 50])
def test_the_page_reads_a_wav_however_its_bytes_are_cut(tab: Page, n_samples: int | None) -> None:
    pcm = to_pcm16(SAMPLES[8000:8050])
    file = wav_header(16_000, n_samples) + pcm.tobytes()
    if n_samples is not None:
        # As other servers write it: a chunk before the data, and one behind.
        file = file[:36] + b"LIST\x03\0\0\0abc\0" + file[36:] + b"LIST\x02\0\0\0ab"
    script = f"""((length) => {{
      const file = new Uint8Array({list(file)});
      const reader = new PcmReader(true);
      const found = [];
      for (let at = 0; at < file.length; at += length)
        found.push(...reader.push(file.subarray(at, at + length)));
      return [reader.rate, found.map((sample) => Math.round(sample * 32767))];
    }})"""
    for length in (1, 7, 40, 1000):
        assert tab.evaluate(f"{script}({length})") == [16_000, pcm.tolist()]


@needs_chromium
def test_the_pages_policy_lets_no_other_script_run_and_no_other_host_be_asked(tab: Page) -> None:
    tab.evaluate(
        "const intruder = document.createElement('script'); intruder.text = 'window.ran = true';"
        "document.head.append(intruder)"
    )
    assert tab.evaluate("window.ran === undefined")
    assert tab.errors() == {"security": 1}
    assert tab.evaluate("fetch('http://127.0.0.1:9/').catch((error) => error.name)") == "TypeError"
    assert tab.errors()["security"] >= 2


@needs_chromium
def test_the_documentation_is_shown_and_its_link_is_behind_the_prefix(
    browser: Browser, url: str
) -> None:
    tab = browser.open(f"{url}/docs")
    tab.until("document.readyState === 'complete'")
    assert tab.evaluate("document.querySelector('a').href") == f"{url}/openapi.json"
    assert "/v1/audio/speech" in tab.text("main")
    style = tab.evaluate("getComputedStyle(document.querySelector('section')).borderRadius")
    assert style != "0px"  # the policy lets its style through
    assert not tab.errors()
    tab.close()


def test_the_page_needs_nothing_from_elsewhere() -> None:
    response = page_response()
    html = bytes(response.body).decode()
    assert not re.search(r"<[^>]*\s(style|on\w+)=", html)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-security-policy"].count("sha256-") == 2
