// The page: what is asked for, what is shown of it, and when. It speaks through POST
// v1/audio/speech and holds no audio but the last.
//
// `data-state` of the body: idle, waiting (asked, nothing audible yet), speaking, done, stopped or
// failed.

const MAX_CHARACTERS = 4096;
const KEY = "sheen-api-key"; // in the session's storage
const CHARACTERS_PER_S = 14; // of spoken English, about: the waveform's first scale

const $ = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const waveform = new Waveform($.waveform);
let run = null; // what is asked for or sounds
let last = null; // {blob, name}: what can be downloaded
let context = null; // of Web Audio: one for all

// The page may be at /prefix, without a slash at its end.
const address = (path) => new URL(path, location.origin + location.pathname.replace(/\/?$/, "/"));

function setState(state, text) {
  document.body.dataset.state = state;
  $.status.textContent = text;
  if (run === null && document.activeElement === $.stop) $.speak.focus(); // else it were lost
  $.stop.disabled = run === null;
}

// What the session's storage holds; browsers that block it throw, and then a key lasts as long as
// the page.
function stored(action) {
  try {
    return action(sessionStorage);
  } catch (error) {
    if (error.name !== "SecurityError") throw error;
    return null;
  }
}

// Asking the server

function request(path, options = {}) {
  const headers = { ...options.headers };
  if ($.key.value) headers.Authorization = `Bearer ${$.key.value}`;
  return fetch(address(path), { ...options, headers });
}

// What a refusal says, as an Error.
async function refusal(response) {
  const text = await response.text();
  let message = `The server answered ${response.status} ${response.statusText}`.trim();
  if (response.headers.get("content-type")?.includes("json")) message = JSON.parse(text).error?.message ?? message;
  const wait = response.headers.get("retry-after");
  if (wait) message += `. Try again ${/^\d+$/.test(wait) ? `in ${wait} s` : `after ${wait}`}.`;
  if (response.status === 401) askKey(true);
  return new Error(message);
}

function askKey(shown) {
  $["key-field"].hidden = !shown;
  $["ask-key"].setAttribute("aria-expanded", shown);
}

async function load() {
  try {
    const responses = await Promise.all(["v1/audio/voices", "v1/audio/models"].map((path) => request(path)));
    const refused = responses.find((response) => !response.ok);
    if (refused) throw await refusal(refused);
    const [{ voices }, { models }] = await Promise.all(responses.map((response) => response.json()));
    const before = $.voice.value;
    $.voice.replaceChildren(...voices.map(({ id, name }) => new Option(name, id, false, id === before)));
    $.model.textContent = `Model: ${models[0].id}.`;
    $.model.dataset.id = models[0].id;
    $.error.textContent = "";
  } catch (error) {
    $.error.textContent = `The voices could not be read: ${error.message}`;
  }
}

function body() {
  const fields = {
    model: $.model.dataset.id ?? "sheen",
    input: $.text.value,
    voice: $.voice.value,
    response_format: $.format.value,
    speed: Number($.speed.value),
  };
  for (const name of ["seed", "temperature"]) if ($[name].value !== "") fields[name] = Number($[name].value);
  return JSON.stringify(fields);
}

// Speaking

// Web Audio, which takes a while to start. Browsers start it only as something is pressed: the first
// thing that is, so that Speak need not wait for it.
function wake() {
  context ??= new AudioContext({ sampleRate: RATE });
  return context.resume();
}

async function speak() {
  stop();
  const asked = performance.now();
  const format = $.format.value;
  const resumed = wake();
  const name = `speech-${$.voice.value}.${format}`;
  const mine = { abort: new AbortController(), format, name, chunks: [], bytes: 0 };
  mine.player = makePlayer(format, context, {
    samples: (samples, rate) => {
      waveform.add(samples, rate);
      $.duration.textContent = seconds(waveform.seconds, 2);
    },
    heard: (time) => {
      if (run !== mine) return;
      $["first-audio"].textContent = `${Math.round(time - asked)} ms`;
      if (document.body.dataset.state === "waiting") setState("speaking", "Speaking…");
    },
  });
  run = mine;
  last = null;
  $.download.disabled = true;
  $.error.textContent = "";
  for (const name of ["first-audio", "duration", "realtime-factor", "received"]) $[name].textContent = "–";
  waveform.reset([...$.text.value].length / CHARACTERS_PER_S / Number($.speed.value));
  setState("waiting", playsAsItComes(format) ? "Waiting for the first audio…" : "Waiting for all of the audio…");
  show(mine);
  $.result.scrollIntoView({ block: "nearest" }); // on a phone it is below what can be seen
  try {
    await receive(mine, resumed);
    if (run !== mine) return;
    if (!mine.bytes) throw new Error("The answer held no audio.");
    const took = (performance.now() - asked) / 1000;
    keep(mine);
    await mine.player.finish(last.blob);
    if (run !== mine) return;
    waveform.complete();
    if (waveform.seconds) $["realtime-factor"].textContent = (took / waveform.seconds).toFixed(2);
    await mine.player.ended;
    if (run !== mine) return;
    run = null;
    const { gaps } = mine.player;
    const paused = gaps ? ` The sound paused ${gaps === 1 ? "once" : `${gaps} times`}: audio came too late.` : "";
    setState("done", `Done.${paused}`);
    draw(waveform.seconds);
  } catch (error) {
    if (run === mine) await fail(mine, error);
  }
}

