"""Reading text files of unknown encoding."""

from pathlib import Path

from contrapose.errors import UserError

_MARKS = (  # longest first: the mark of UTF-16 starts that of UTF-32
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def read_text(path: Path, what: str) -> tuple[str, str | None]:
    """(the text of a file in UTF-8, UTF-16 or Windows-1252, the encoding if it was guessed).

    Raises UserError, which begins with `what`, for a file that is not text.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None and b"\0" in data:  # UTF-16 without its mark: every other byte is 0
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    for name, guessed in ((encoding or "utf-8", None), ("cp1252", "Windows-1252")):
        try:
            text = data.decode(name)
        except UnicodeDecodeError:
            if encoding is not None:
                break
            continue
        if "\0" not in text:
            return text, guessed
        break
    if encoding is None and b"\0" not in data:
        return data.decode("latin-1"), "Latin-1"
    raise UserError(f"{what}: not a text in UTF-8, UTF-16 or Windows-1252; save it as UTF-8")
