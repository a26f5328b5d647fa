#!/usr/bin/env bash
# The plain requests: a file, a stream into a player, events.
# bash examples/clients/curl.sh [URL]     with args.auth keys: API_KEY=… bash examples/clients/curl.sh
set -euo pipefail

url="${1:-http://127.0.0.1:8000}/v1/audio/speech"
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

speak() { # what to ask for beside the text, and curl's own flags
  local fields=$1
  shift
  # --fail-with-body: a refusal is told, on standard output, and ends this script.
  curl --silent --show-error --no-buffer --fail-with-body "$@" "$url" \
    -H "Authorization: Bearer ${API_KEY:-none}" \
    -H "Content-Type: application/json" \
    -d "{\"model\": \"sheen\", \"voice\": \"heart\", \"input\": \"Good morning, the coffee is ready.\", $fields}"
}

to_file() { # its name, and then as `speak`; of a refusal the file has the reason
  local file="$folder/$1"
  shift
  speak "$@" -o "$file" || { [ ! -f "$file" ] || cat "$file"; echo; exit 1; }
}

echo "mp3, to a file:"
to_file speech.mp3 '"response_format": "mp3"' \
  -w '%{content_type}, %{size_download} bytes, the first after %{time_starttransfer} s\n'

echo "events, the beginning of each:"
to_file events '"stream_format": "sse", "response_format": "opus"'
grep '^data: ' "$folder/events" | cut -c 1-72
grep -q 'speech\.audio\.done' "$folder/events" ||
  { echo "the events ended without speech.audio.done" >&2; exit 1; }

echo "pcm, as it comes:"
if command -v ffplay > /dev/null; then
  speak '"response_format": "pcm"' |
    ffplay -autoexit -nodisp -loglevel error -f s16le -ar 24000 -ch_layout mono -i -
else
  to_file speech.pcm '"response_format": "pcm"'
  echo "$(wc -c < "$folder/speech.pcm") bytes (with ffplay you would hear them)"
fi
