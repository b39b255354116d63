"""Labels in a text table (.csv, .tsv): one label a line, or a column of files and one of labels.

These are recognised: the delimiter (comma, semicolon or tab), quotes, the encoding (UTF-8 or
UTF-16, else Windows-1252, with a note), and whether there is a heading. A table that can be read in
two ways is refused with the file and the line.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contrapose.data.file_names import FileNames
from contrapose.data.text_files import read_text
from contrapose.errors import UserError

FILE_HEADS = frozenset(
    "file files filename file_name filenames path filepath file_path image images image_path"
    " image_name img name id image_id".split()
)
LABEL_HEADS = frozenset("label labels class classes class_name category target y".split())


@dataclass(frozen=True)
class _Row:
    line: int  # in the file, from 1
    cells: list[str]


def read_table(
    path: Path, names: Sequence[str], column: str | None = None
) -> tuple[list[str], dict[str, int]]:
    """(the label of each of `names` as a word, or ""; notes and how many lines they concern).

    column: the heading of the labels. Raises UserError with the line for a file that is not among
    the images, for two labels of one file, and for anything that can be read in two ways.
    """
    text, encoding = read_text(path, _at(path))
    images = FileNames(names)
    rows = _rows(path, text, images)
    notes = {} if encoding is None else {f"lines of {path.name} read as {encoding}": len(rows)}
    if not any(row.cells for row in rows):
        raise UserError(f"{_at(path)}: the file is empty")
    if max(len(row.cells) for row in rows) == 1:
        return _one_a_line(path, rows, len(names), column), notes
    rows = [row for row in rows if row.cells]
    file, label, rows = _columns(path, rows, images, column)
    place, more = _places(path, [(row.line, row.cells[file]) for row in rows], images)
    words = [""] * len(names)
    line: dict[int, int] = {}  # image -> the line that labels it
    repeated = 0
    for row, i in zip(rows, place, strict=True):
        word = row.cells[label]
        if i in line and words[i] != word:
            raise UserError(
                f"{_at(path, row.line)}: {row.cells[file]!r} has the label {word!r}, but"
                f" {words[i]!r} on line {line[i]}; keep one of them"
            )
        repeated += i in line
        words[i], line[i] = word, row.line
    if repeated:
        more["lines that repeat a file and its label"] = repeated
    return words, notes | more


def _at(path: Path, line: int | None = None) -> str:
    return f"labels={str(path)!r}" + ("" if line is None else f", line {line}")


def _rows(path: Path, text: str, images: FileNames) -> list[_Row]:
    """The lines as cells, by the delimiter that gives all lines the same number of cells."""
    cut, wrong = {}, {}
    for delimiter in ",;\t":
        try:
            cut[delimiter] = _cut(path, text, delimiter)
        except ValueError as error:  # quotes that stand elsewhere with another delimiter
            wrong[delimiter] = error
    if not cut or (wrong and all(len(row.cells) < 2 for rows in cut.values() for row in rows)):
        raise wrong[max(wrong, key=text.count)]
    widths = {d: {len(row.cells) for row in rows if row.cells} for d, rows in cut.items()}
    even = [d for d in cut if len(widths[d]) == 1 and widths[d] != {1}]
    if not even:
        uneven = [d for d in cut if len(widths[d]) > 1]
        if not uneven:
            return cut[","]
        rows = [row for row in cut[max(uneven, key=text.count)] if row.cells]
        other = next(row for row in rows if len(row.cells) != len(rows[0].cells))
        raise UserError(
            f"{_at(path, other.line)}: {len(other.cells)} columns, but {len(rows[0].cells)} on line"
            f" {rows[0].line}; put quotes around a label that holds the delimiter"
        )

    def known(delimiter: str) -> int:
        first = [row for row in cut[delimiter] if row.cells][:50]
        return sum(any(images.known(cell) for cell in row.cells) for row in first)

    return _without_empty_columns(cut[max(even, key=known)])


def _cut(path: Path, text: str, delimiter: str) -> list[_Row]:
    reader = csv.reader(
        text.splitlines(keepends=True), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    rows = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            rows.append(_Row(reader.line_num, stripped if any(stripped) else []))
    except csv.Error as error:
        raise UserError(
            f"{_at(path, max(1, reader.line_num))}: {error}; check the quotes"
        ) from None
    while rows and not rows[-1].cells:
        rows.pop()
    return rows


def _without_empty_columns(rows: list[_Row]) -> list[_Row]:
    full = [row.cells for row in rows if row.cells]
    kept = [k for k in range(len(full[0])) if any(cells[k] for cells in full)]
    return [_Row(row.line, [row.cells[k] for k in kept] if row.cells else []) for row in rows]


def _one_a_line(path: Path, rows: list[_Row], n: int, column: str | None) -> list[str]:
    """One label for each image; an empty line is an image without one, if the count says so."""
    every = [row.cells[0] if row.cells else "" for row in rows]
    full = [word for word in every if word]
    heads = LABEL_HEADS | ({column.lower()} if column else set())
    headed = full[0].lower() in heads and full.count(full[0]) == 1
    if column is not None and full[0] != column:
        raise UserError(f"{_at(path, 1)}: no column {column!r}; the heading is {full[0]!r}")
    for words in (every, full):
        if len(words) == n + 1:
            return words[1:]
        if len(words) == n and not headed:
            return words
    count = len(every) - headed
    raise UserError(f"{_at(path)}: {count:,} labels for {n:,} images; expected one for each")


def _columns(
    path: Path, rows: list[_Row], images: FileNames, column: str | None
) -> tuple[int, int, list[_Row]]:
    """(the column of the files, that of the labels, the rows below the heading)"""
    head = [cell.lower() for cell in rows[0].cells]
    body = rows[1:]
    some = (body or rows)[:200]
    alike = [sum(images.score(row.cells[k]) for row in some) for k in range(len(head))]
    named = [k for k, cell in enumerate(head) if cell in FILE_HEADS]
    file = max(range(len(head)), key=lambda k: (alike[k], k in named))
    first = images.score(rows[0].cells[file])
    usual_words = any(cell in FILE_HEADS | LABEL_HEADS for cell in head)
    others_known = bool(body) and all(images.known(row.cells[file]) for row in some)
    headed = (first < 2 and usual_words) or (first == 0 and others_known)
    if not headed:
        if column is not None or len(head) != 2:
            asked = f"asked for column {column!r}, but" if column else f"{len(head)} columns, but"
            raise UserError(
                f"{_at(path, rows[0].line)}: {asked} no heading names them; put a line such as"
                " `file,label` on top"
            )
        return file, 1 - file, rows
    listed = ", ".join(rows[0].cells)
    if column is not None:
        if rows[0].cells.count(column) != 1:
            problem = "no column" if column not in rows[0].cells else "two columns"
            raise UserError(f"{_at(path, 1)}: {problem} {column!r}; the columns are {listed}")
        return file, rows[0].cells.index(column), body
    usual = [k for k, cell in enumerate(head) if cell in LABEL_HEADS and k != file]
    label = usual[0] if len(usual) == 1 else 1 - file if len(head) == 2 else None
    if label is None:
        raise UserError(
            f"{_at(path, 1)}: which of the columns {listed} holds the labels? Say so with"
            " --label-column NAME (label_column=)"
        )
    return file, label, body


def _places(
    path: Path, files: list[tuple[int, str]], images: FileNames
) -> tuple[list[int], dict[str, int]]:
    """(the position of the image that each line names, notes); absolute names may be of another
    folder than the present one."""
    found = [images.find(file) for _, file in files]
    lost = [k for k, matches in enumerate(found) if not matches]
    moved = images.moved([files[k][1] for k in lost]) if lost else None
    notes = {}
    if moved is not None:
        notes["absolute file names that were written for another folder"] = len(lost)
        for k, i in zip(lost, moved, strict=True):
            found[k] = [i]
    for (line, file), matches in zip(files, found, strict=True):
        if len(matches) != 1:
            what = "several images" if matches else "no image"
            raise UserError(
                f"{_at(path, line)}: {file!r} names {what} of the set (whose first is"
                f" {images.first!r})"
            )
    return [matches[0] for matches in found], notes
