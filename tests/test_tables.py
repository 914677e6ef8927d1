"""Tables as people ship them: encodings, line ends, separators, zips; and one message for each fault."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pytest

from pipeline import texts
from pipeline.errors import UserError
from pipeline.tables import read_table

TEXT = "id,label\n007,naïve\n010,NA\n"
ROWS = [["007", "naïve"], ["010", "NA"]]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    texts.warn_once.cache_clear()
    return tmp_path / "train.csv"


def fails(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_table(path)
    for word in words:
        assert word in str(caught.value)


# --- what is read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"])
def test_encodings(path, encoding, capsys):
    body = TEXT + "".join(f"{row:03d},x\n" for row in range(100, 160))
    path.write_bytes(body.encode(encoding))
    found = read_table(path)
    assert list(found.columns) == ["id", "label"]
    assert found.head(2).to_numpy().tolist() == ROWS
    assert len(found) == 62
    told = encoding in ("latin-1", "cp1252")
    assert ("train.csv is not UTF-8 (line 2)" in capsys.readouterr().err) == told


def test_a_warning_comes_once_a_process(path, capsys):
    path.write_bytes(TEXT.encode("latin-1"))
    for _ in range(3):
        read_table(path)
    assert capsys.readouterr().err.count("not UTF-8") == 1


def test_bytes_that_windows_does_not_know_are_read_as_latin_1(path):
    path.write_bytes(b"id,label\n1,\x81\xe9\n")
    assert read_table(path)["label"].tolist() == ["\x81é"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(path, end):
    path.write_bytes(TEXT.replace("\n", end).encode())
    assert read_table(path).to_numpy().tolist() == ROWS


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_separators_where_the_header_has_no_comma(path, mark):
    path.write_bytes(TEXT.replace(",", mark).encode())
    assert read_table(path).to_numpy().tolist() == ROWS


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("id,labels\n1,a;b\n2,c\n", ["id", "labels"]),  # a separator of labels is none of cells
        ("id\n1;2\n3;4\n", ["id"]),
        ("id;x\n1\n2\n", ["id;x"]),  # not in each line
        ("one two\n1\n2\n", ["one two"]),
    ],
)
def test_the_comma_stays_where_nothing_else_is_consistent(path, text, columns):
    path.write_text(text)
    assert list(read_table(path).columns) == columns


def test_decimal_commas_of_a_semicolon_csv_become_points(path, capsys):
    path.write_text("id;size;labels;count\n1;3,5;1,2,3;4\n2;-0,25;7;5\n3;;1,2;6\n")
    found = read_table(path)
    assert found["size"].tolist() == ["3.5", "-0.25", ""]
    assert found["labels"].tolist() == ["1,2,3", "7", "1,2"]  # three numbers are no decimal
    assert found["count"].tolist() == ["4", "5", "6"]
    assert "decimal commas of column size" in capsys.readouterr().err


def test_a_quoted_cell_keeps_its_commas_and_lines(path):
    path.write_text('id,label\n1,"a, b"\n2,"c\nd"\n')
    assert read_table(path)["label"].tolist() == ["a, b", "c\nd"]


def test_short_rows_are_filled_with_empty_cells(path):
    path.write_text("id,label\n1,a\n2\n")
    assert read_table(path)["label"].tolist() == ["a", ""]


@pytest.mark.parametrize("inner", ["train.csv", "folder/train.csv", "labels.csv"])
def test_a_csv_in_a_zip(path, inner):
    with zipfile.ZipFile(path.with_name("train.csv.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(inner, TEXT)
        archive.writestr(f"__MACOSX/._{inner}", "x")
    assert read_table(path.with_name("train.csv.zip")).to_numpy().tolist() == ROWS


def test_a_csv_in_a_gz_and_a_zip_that_is_named_csv(path):
    path.with_name("train.csv.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert read_table(path.with_name("train.csv.gz")).to_numpy().tolist() == ROWS
    with zipfile.ZipFile(path, "w") as archive:  # as kaggle's client saves it
        archive.writestr("train.csv", TEXT)
    assert read_table(path).to_numpy().tolist() == ROWS


# --- what is not --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf", b"\xff\xfe"])
def test_an_empty_csv(path, content):
    path.write_bytes(content)
    fails(path, "train.csv is empty (0 bytes or blank)", "download it again")


def test_a_csv_of_a_header_alone(path):
    path.write_text("id,label\n")
    fails(path, "no rows")


def test_a_missing_csv_names_those_there(path):
    path.with_name("train.csv.zip").write_bytes(b"x")
    fails(path, "train.csv does not exist", "train.csv.zip")


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut short", b"\x1f\x8b cut short"])
def test_a_damaged_archive(path, content):
    path.write_bytes(content)
    fails(path, "train.csv cannot be read", "download it again")


def test_a_zip_of_several_csv_files(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", TEXT)
        archive.writestr("b.csv", TEXT)
    fails(path, "holds 2 csv files, not one: a.csv, b.csv", "unpack it")


@pytest.mark.parametrize("text", ["id,label\n1,a,b\n", 'id,label\n1,"a\n'])
def test_a_damaged_csv(path, text):
    path.write_text(text)
    fails(path, "train.csv cannot be read as a csv", "mend or download it again")


def test_a_damaged_utf_16_csv(path):
    path.write_bytes(TEXT.encode("utf-16") + b"\x00")
    fails(path, "cannot be read as utf-16")
