"""multipart/form-data with one file and a few short fields, read as it arrives.

The file goes through in pieces and is never held; python-multipart finds the borders.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from embedding_service.errors import InvalidRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MOST_PARTS = 16
_MOST_CONTENT_TYPE_CHARACTERS = 1024
_MOST_FIELD_BYTES = 1024
_MOST_FILENAME_CHARACTERS = 255
# For what surrounds the file: borders, headers and fields. The parser goes through blanks behind a
# border byte by byte: 64 MB of them took 20 s.
OVERHEAD_BYTES = 64 << 10
_PARSED_BYTES = 16 << 10  # at a time: 6 ms, if they are such blanks


class Form:
    """A form on its way in: `feed` returns the file's next pieces, `fields` holds the rest."""

    def __init__(self, content_type: str) -> None:
        # Cut off, since a text full of `;` takes the square of its length to parse.
        kind, options = parse_options_header(content_type[:_MOST_CONTENT_TYPE_CHARACTERS])
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise InvalidRequest("content-type must be multipart/form-data with a boundary")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.complete = False
        self._delimiter = b"\r\n--" + boundary
        self._parts = self._delimiters = self._overhead = 0
        self._header = self._value = b""
        self._disposition = b""
        self._name: str | None = None  # of the field that is being read; None within the file
        self._pieces: list[bytes] = []
        try:
            self._parser = MultipartParser(boundary, self._callbacks())
        except FormParserError as error:
            raise _wrong(error) from None

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the body; return those of the file. Raises `InvalidRequest`."""
        self._count_delimiters(data)
        for start in range(0, len(data), _PARSED_BYTES):
            self._parse(data[start : start + _PARSED_BYTES])
        pieces, self._pieces = self._pieces, []
        return pieces

    def _parse(self, data: bytes) -> None:
        """Have some bytes parsed. Raises `InvalidRequest` for too much around the contents."""
        self._overhead += len(data)
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _wrong(error) from None
        if self._overhead > OVERHEAD_BYTES:
            raise InvalidRequest(
                f"the form has more than {OVERHEAD_BYTES} bytes around its fields' contents; send "
                "it as OpenAI's SDKs do"
            )

    def _count_delimiters(self, data: bytes) -> None:
        """Raise `InvalidRequest` for more borders than there may be parts.

        No line of the file may begin as a border does (RFC 2046, 5.1.1), and the parser takes 0.2 s
        for a MB of such lines.
        """
        self._delimiters += data.count(self._delimiter)
        if self._delimiters > _MOST_PARTS:
            raise _too_many_parts()

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._take_header,
            "on_header_value": self._take_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_content,
            "on_part_data": self._take_content,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise _too_many_parts()
        self._disposition = b""

    def _take_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _begin_content(self) -> None:
        kind, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not name:
            raise InvalidRequest("every part of the form must have a name")
        if name != "file":
            self._name = name
            if name in self.fields:
                raise InvalidRequest("a field of the form is there twice; send it once")
            self.fields[name] = ""
            return
        if self.filename is not None:
            raise InvalidRequest("file: send one file at a time", param="file")
        self._name = None
        self.filename = shown_name(options.get(b"filename", b"").decode("utf-8", "replace"))

    def _take_content(self, data: bytes, start: int, end: int) -> None:
        self._overhead -= end - start
        if self._name is None:
            self._pieces.append(data[start:end])
            return
        self.fields[self._name] += data[start:end].decode("utf-8", "replace")
        if len(self.fields[self._name]) > _MOST_FIELD_BYTES:
            raise InvalidRequest(f"a field of the form must have at most {_MOST_FIELD_BYTES} bytes")

    def _end(self) -> None:
        self.complete = True


def shown_name(name: str) -> str:
    """Return the last part of a client's file name as it may be shown; it is never a path here."""
    last = PurePath(name.replace("\\", "/")).name
    printable = "".join(filter(str.isprintable, last))
    return printable[:_MOST_FILENAME_CHARACTERS] if printable.strip(".") else "file"


def _too_many_parts() -> InvalidRequest:
    return InvalidRequest(
        f"a form must have at most {_MOST_PARTS} parts here, and its boundary in no other place"
    )


def _wrong(error: FormParserError) -> InvalidRequest:
    reason = str(error).partition("\n")[0][:100]
    return InvalidRequest(
        f"the form is not valid multipart/form-data ({reason!a}); send it as OpenAI's SDKs do"
    )
