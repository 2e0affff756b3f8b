"""Where settings come from: flags, environment, configuration file, defaults, in this order, by the one table.

The file is TOML with the names of the table as keys, all on the top level. It is strict: an unknown key, a value of
another type and a value out of range refuse, with place and nearest name. The environment has the same names as
`CLOISTER_SERVE_STORE_SECONDS`; an unknown one refuses as well, because a misspelt limit is no limit. Relative paths in
the file are relative to the file.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import msgspec

from cloister.errors import CloisterError, FormatRefused, Unavailable
from cloister.trust.settings import TABLE, Setting, TrustSettings

PREFIX: Final = "CLOISTER_SERVE_"
CONFIG_VARIABLE: Final = f"{PREFIX}CONFIG"
FILE_BYTES: Final = 64 * 1024  # a configuration file is written by hand
_ROWS: Final = {setting.field: setting for setting in TABLE}
_ATTRIBUTES: Final = {"data": ("state",), "listen": ("host", "port")}
_TYPES: Final = typing.get_type_hints(TrustSettings)
_EMPTY: Final = {item.name: item.default for item in fields(TrustSettings) if item.default in ("", ())}
_SWITCH_WORDS: Final = {"1": True, "true": True, "0": False, "false": False}

Origins = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Settings and where each was found.

    Attributes:
        settings: what to run with.
        origins: field to `flag`, the name of a variable, or file and line; fields at their default are absent.
    """

    settings: TrustSettings
    origins: Origins


def load_configuration(
    flags: Mapping[str, str | bool], environment: Mapping[str, str], *, config: Path | None, data: Path | None = None
) -> Configuration:
    """Return the settings in force.

    Args:
        flags: fields that the command line gave, as text; switches as True.
        environment: variables; those that do not begin with the prefix are ignored.
        config: configuration file; None for the one that the environment names, if any.
        data: state directory when nothing names one.

    Raises:
        Refused: `trust.settings.unknown_key`, `trust.settings.value`, `trust.settings.file`,
            `trust.settings.data`, `trust.settings.insecure_http`.
        Unavailable: the file cannot be read (`trust.settings.unreadable`).
    """
    file = config or (Path(environment[CONFIG_VARIABLE]) if environment.get(CONFIG_VARIABLE) else None)
    values: dict[str, Any] = {} if data is None else {"data": data}  # Any: each field has its own type
    origins: dict[str, str] = {}
    for found, origin in (_from_file(file) if file else ({}, {}), _from_environment(environment), _from_flags(flags)):
        values |= found
        origins |= origin
    if "data" not in values:
        raise FormatRefused("trust.settings.data", "no state directory is named", path="data", hint="give --data DIR")
    arguments: dict[str, Any] = {}  # Any: as above
    for field, value in values.items():
        names = _ATTRIBUTES.get(field, (field,))
        arguments |= dict(zip(names, value, strict=True)) if len(names) > 1 else {names[0]: value}
    return Configuration(settings=TrustSettings(**arguments), origins=origins)


