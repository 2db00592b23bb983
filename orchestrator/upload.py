"""A form with a file in it, as OpenAI's clients upload one, read as it comes: RFC 7578."""

from collections.abc import Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from orchestrator.errors import BadRequest, TooLarge

_MOST_FIELD = 1000  # bytes of a field that is no file
_MOST_FIELDS = 20


class Upload:
    """Bytes in by `feed`, then `end`. The file's content goes to `sink` as it comes; `fields` are the others.

    Raises BadRequest for what is no such form, TooLarge for a file of more than `most` bytes.
    """

    def __init__(self, content_type: str, sink: Callable[[bytes], object], most: int) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise BadRequest(f"send the file as multipart/form-data, as curl -F does, not as {content_type[:100]!r}")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.size = 0
        self._sink, self._most = sink, most
        self._header, self._value = bytearray(), bytearray()
        self._options: dict[bytes, bytes] = {}
        self._name = ""
        self._content = bytearray()
        self._is_file = self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header,
                "on_header_value": self._on_value,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._on_data,
                "on_part_end": self._part_ends,
                "on_end": self._form_ends,
            },
        )

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as exc:
            raise BadRequest(f"the form cannot be read: {exc}") from exc

    def end(self) -> None:
        """The body is complete."""
        if not self._ended:
            raise BadRequest("the form ends before its last boundary")
        if self.filename is None:
            raise BadRequest("the form has no file; send it as the field 'file', as in curl -F file=@requests.jsonl")

    def _begin(self) -> None:
        self._options, self._name, self._is_file = {}, "", False
        self._content.clear()
        if len(self.fields) >= _MOST_FIELDS:
            raise BadRequest(f"the form has more than {_MOST_FIELDS} fields")

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]  # the parser bounds it

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._options = parse_options_header(bytes(self._value))[1]
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        self._name = self._options.get(b"name", b"").decode(errors="replace")
        filename = self._options.get(b"filename")
        self._is_file = self._name == "file"
        if self._is_file:
            if self.filename is not None:
                raise BadRequest("the form has two files; send one")
            self.filename = (filename or b"file").decode(errors="replace")[:200]

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file:
            self._content += data[start:end]
            if len(self._content) > _MOST_FIELD:
                raise BadRequest(f"a field of the form has more than {_MOST_FIELD} bytes")
            return
        self.size += end - start
        if self.size > self._most:
            raise TooLarge(
                f"the file is larger than {self._most >> 20} MiB (ORCHESTRATOR_FILE_MEGABYTES); send it in parts"
            )
        self._sink(data[start:end])

    def _part_ends(self) -> None:
        if not self._is_file:
            self.fields[self._name] = self._content.decode(errors="replace")

    def _form_ends(self) -> None:
        self._ended = True
