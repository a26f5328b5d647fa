"""The OpenAPI document of the application: what the framework writes, and what is true here.

Owns the corrections. How it looks to a person: `sheen.serve.reference`.
"""

import copy
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI

from sheen.serve.access import PROTECTED

_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}


class SpeechAPI(FastAPI):
    """FastAPI, whose document promises no 422 (errors of validation are 400 here), names the key,
    which the gate before the application asks for, and has every error as JSON. Its routes for the
    document and for the pages made of it, which load scripts from elsewhere, are off."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(openapi_url=None, docs_url=None, redoc_url=None, **settings)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    for status, response in operation["responses"].items():
                        if status >= "400":
                            response["content"] = _ERROR
                    if path.startswith(PROTECTED):
                        operation["security"] = [{"key": []}, {}]  # args.auth may be none
            for name in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(name, None)
            document["components"]["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer"}
            }
        return super().openapi()

    def document(self, voices: Iterable[str], root_path: str) -> dict[str, Any]:
        """The document of a server that has these voices, under an address that ends in
        `root_path`."""
        document = copy.deepcopy(self.openapi())
        schemas = document["components"]["schemas"]
        name, _ = schemas["SpeechRequest"]["properties"]["voice"]["anyOf"]
        name["enum"] = schemas["VoiceId"]["properties"]["id"]["enum"] = list(voices)
        if root_path:
            document["servers"] = [{"url": root_path}]
        return document
