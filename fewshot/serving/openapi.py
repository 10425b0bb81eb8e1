"""The OpenAPI description of the server, from which clients in other languages are made."""

from collections.abc import Callable, Mapping
from typing import Any

from fewshot.adapters.adapter import Adapter
from fewshot.adapters.image_results import UNKNOWN, distinct

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
# Of the query: how its text is read, its type, and what it does; the options of `fewshot predict`.
PARAMETERS: Mapping[str, tuple[Callable[[str], Any], str, str]] = {
    "top": (int, "integer", "Number of most probable classes; 5 without it."),
    "min_confidence": (
        float, "number", f"Below this probability (0..1) the label is `{UNKNOWN}`."
    ),
    "unknown": (
        _BOOLEANS.__getitem__, "boolean",
        f"The label is `{UNKNOWN}`, too, for images that are like none of the classes.",
    ),
    "coverage": (
        float, "number",
        "Add the set of classes that holds the true one with this probability, such as 0.9.",
    ),
}  # fmt: skip
OF_ONE_LABEL = ("min_confidence", "unknown", "coverage")  # parameters that need one label each
_REFUSALS = {
    "400": "A parameter, or a form, that is not as described here.",
    "408": "The request took too long to arrive.",
    "411": "The request does not say how long it is.",
    "413": "Too many bytes, or too many images.",
    "415": "Neither an image nor a form.",
    "422": "No image of the request can be read.",
    "503": "The server is busy; try again after the seconds in Retry-After.",
}


def description(adapter: Adapter) -> dict[str, Any]:
    """The description of a server of this adapter, in OpenAPI 3.1."""
    names, several = list(distinct(adapter.classnames)), adapter.label_rule is not None
    image = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "type": "object",
        "properties": {"images": {"type": "array", "items": image["schema"]}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{adapter.method} on {adapter.model_name}",
            "description": adapter.summary(),
            "version": str(adapter.format),
        },
        "paths": {
            "/predict": {
                "post": {
                    "operationId": "predict",
                    "summary": "Classify one image or several",
                    "parameters": [
                        {
                            "name": name,
                            "in": "query",
                            "description": about,
                            "schema": {"type": kind},
                        }
                        for name, (_, kind, about) in PARAMETERS.items()
                        if not (several and name in OF_ONE_LABEL)
                    ],
                    "requestBody": {
                        "required": True,
                        "content": {
                            "image/*": image,
                            "application/octet-stream": image,
                            "multipart/form-data": {"schema": form},
                        },
                    },
                    "responses": {
                        "200": _answer("The predictions, in the order of the images", "Answer"),
                        **{status: _answer(why, "Error") for status, why in _REFUSALS.items()},
                    },
                }
            },
            "/health": {
                "get": {
                    "operationId": "health",
                    "summary": "The adapter, and how busy the server is",
                    "responses": {"200": _answer("It runs", "Health")},
                }
            },
        },
        "components": {"schemas": _schemas(names, several=several)},
    }


def _answer(about: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": about, "content": content}


def _schemas(names: list[str], *, several: bool) -> dict[str, Any]:
    text, number = {"type": "string"}, {"type": "number"}
    classes = {"type": "array", "items": {"type": "string", "enum": names}}
    if several:
        label = "The labels, most probable first, with semicolons between; empty if there is none"
        confidence = "The probability of the most probable class"
        more = {"label_probabilities": {"type": "array", "items": number}}
    else:
        label, confidence = (
            f"The most probable class, or `{UNKNOWN}`",
            "Its probability, calibrated",
        )
        more = {
            "p_value": {**number, "description": "Share of known images that look as foreign"},
            "set": {**classes, "description": "The classes of the set that coverage asks for"},
        }
    prediction = {
        "type": "object",
        "properties": {
            "path": {**text, "description": "The name of the file, as the form has it"},
            "label": {**text, "description": label},
            "confidence": {**number, "description": confidence},
            **more,
            "classes": {**classes, "description": "The most probable classes, in order"},
            "probabilities": {"type": "array", "items": number},
        },
        "required": ["path", "label", "confidence", "classes", "probabilities"],
    }
    unreadable = {
        "type": "object",
        "properties": {"path": text, "error": text},
        "required": ["path", "error"],
    }
    either = {"anyOf": [prediction, unreadable]}
    return {
        "Answer": {
            "type": "object",
            "properties": {"predictions": {"type": "array", "items": either}},
            "required": ["predictions"],
        },
        "Error": {"type": "object", "properties": {"error": text}, "required": ["error"]},
        "Health": {
            "type": "object",
            "properties": {
                "status": {"const": "ok"},
                "method": text,
                "model": text,
                "classes": classes,
                "unknown": {"type": "boolean", "description": "Unknown images can be found"},
                "answered": {"type": "integer", "description": "Images so far"},
                "waiting": {"type": "integer", "description": "Images being answered"},
            },
        },
    }