def settings_from_arguments(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> TrustSettings:
    """Parse the command line of `python -m cloister.trust.app`; a usage error ends the process as argparse does.

    Raises:
        Refused: a setting in file or environment is wrong, as `load_configuration`.
        Unavailable: the file cannot be read.
    """
    parser = argparse.ArgumentParser(prog="cloister.trust.app", allow_abbrev=False)
    parser.add_argument("--config", type=Path, default=None, help="configuration file (TOML)")
    for setting in TABLE:
        kind = {"action": "store_true"} if setting.parse is None else {}
        parser.add_argument(
            setting.flag,
            dest=setting.field,
            default=argparse.SUPPRESS,
            help=setting.help,
            **kind,  # type: ignore[arg-type]  # keyword sets of two kinds of option
        )
    given = vars(parser.parse_args(arguments))
    config = given.pop("config")
    try:
        _from_flags(given)
    except CloisterError as err:
        parser.error(str(err))
    return load_configuration(given, os.environ if environment is None else environment, config=config).settings


def value_text(value: object) -> str:
    """Return a setting's value as a configuration file would hold it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int):
        return f'"{_address(*value)}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    return "" if value is None else f'"{value}"'


def value_of(settings: TrustSettings, field: str) -> object:
    """Return what a row of the table stands for in `settings`."""
    if field == "listen":
        return _address(settings.host, settings.port)
    return getattr(settings, _ATTRIBUTES.get(field, (field,))[0])


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _from_flags(flags: Mapping[str, str | bool]) -> tuple[dict[str, Any], dict[str, str]]:  # Any: as above
    values = {field: _parsed(_ROWS[field], text, _ROWS[field].flag) for field, text in flags.items()}
    return values, {field: _ROWS[field].flag for field in flags}


def _from_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:  # Any: as above
    values: dict[str, Any] = {}  # Any: as above
    origins = {}
    for name, text in environment.items():
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE:
            continue
        row = _row(name.removeprefix(PREFIX).lower(), name)
        given: str | bool = text
        if row.parse is None:
            if text.lower() not in _SWITCH_WORDS:
                raise _wrong(name, "true or false", text)
            given = _SWITCH_WORDS[text.lower()]
        values[row.field], origins[row.field] = _parsed(row, given, name), name
    return values, origins


def _from_file(file: Path) -> tuple[dict[str, Any], dict[str, str]]:  # Any: as above
    try:
        with file.open("rb") as stream:
            text = stream.read(FILE_BYTES + 1)
    except OSError as err:
        raise Unavailable(
            "trust.settings.unreadable", f"the configuration file cannot be read: {err.strerror}", path=str(file)
        ) from err
    if len(text) > FILE_BYTES:
        raise FormatRefused(
            "trust.settings.file",
            "the configuration file is too long",
            path=str(file),
            expected=f"at most {FILE_BYTES} bytes",
        )
    try:
        decoded = msgspec.toml.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise FormatRefused("trust.settings.file", "the configuration file is not TOML", path=str(file)) from err
    values: dict[str, Any] = {}  # Any: as above
    origins = {}
    for key, value in decoded.items():
        place = f"{file}:{_line(text, key)}"
        row = _row(key, place)
        values[key] = _parsed(row, _as_flag(row, value, place), place)
        if isinstance(values[key], Path):
            values[key] = file.parent / values[key]
        origins[key] = place
    return values, origins


def _as_flag(row: Setting, value: object, place: str) -> str | bool:
    """Return a TOML value as the text a flag would have, if it has the type of the setting."""
    kind = _TYPES.get(row.field, str)
    allowed: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,)}  # Any: type objects
    if kind == tuple[str, ...]:
        if isinstance(value, list) and value and all(isinstance(item, str) and "," not in item for item in value):
            return ",".join(value)
        if value == [] and row.field in _EMPTY:
            return ""
        raise _wrong(place, "a list of texts", value)
    right = type(value) in allowed.get(kind, (int,) if kind == (int | None) else (str,))
    if not right:
        words = {int: "a whole number", float: "a number", bool: "true or false"}
        raise _wrong(place, words.get(kind, "a text"), value)
    return value if isinstance(value, bool) else str(value)


def _parsed(row: Setting, given: str | bool, place: str) -> Any:  # Any: the type of the field
    if row.parse is None:
        return bool(given)
    if not given and row.field in _EMPTY:
        return _EMPTY[row.field]
    if not given or "\0" in str(given):
        raise _wrong(place, row.help, given)
    try:
        return row.parse(str(given))
    except (ValueError, OverflowError) as err:
        raise _wrong(place, row.help, given) from err


def _row(key: str, place: str) -> Setting:
    if key in _ROWS:
        return _ROWS[key]
    near = difflib.get_close_matches(key, _ROWS, n=1)
    raise FormatRefused(
        "trust.settings.unknown_key",
        f"no such setting: {key[:60]}",
        path=place,
        hint=f"did you mean {near[0]}?" if near else "docs/reference/configuration.md lists them",
    )


def _wrong(place: str, expected: str, actual: object) -> FormatRefused:
    return FormatRefused(
        "trust.settings.value", "not a value of this setting", path=place, expected=expected, actual=str(actual)[:60]
    )


def _line(text: bytes, key: str) -> int:
    """Return the line a top-level key begins on; the first where it cannot be found."""
    pattern = rf"^\s*[\"']?{re.escape(key)}[\"']?\s*[=.]|^\s*\[+\s*[\"']?{re.escape(key)}[\"'\].]"
    for number, line in enumerate(text.decode("utf-8").splitlines(), 1):
        if re.match(pattern, line):
            return number
    return 1
