"""Zips that were not unpacked: their members are files, named ``train.zip/a.png``, and read where they lie.

An archive is opened once a process and read with ``pread``, which moves no shared position: threads need no lock, and
a forked worker goes on with what it inherits. Nothing here is pickled; a member is its path.
"""

from __future__ import annotations

import functools
import os
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError

BORDER = re.compile(r"\.zip(?=/)", re.IGNORECASE)  # where a path may enter an archive
LOCAL_HEADER = 30  # bytes before a member's name; its lengths stand at 26 and 28
STORED, DEFLATED = 0, 8


class Member(NamedTuple):
    """Where a member lies in its zip, and what it is."""

    start: int
    packed: int
    size: int
    method: int
    crc: int


@dataclass
class Archive:
    """An open zip: its members by name, and its file."""

    path: str
    handle: int
    members: dict[str, Member] = field(default_factory=dict)

    def __del__(self) -> None:
        os.close(self.handle)

    def read(self, name: str) -> bytes:
        """A member's bytes, checked against its CRC; KeyError if there is none, ValueError if it is damaged."""
        member = self.members[name]
        header = os.pread(self.handle, LOCAL_HEADER, member.start)
        if not header.startswith(b"PK\3\4"):
            raise ValueError("damaged in its zip; download the zip again")
        gap = LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = _pread(self.handle, member.packed, member.start + gap)
        try:
            if member.method == DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max(1, member.size))
            elif member.method != STORED:
                raise ValueError(f"packed by zip method {member.method}, which is not read here; unpack the zip")
        except zlib.error as fault:
            raise ValueError("damaged in its zip; download the zip again") from fault
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise ValueError("damaged in its zip; download the zip again")
        return data


def _pread(handle: int, count: int, start: int) -> bytes:
    parts = []
    while count > 0:  # one call reads 2 GB at most
        part = os.pread(handle, count, start)
        if not part:
            break
        parts.append(part)
        count, start = count - len(part), start + len(part)
    return b"".join(parts)


def open_archive(path: str | Path) -> Archive:
    """The zip at a path, opened once while it does not change; UserError if it is damaged, OSError if it is not there.

    Members with absolute names or ``..`` are left out, so that none stands for a file elsewhere; backslashes, as some
    programs on Windows write them, become slashes.
    """
    path = os.fspath(path)
    stat = os.stat(path)
    return _opened(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _opened(path: str, size: int, time: int) -> Archive:
    archive = Archive(path, os.open(path, os.O_RDONLY))
    try:
        with zipfile.ZipFile(path) as content:
            entries = content.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as fault:
        raise UserError(f"{path} is no whole zip ({fault}); download it again, or unpack it yourself") from fault
    secret = [entry.filename for entry in entries if entry.flag_bits & 1]
    if secret:
        raise UserError(
            f"{path} is encrypted ({len(secret)} members, such as {secret[0]}); unpack it with its password, "
            "and move the zip away"
        )
    for entry in entries:
        name = entry.filename.replace("\\", "/").removeprefix("./")
        if not entry.is_dir() and stays(name):
            archive.members[name] = Member(
                entry.header_offset, entry.compress_size, entry.file_size, entry.compress_type, entry.CRC
            )
    return archive


def stays(name: str) -> bool:
    """Whether a member's name lies below the folder that it is unpacked into."""
    return bool(name) and name[0] != "/" and ":" not in name[:3] and not {"..", "", "."} & set(name.split("/"))


def split(path: str) -> tuple[str, str] | None:
    """The zip that a path enters, and the name behind it; None if it enters none."""
    for border in BORDER.finditer(path):
        if os.path.isfile(path[: border.end()]):
            return path[: border.end()], path[border.end() + 1 :]
    return None


def read(path: str) -> bytes:
    """The bytes of ``…/train.zip/a.png``; FileNotFoundError if there is no such member, ValueError if damaged."""
    place = split(path)
    if place is None:
        raise FileNotFoundError(path)
    try:
        return open_archive(place[0]).read(place[1])
    except KeyError as fault:
        raise FileNotFoundError(path) from fault


def stat(path: str) -> tuple[int, int] | None:
    """Size and CRC of ``…/train.zip/a.png``; None if there is no such member."""
    place = split(path)
    member = open_archive(place[0]).members.get(place[1]) if place else None
    return (member.size, member.crc) if member else None
