"use strict";
const rows = [...document.querySelectorAll("article")];
const store = `sheen-review-${document.body.dataset.key}`;
let kept = true;
let done = read();
let at = 0;

// Browsers that block storage throw; the marks then last as long as the page.
function stored(action) {
  try {
    return action(localStorage);
  } catch (error) {
    if (!["SecurityError", "QuotaExceededError"].includes(error.name)) throw error;
    kept = false;
    return null;
  }
}

function read() {
  return new Map(Object.entries(JSON.parse(stored((storage) => storage.getItem(store)) ?? "{}")));
}

const textOf = (row) => row.querySelector("textarea");
const playerOf = (row) => row.querySelector("audio");
// Who goes on before a clip has begun rejects the promise.
const play = (row) => playerOf(row).play().catch(() => {});

function show(row) {
  const mark = done.get(row.id) ?? {};
  row.dataset.state = mark.verdict ?? (mark.text === undefined ? "" : "corrected");
  for (const button of row.querySelectorAll("button"))
    button.setAttribute("aria-pressed", button.value === mark.verdict);
}

function count() {
  const lost = kept ? "" : ". This browser does not keep it: download before you leave the page.";
  document.querySelector("#count").textContent = `${done.size} of ${rows.length} checked${lost}`;
  document.querySelector("#save").disabled = done.size === 0;
}

function mark(row, change) {
  const was = textOf(row).defaultValue;
  const empty = textOf(row).value.trim() === "";
  textOf(row).setCustomValidity(empty ? "A row without a text cannot be good: write one, or call it wrong." : "");
  const next = { ...done.get(row.id), ...change };
  if (next.text === was || empty) delete next.text;
  if (next.verdict === undefined || (empty && next.verdict === "good")) delete next.verdict;
  if (Object.keys(next).length) done.set(row.id, next);
  else done.delete(row.id);
  stored((storage) => storage.setItem(store, JSON.stringify(Object.fromEntries(done))));
  show(row);
  count();
}

function go(place) {
  playerOf(rows[at]).pause();
  at = Math.min(Math.max(place, 0), rows.length - 1);
  rows[at].focus({ preventScroll: true });
  rows[at].scrollIntoView({ block: "center" });
  play(rows[at]);
}

// Whether the row could be given the verdict.
function decide(row, verdict) {
  mark(row, { verdict });
  return verdict !== "good" || textOf(row).reportValidity();
}

function restore(row) {
  textOf(row).value = done.get(row.id)?.text ?? textOf(row).defaultValue;
  show(row);
}

rows.forEach((row, place) => {
  restore(row);
  row.addEventListener("focusin", () => { at = place; });
  textOf(row).addEventListener("input", () => mark(row, { text: textOf(row).value.trim() }));
  for (const button of row.querySelectorAll("button"))
    button.addEventListener("click", () => {
      const pressed = done.get(row.id)?.verdict === button.value;
      decide(row, pressed ? undefined : button.value);
    });
});
count();

// Another tab of this page marked a row: what this one stores would undo it.
window.addEventListener("storage", ({ key }) => {
  if (key !== store && key !== null) return;
  done = read();
  rows.forEach(restore);
  count();
});

document.addEventListener("keydown", (event) => {
  const row = rows[at];
  if (row === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === textOf(row)) {
    // An input method's own keys; to Safari, the Enter that ends it is no part of it but 229.
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key !== "Escape" && event.key !== "Enter") return;
    event.preventDefault();
    if (event.key === "Enter") go(at + 1);
    else row.focus();
    return;
  }
  if (event.target.closest("button, audio") && [" ", "Enter"].includes(event.key)) return;
  const player = playerOf(row);
  const keys = {
    " ": () => (player.paused ? play(row) : player.pause()),
    Enter: () => { if (decide(row, "good")) go(at + 1); },
    x: () => { if (decide(row, "wrong")) go(at + 1); },
    e: () => textOf(row).focus(),
    ArrowDown: () => go(at + 1),
    ArrowUp: () => go(at - 1),
  };
  if (!(event.key in keys)) return;
  event.preventDefault();
  // A key that is held moves on, but decides on no row that nobody has heard.
  if (event.repeat && !event.key.startsWith("Arrow")) return;
  keys[event.key]();
});

document.querySelector("#save").addEventListener("click", () => {
  const lines = rows.filter((row) => done.has(row.id)).map((row) =>
    JSON.stringify({ id: row.id, was: textOf(row).defaultValue, ...done.get(row.id) }) + "\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  link.download = "corrections.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser reads it after the click
});
