"""The images in the body of a request: one as it is, or several as a form sends them."""

import email.parser
import email.policy
from dataclasses import dataclass, field
from email.message import Message

from fewshot.serving.messages import Request, RequestError

PARTS = 64  # images of one request
HEADER = 2**13  # bytes before a part's content


@dataclass(frozen=True)
class Upload:
    """An image as it was sent.

    Attributes:
        name: Its file's name; `image` where nobody said.
        content: Its bytes.
    """

    name: str
    content: bytes = field(repr=False)


def uploads(request: Request) -> list[Upload]:
    """The images of a request, one or more.

    A form (`multipart/form-data`) may hold up to `PARTS`, whatever its fields are called; fields
    without a file are passed over. Any other body is one image, if its type is one of images, or
    of bytes in general.

    Raises:
        RequestError: There is no image, there are too many, or the type is another.
    """
    declared = Message()
    declared["content-type"] = request.headers.get("content-type", "")
    kind = declared.get_content_type()
    if kind == "multipart/form-data":
        found = _of_form(request.body, str(declared.get_param("boundary", "")))
    elif declared.get_content_maintype() == "image" or kind == "application/octet-stream":
        found = [Upload("image", request.body)] if request.body else []
    else:
        raise RequestError(
            415,
            "expected an image (image/jpeg, application/octet-stream, ...) or multipart/form-data "
            f"with images; got {request.headers.get('content-type', 'no Content-Type')[:80]!r}",
        )
    if not found:
        raise RequestError(
            400, "the request holds no image; send one as its body, or several as a form"
        )
    return found


def _of_form(body: bytes, boundary: str) -> list[Upload]:
    """The files of a form (RFC 7578)."""
    if not boundary:
        raise RequestError(400, "the form names no boundary; let a library write its Content-Type")
    mark = b"\r\n--" + boundary.encode("latin-1", "replace")
    body = b"\r\n" + body
    if body.count(mark) > PARTS + 1:
        raise RequestError(
            413, f"a request may hold {PARTS} images; send the others in another one"
        )
    _, *parts = body.split(mark)
    if not parts or not parts[-1].startswith(b"--"):
        raise RequestError(400, "the form is cut off or is none; send it again")
    files = [_file(part) for part in parts[:-1]]
    return [file for file in files if file is not None]


def _file(part: bytes) -> Upload | None:
    """One part; None where it is no file."""
    head, blank, content = part.partition(b"\r\n\r\n")
    if not blank or len(head) > HEADER:
        raise RequestError(400, "a part of the form has no header; let a library write the form")
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    name = parser.parsebytes(head.lstrip(b"\r\n")).get_filename()
    return None if name is None else Upload(name or "image", content)
