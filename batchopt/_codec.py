"""Records as JSON: a schema tag, strict reading, whole-or-nothing writing.

A record is a frozen dataclass that inherits `Record`. Its JSON is the dataclass's fields plus
`"schema": "batchopt.<name>/<version>"`. Unknown keys, other schemas and newer versions are errors;
infinite numbers are written as the strings "inf" and "-inf"; NaN is never written nor read.

A record that changes gets the next version, and an entry in `OLDER` for the one before. Inside another record it has no
tag and is not upgraded: what it gains must have a default, or every record that holds it gets a next version too.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self, cast

from batchopt.errors import RecordError

LARGEST_FILE = 64 * 2**20
_INFINITY = {"inf": math.inf, "-inf": -math.inf}
_ADAPTERS: dict[type[Record], Any] = {}


class Record:
    """A frozen dataclass that round-trips through JSON.

    Attributes:
        SCHEMA: its tag, "batchopt.<name>/<version>".
        OLDER: for the tag of every older version that is still read, what makes this version's keys of its keys; it
            raises RecordError for keys that the older version did not have.
        REMEDY_OF_OLDER: what the file of an older version that is not read lacks, and how to go on.
        REMEDY_OF_OTHER: what to do with the file of another record, by that record's name without its version.
        HELD_BY: key under which the file of another record, by its tag, holds one of this kind, which is read then.
    """

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid"}
    SCHEMA: ClassVar[str]
    OLDER: ClassVar[Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {}
    REMEDY_OF_OLDER: ClassVar[str] = ""
    REMEDY_OF_OTHER: ClassVar[Mapping[str, str]] = {}
    HELD_BY: ClassVar[Mapping[str, str]] = {}

    def to_json(self) -> str:
        """The record as one JSON object, floats exact."""
        fields = _adapter(type(self)).dump_python(self, mode="python")
        return json.dumps({"schema": self.SCHEMA, **_write_numbers(fields)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote, of this version or of one in `OLDER`.

        Raises:
            RecordError: not JSON, another schema, a newer version, an unknown or missing key, a wrong value.
        """
        return cast("Self", _read(cls, text))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record to `path`, whole or not at all."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises:
            RecordError: as `from_json`, or the file is missing, unreadable or larger than 64 MiB.
        """
        try:
            return cls.from_json(read_text(path))
        except RecordError as error:
            raise RecordError(f"{os.fspath(path)}: {error}") from None


Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""The keys of an older version -> those of the next."""


def gained(*keys: str) -> Upgrade:
    """The upgrade to a version that has more keys than the one before, each with a default."""

    def upgrade(fields: dict[str, Any]) -> dict[str, Any]:
        for key in keys:
            if key in fields:
                raise RecordError(f"{key}: files of this version had no such key")
        return fields

    return upgrade


def json_schema(record: type[Record]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a record's file."""
    schema = _adapter(record).json_schema()
    schema["properties"] = {"schema": {"const": record.SCHEMA}, **schema["properties"]}
    schema["required"] = ["schema", *schema.get("required", [])]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file whole or not at all: a temporary file beside it, flushed to disk, then renamed."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text file of at most 64 MiB.

    Raises:
        RecordError: the file is missing, too large, or not UTF-8 text.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > LARGEST_FILE:
            raise RecordError(f"a record must be at most {LARGEST_FILE} bytes, got {size}")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise RecordError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecordError("is not UTF-8 text, so it is no record of batchopt") from None


def record_name(text: str) -> str | None:
    """Which record a text says it is, "batchopt.plan" for "batchopt.plan/1"; None where it says nothing."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    tag = fields.get("schema") if isinstance(fields, dict) else None
    return tag.rpartition("/")[0] if isinstance(tag, str) else None


def _adapter(record: type[Record]) -> Any:
    from pydantic import TypeAdapter

    if record not in _ADAPTERS:
        _ADAPTERS[record] = TypeAdapter(record)
    return _ADAPTERS[record]


def _read(record: type[Record], text: str) -> Record:
    from pydantic import ValidationError

    try:
        fields = _read_numbers(json.loads(text, parse_constant=_refuse_constant))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"is not valid JSON ({error}); it may have been cut off") from None
    fields = _taken_out(record, fields)
    _check_schema(record, fields)
    tag = fields.pop("schema")
    if tag != record.SCHEMA:
        fields = record.OLDER[tag](fields)
    try:
        return cast("Record", _adapter(record).validate_json(json.dumps(fields), strict=True))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        raise RecordError(f"{record.SCHEMA}: {where}: {first['msg']}") from None


def _taken_out(record: type[Record], fields: Any) -> Any:
    """The fields of a record that the file of another one holds; all others as they are."""
    tag = fields.get("schema") if isinstance(fields, dict) else None
    held = fields.get(record.HELD_BY[tag]) if isinstance(tag, str) and tag in record.HELD_BY else None
    return {**held, "schema": record.SCHEMA} if isinstance(held, dict) else fields


def _check_schema(record: type[Record], fields: object) -> None:
    expected = record.SCHEMA
    tag = fields.get("schema") if isinstance(fields, dict) else None
    if isinstance(tag, str) and (tag == expected or tag in record.OLDER):
        return
    if not isinstance(tag, str) or not tag.startswith("batchopt."):
        raise RecordError(f'expected a JSON object with "schema": "{expected}", got schema {tag!r}')
    name, _, version = expected.rpartition("/")
    got_name, _, got_version = tag.rpartition("/")
    if got_name == name and re.fullmatch("[0-9]{1,9}", got_version):
        if int(got_version) > int(version):
            raise RecordError(f"was written by a newer batchopt ({tag}; this one reads {expected}): upgrade batchopt")
        if record.REMEDY_OF_OLDER:
            lacks = record.REMEDY_OF_OLDER
            raise RecordError(f"was written by an older batchopt ({tag}; this one reads {expected}): {lacks}")
    remedy = record.REMEDY_OF_OTHER.get(got_name, "is it the right file?")
    raise RecordError(f"holds {tag}, expected {expected}: {remedy}")


def _refuse_constant(name: str) -> NoReturn:
    raise RecordError(f"{name} is not allowed in a record")


def _write_numbers(value: object) -> Any:
    if isinstance(value, float):
        if math.isnan(value):
            raise RecordError("NaN is not allowed in a record")
        return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, str) and value in _INFINITY:
        raise RecordError(f"the text {value!r} is not allowed in a record, where it stands for an infinite number")
    if isinstance(value, dict):
        return {key: _write_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_write_numbers(item) for item in value]
    return value


def _read_numbers(value: object) -> Any:
    if isinstance(value, str):
        return _INFINITY.get(value, value)
    if isinstance(value, dict):
        return {key: _read_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_read_numbers(item) for item in value]
    return value