async function receive(mine, resumed) {
  const response = await request("v1/audio/speech", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: body(),
    signal: mine.abort.signal,
  }).catch((error) => {
    throw new Error(`The server cannot be reached (${error.message}).`);
  });
  if (!response.ok) throw await refusal(response);
  if (isPcm(mine.format)) mine.player.sampleRate = Number(response.headers.get("x-sample-rate")) || RATE;
  await resumed;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw new Error(`The stream broke off after ${size(mine.bytes)} (${error.message}).`);
    });
    if (done || run !== mine) return;
    mine.chunks.push(value);
    mine.bytes += value.length;
    $.received.textContent = size(mine.bytes);
    mine.player.push(value);
  }
}

// What was received can be downloaded, whatever happens further.
function keep(mine) {
  last = { blob: new Blob(mine.chunks, { type: MEDIA_TYPES[mine.format] }), name: mine.name };
  $.download.disabled = false;
}

// What came before the failure is still heard, to its end.
async function fail(mine, error) {
  mine.abort.abort();
  $.error.textContent = error.message;
  setState("failed", "That did not work.");
  if (mine.bytes) {
    keep(mine);
    // It may be too little to be played; the failure that counts is on the page already.
    await mine.player.finish(last.blob).then(() => mine.player.ended).catch(() => {});
  }
  if (run !== mine) return;
  mine.player.stop();
  waveform.complete();
  run = null;
  setState("failed", $.status.textContent);
  draw(waveform.heard);
  if (!$["key-field"].hidden && !$.key.value) $.key.focus();
}

function stop() {
  if (run === null) return;
  const mine = run;
  run = null;
  mine.abort.abort();
  mine.player.stop();
  if (mine.bytes) keep(mine);
  waveform.complete();
  setState("stopped", "Stopped.");
  draw(waveform.heard);
}

// Showing

const seconds = (value, digits) => `${value.toFixed(digits)} s`;
const size = (bytes) => (bytes < 1000 ? `${bytes} bytes` : `${(bytes / 1000).toFixed(1)} kB`);

function draw(heard) {
  waveform.draw(heard);
  $.position.textContent = seconds(heard, 1);
  $.length.textContent = waveform.scale ? seconds(waveform.scale, 1) : "";
}

function show(mine) {
  if (run !== mine) return;
  draw(Math.min(mine.player.position, waveform.seconds));
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) setTimeout(show, 500, mine);
  else requestAnimationFrame(() => show(mine));
}

function count() {
  const characters = [...$.text.value].length;
  const wrong = characters > MAX_CHARACTERS;
  $.count.textContent = `${characters} / ${MAX_CHARACTERS}`;
  $.count.classList.toggle("wrong", wrong);
  $.text.setCustomValidity(wrong ? `The text has ${characters} characters; at most ${MAX_CHARACTERS} can be spoken at once.` : "");
}

function describe() {
  const note = playsAsItComes($.format.value) ? "Plays as it comes." : "Plays when complete, in this browser.";
  $["format-note"].textContent = note;
  $["speed-shown"].textContent = `${Number($.speed.value).toFixed(2)}×`;
  $.speed.setAttribute("aria-valuetext", `${$.speed.value} times`);
}

for (const press of ["pointerdown", "keydown"]) document.addEventListener(press, wake, { once: true });
$.form.addEventListener("submit", (event) => {
  event.preventDefault();
  speak();
});
$.form.addEventListener("invalid", ({ target }) => { if ($.more.contains(target)) $.more.open = true; }, true);
$.text.addEventListener("input", count);
// What is typed first takes the sample's place. A mouse press places the caret after the focus.
for (const reached of ["focus", "click"]) {
  $.text.addEventListener(reached, () => { if ($.text.value === $.text.defaultValue) $.text.select(); }, { once: true });
}
$.text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing || !(event.ctrlKey || event.metaKey) || event.repeat) return;
  event.preventDefault();
  $.form.requestSubmit();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !event.isComposing) stop(); });
$.stop.addEventListener("click", stop);
$.format.addEventListener("input", describe);
$.speed.addEventListener("input", describe);
$["ask-key"].addEventListener("click", () => {
  askKey($["key-field"].hidden);
  if (!$["key-field"].hidden) $.key.focus();
});
$.key.addEventListener("change", () => {
  stored((storage) => storage.setItem(KEY, $.key.value));
  load();
});
$.key.addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  $.speak.focus(); // which ends the entry
});
$.download.addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(last.blob);
  link.download = last.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser reads it after the click
});

$.key.value = stored((storage) => storage.getItem(KEY)) ?? "";
$.docs.href = address("docs");
$.keys.textContent = `${/Mac|iPhone|iPad/.test(navigator.platform) ? "⌘ Enter" : "Ctrl+Enter"} speaks, Escape stops.`;
count();
describe();
setState("idle", "Ready.");
load();
