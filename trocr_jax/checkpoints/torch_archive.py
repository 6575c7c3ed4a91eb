"""A zip archive as torch writes it, mapped into memory; every member is checked before its bytes are used."""

from __future__ import annotations

import struct
import zipfile
import zlib
from typing import BinaryIO

import numpy as np

from trocr_jax.checkpoints.torch_objects import quote
from trocr_jax.checkpoints.torch_tensors import growth_limit

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
# Encrypted in the old way, in the new way, and with masked headers.
_IS_ENCRYPTED = 0x1 | 0x40 | 0x2000
_HAS_DESCRIPTOR = 0x8
_IS_UTF8 = 0x800
_IN_ZIP64_EXTRA = 0xFFFFFFFF


class Archive:
    """The members of a zip archive by name. Raises ValueError, without the file's name, for what torch never writes."""

    def __init__(self, file: BinaryIO, raw: np.ndarray) -> None:
        self.raw = raw
        try:
            directory = zipfile.ZipFile(file)
        # What the standard library raises on damaged directories is documented in part only.
        except (zipfile.BadZipFile, struct.error, OSError, RuntimeError, LookupError, ArithmeticError) as error:
            raise ValueError(f"its zip directory is damaged ({error})") from error
        self.end = directory.start_dir
        self.members: dict[str, zipfile.ZipInfo] = {}
        for member in directory.infolist():
            self._check(member)
            self.members[member.orig_filename] = member
        inflated = sum(member.file_size for member in self.members.values() if member.compress_type)
        if inflated > growth_limit(raw.nbytes):
            raise ValueError(f"its compressed members would take {inflated} bytes, out of a file of {raw.nbytes}")

    def _check(self, member: zipfile.ZipInfo) -> None:
        name = member.orig_filename
        parts = name.removesuffix("/").split("/")
        if member.filename != name or "\\" in name or ":" in name or {"", ".", ".."} & set(parts):
            raise ValueError(f"its zip archive has a member with the unsafe name {quote(name)}")
        if name in self.members:
            raise ValueError(f"its zip archive has two members with the name {quote(name)}")
        if member.flag_bits & _IS_ENCRYPTED:
            raise ValueError(f"the member {quote(name)} of its zip archive is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"the member {quote(name)} of its zip archive is neither stored nor deflated")
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise ValueError(f"the stored member {quote(name)} of its zip archive has two sizes")

    def read(self, name: str) -> np.ndarray:
        """The bytes of a member: a view of the file if it is stored, as torch does, else inflated.

        Checksums of stored members are not compared: torch can be told to write other numbers in their place.
        """
        member = self.members.get(name)
        if member is None:
            raise ValueError(f"its zip archive has no member {quote(name)}")
        start = self._start(member)
        if start + member.compress_size > self.end:
            raise ValueError(f"the member {quote(name)} reaches beyond its zip archive")
        packed = self.raw[start : start + member.compress_size]
        return packed if member.compress_type == zipfile.ZIP_STORED else _inflate(member, packed)

    def _start(self, member: zipfile.ZipInfo) -> int:
        """Where a member's bytes begin: behind a local header, which has to tell the same as the directory."""
        offset = member.header_offset
        if not 0 <= offset <= self.end - _LOCAL_HEADER.size:
            raise ValueError(f"the header of {quote(member.orig_filename)} is outside its zip archive")
        header = self.raw[offset : offset + _LOCAL_HEADER.size].tobytes()
        signature, _, flags, method, _, _, _, packed, size, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = offset + _LOCAL_HEADER.size + name_length
        name = self.raw[start - name_length : start].tobytes()
        # Sizes may stand behind the member, or in the extra field; the directory has them in any case.
        unknown = {_IN_ZIP64_EXTRA} | ({0} if flags & _HAS_DESCRIPTOR else set())
        agrees = (
            signature == b"PK\x03\x04"
            and not flags & _IS_ENCRYPTED
            and method == member.compress_type
            and name == member.orig_filename.encode("utf-8" if member.flag_bits & _IS_UTF8 else "cp437")
            and packed in unknown | {member.compress_size}
            and size in unknown | {member.file_size}
        )
        if not agrees:
            raise ValueError(f"the header of {quote(member.orig_filename)} contradicts its zip archive's directory")
        return start + extra_length


def _inflate(member: zipfile.ZipInfo, packed: np.ndarray) -> np.ndarray:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One byte more than announced, so that more is noticed; and never 0, which would mean no limit.
        content = stream.decompress(packed.tobytes(), member.file_size + 1)
    except zlib.error as error:
        raise ValueError(f"the member {quote(member.orig_filename)} cannot be inflated ({error})") from error
    if len(content) != member.file_size or not stream.eof or zlib.crc32(content) != member.CRC:
        raise ValueError(f"the member {quote(member.orig_filename)} does not inflate to what was packed")
    return np.frombuffer(content, np.uint8)
