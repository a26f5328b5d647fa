"""The server's pages: `/`, on which a person tries a voice, and `/docs`, the API's reference.

Owns the assembly of this folder's files into one document, the headers that restrict it (only its
own script and style run, and they may connect to this server only), and the corrections to
FastAPI's OpenAPI document, from which `/docs` is made. Addresses are relative: the pages work
behind any prefix, and offline. The behavior of the page at `/`: `page.js`.
"""

import base64
import copy
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from sheen.serve.access.middleware import PROTECTED

SCRIPTS = ("playback.js", "waveform.js", "page.js")
"""In the order of their dependencies."""


def page_response() -> HTMLResponse:
    """The page at `/`. Its addresses are relative: it works under any route prefix."""
    html, headers = _page()
    return HTMLResponse(html, headers=headers)


@cache
def _page() -> tuple[str, dict[str, str]]:
    style = web_file("page.css")
    script = "".join(map(web_file, SCRIPTS))
    html = Template(web_file("page.html")).substitute(style=style, script=script)
    return html, own_headers(style=style, script=script)


def web_file(name: str) -> str:
    """The text of a file in the folder `web`."""
    return files("sheen.serve").joinpath("web", name).read_text("utf-8")


def own_headers(*, style: str, script: str | None = None) -> dict[str, str]:
    """Headers that allow a page this style and script, and nothing else. Each is the whole text
    between its tags, which is what the browser hashes."""
    policy = {
        "default-src": "'none'",
        "script-src": "'none'" if script is None else _source(script),
        "style-src": _source(style),
        "connect-src": "'self'",
        "media-src": "'self' blob:",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
        "Cache-Control": "no-cache",
    }


def _source(text: str) -> str:
    """The source of an inline text, for a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


JSON = "application/json"
_ERROR = {"schema": {"$ref": "#/components/schemas/ErrorBody"}}


def _whole_as_int(number: str) -> float:
    return int(float(number)) if float(number).is_integer() else float(number)


NO_DEFAULTS: Mapping[str, Any] = MappingProxyType({})


class SpeechAPI(FastAPI):
    """FastAPI with a corrected OpenAPI document: no 422 (validation errors are 400 here), the key
    that the gate in front of the application checks, and every error as JSON. Its own routes for
    the document and for pages of it, which load scripts from elsewhere, are off."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(openapi_url=None, docs_url=None, redoc_url=None, **settings)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            # Bounds come as floats, but 2.0 ** 63 would not state the largest seed exactly.
            written = json.dumps(super().openapi())
            document = self.openapi_schema = json.loads(written, parse_float=_whole_as_int)
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    for status, response in operation["responses"].items():
                        if status >= "400":
                            stated = response.get("content", {}).get(JSON, _ERROR)
                            response["content"] = {JSON: stated}
                    if path.startswith(PROTECTED):
                        operation["security"] = [{"key": []}, {}]  # args.auth may be none
            for name in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(name, None)
            document["components"]["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer"}
            }
        return super().openapi()

    def document(
        self, voices: Iterable[str], root_path: str, defaults: Mapping[str, Any] = NO_DEFAULTS
    ) -> dict[str, Any]:
        """The document of a server with these voices (empty: any name is allowed), at an address
        that ends in `root_path`. `defaults`: the model's own defaults of fields, which replace the
        schema's."""
        document = copy.deepcopy(self.openapi())
        schemas = document["components"]["schemas"]
        documented = [name for name in ("SpeechRequest", "BatchRequest") if name in schemas]
        if names := list(voices):
            schemas["VoiceId"]["properties"]["id"]["enum"] = names
            for request in documented:
                schemas[request]["properties"]["voice"]["anyOf"][0]["enum"] = names
        for field, value in defaults.items():
            for request in documented:
                schemas[request]["properties"][field]["default"] = value
        if root_path:
            document["servers"] = [{"url": root_path}]
        return document


Schema = dict[str, Any]

_LIMITS = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "exclusiveMaximum": "below {}",
    "minLength": "from {} characters",
    "maxLength": "to {} characters",
}


def reference_response(document: dict[str, Any]) -> HTMLResponse:
    style = web_file("page.css") + web_file("docs.css")
    body = "".join(_sections(document))
    title = escape(document["info"]["title"])
    html = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n'
        f"<title>{title}: reference</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{title}</h1>\n{_prose(document['info'].get('description', ''))}"
        f'<p>The same for programs: <a href="openapi.json">openapi.json</a></p>\n</header>\n'
        f"<main>\n{body}</main>\n</body>\n</html>\n"
    )
    return HTMLResponse(html, headers=own_headers(style=style))


def _sections(document: dict[str, Any]) -> Iterator[str]:
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield f"<section>\n<h2>{method.upper()} <code>{escape(path)}</code></h2>\n"
            yield _prose(operation.get("description", operation["summary"]))
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body:
                schema = _resolved(body["schema"], schemas)
                yield _table(("field", "type", "default", ""), _fields(schema, schemas))
                kinds = operation["responses"]["200"]["content"]
                output = "speech.json" if "application/json" in kinds else "speech.mp3"
                yield f"<pre>{escape(_curl(document, path, schema, output))}</pre>\n"
            yield _table(("status", "content", ""), _responses(operation))
            yield "</section>\n"


def _fields(schema: Schema, schemas: Schema) -> Iterator[tuple[str, ...]]:
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        default = "required" if name in required else json.dumps(field.get("default"))
        yield _code(name), _kind(field, schemas), default, _inline(field.get("description", ""))


def _responses(operation: Schema) -> Iterator[tuple[str, ...]]:
    for status, response in operation["responses"].items():
        kinds = ", ".join(response.get("content", ()))
        yield _code(status), escape(kinds), _inline(response["description"])


def _kind(schema: Schema, schemas: Schema) -> str:
    """The type and the limits of a value, as HTML."""
    if "anyOf" in schema:
        kinds = [_kind(one, schemas) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(kinds)
    schema = _resolved(schema, schemas)
    if "properties" in schema:
        return _code(
            "{" + ", ".join(json.dumps(name) + ": …" for name in schema["properties"]) + "}"
        )
    if "const" in schema:
        return _code(schema["const"])
    if "enum" in schema:
        return ", ".join(map(_code, schema["enum"]))
    limits = [text.format(schema[name]) for name, text in _LIMITS.items() if name in schema]
    return escape(" ".join([schema["type"], *limits]))


def _curl(document: dict[str, Any], path: str, schema: Schema, output: str) -> str:
    """A curl command with the fields' examples."""
    examples = {
        name: field["examples"][0]
        for name, field in schema["properties"].items()
        if "examples" in field
    }
    root = document.get("servers", [{"url": ""}])[0]["url"]
    return (
        f"curl http://HOST:PORT{root}{path} -H 'Content-Type: application/json' \\\n"
        f"  -d '{json.dumps(examples)}' -o {output}"
    )


def _resolved(schema: Schema, schemas: Schema) -> Schema:
    found: Schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return found


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return "<table>\n" + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table>\n"


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>\n" for part in text.strip().split("\n\n"))


def _inline(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text, quote=False))


def _code(text: str) -> str:
    return f"<code>{escape(str(text))}</code>"
