"""Settings: one table; flags before environment before file before default; nothing unknown passes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.trust.configuration import FILE_BYTES, load_configuration, settings_from_arguments, value_of, value_text
from cloister.trust.settings import TABLE, TrustSettings, parse_listen


def load(
    tmp_path: Path, text: str | bytes = "", flags: dict[str, Any] | None = None, **environment: str
) -> TrustSettings:
    file = tmp_path / "serve.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_configuration(flags or {}, environment, config=file, data=Path("/d")).settings


def refused(tmp_path: Path, text: str | bytes, **environment: str) -> FormatRefused:
    with pytest.raises(FormatRefused) as caught:
        load(tmp_path, text, **environment)
    return caught.value


class TestTable:
    def test_it_is_about_fields_that_exist(self) -> None:
        known = {item.name for item in fields(TrustSettings)}
        assert {setting.field for setting in TABLE} == known - {"host", "port", "state"} | {"listen", "data"}
        assert all(setting.help and setting.controls for setting in TABLE)
        assert all(setting.flag == "--" + setting.field.replace("_", "-") for setting in TABLE)

    def test_the_reference_page_has_every_key_and_what_it_controls(self, repository: Path) -> None:
        page = (repository / "docs/reference/configuration.md").read_text()
        for setting in TABLE:
            assert f"`{setting.field}`" in page and setting.controls in page, setting.field

    def test_what_gives_protection_up_says_so(self) -> None:
        dangerous = {setting.field for setting in TABLE if "http" in setting.field}
        assert dangerous and all(name.startswith("insecure_") for name in dangerous)


class TestArguments:
    def test_they_are_parsed(self) -> None:
        settings = settings_from_arguments(
            ["--data", "/s", "--listen", "0.0.0.0:7", "--names", "a,b", "--ready-file", "/r", "--die-with-parent"], {}
        )
        assert (settings.state, settings.host, settings.port) == (Path("/s"), "0.0.0.0", 7)  # noqa: S104
        assert settings.names == ("a", "b") and settings.die_with_parent and settings.ready_file == Path("/r")

    def test_defaults(self) -> None:
        settings = settings_from_arguments(["--data", "/s"], {})
        assert settings == TrustSettings(state=Path("/s"))
        assert "10.0.2.2" in settings.names and settings.host == "127.0.0.1" and settings.port == 7070

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--listen", "localhost:1"],
            ["--listen", "127.0.0.1:99999"],
            ["--insecure"],
            ["--dat", "/t"],
            ["--queue", "0"],
            ["--store-seconds", "-1"],
            ["--store-seconds", "nan"],
            ["--client-rate", "inf"],
            ["--names", ","],
            ["--workers", "65"],
            ["--workers", "0"],
        ],
    )
    def test_wrong_ones(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            settings_from_arguments(["--data", "/s", *arguments], {})
        assert caught.value.code == 2 and "error" in capsys.readouterr().err

    def test_no_data_directory(self) -> None:
        with pytest.raises(FormatRefused) as caught:
            settings_from_arguments([], {})
        assert caught.value.code == "trust.settings.data"

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:80", ("::1", 80)), ("10.0.0.1:65535", ("10.0.0.1", 65535))],
    )
    def test_listen(self, text: str, expected: tuple[str, int]) -> None:
        assert parse_listen(text) == expected

    @pytest.mark.parametrize(
        "text", ["", ":1", "1", "127.0.0.1", "127.0.0.1:", "host:1", "127.0.0.1:-1", "127.0.0.1:65536"]
    )
    def test_what_is_no_address(self, text: str) -> None:
        with pytest.raises(FormatRefused) as caught:
            parse_listen(text)
        assert caught.value.code == "trust.settings.listen"


class TestOrder:
    def test_flags_before_environment_before_file_before_default(self, tmp_path: Path) -> None:
        text = "queue = 1\nshutdown_seconds = 1\nconcurrency = 1\n"
        variables = {"CLOISTER_SERVE_QUEUE": "2", "CLOISTER_SERVE_SHUTDOWN_SECONDS": "2", "HOME": "/x"}
        settings = load(tmp_path, text, {"queue": "3"}, **variables)
        assert (settings.queue, settings.shutdown_seconds, settings.concurrency, settings.workers) == (3, 2, 1, 1)

    def test_where_each_came_from(self, tmp_path: Path) -> None:
        file = tmp_path / "c.toml"
        file.write_text("# limits\n\nqueue = 5\n")
        environment = {"CLOISTER_SERVE_SHUTDOWN_SECONDS": "2", "CLOISTER_SERVE_CONFIG": str(file)}
        loaded = load_configuration({"data": "/s"}, environment, config=None)
        origins = {"data": "--data", "shutdown_seconds": "CLOISTER_SERVE_SHUTDOWN_SECONDS", "queue": f"{file}:3"}
        assert loaded.origins == origins

    def test_every_kind_of_value(self, tmp_path: Path) -> None:
        text = (
            'data = "state"\nlisten = "[::1]:9"\nnames = ["a", "b"]\nready_fd = 7\nstore_seconds = 2\n'
            'request_seconds = 1.5\ndie_with_parent = true\ncollateral = "/c"\n'
        )
        settings = load(tmp_path, text)
        assert (settings.state, settings.collateral) == (tmp_path / "state", Path("/c"))
        assert (settings.host, settings.port, settings.names, settings.ready_fd) == ("::1", 9, ("a", "b"), 7)
        assert (settings.store_seconds, settings.request_seconds, settings.die_with_parent) == (2.0, 1.5, True)

    def test_what_is_printed_can_be_read(self, tmp_path: Path) -> None:
        first = TrustSettings(
            state=Path("/d"), names=("x",), store_seconds=2.5, host="::1", port=1, die_with_parent=True
        )
        lines = [f"{row.field} = {value_text(value_of(first, row.field))}" for row in TABLE]
        assert load(tmp_path, "\n".join(line for line in lines if not line.endswith("= "))) == first

    @pytest.mark.parametrize(("text", "expected"), [("true", True), ("0", False)])
    def test_switches_in_the_environment(self, tmp_path: Path, text: str, expected: bool) -> None:
        assert load(tmp_path, CLOISTER_SERVE_INSECURE_HTTP=text).insecure_http is expected


class TestStrictness:
    @pytest.mark.parametrize(
        ("text", "line", "near"),
        [
            ("\n\nstore_second = 3", 3, "store_seconds"),
            ("queue = 1\n[shutdown_x]\na = 1", 2, "shutdown"),
            ('"wörkers" = 3', 1, "workers"),
            ("state = '/x'", 1, "data"),
            ("zzzz = 3", 1, "configuration.md"),
        ],
    )
    def test_an_unknown_key_is_named_with_place_and_nearest(
        self, tmp_path: Path, text: str, line: int, near: str
    ) -> None:
        error = refused(tmp_path, text)
        assert error.code == "trust.settings.unknown_key"
        assert error.path == f"{tmp_path / 'serve.toml'}:{line}" and (near in error.hint or text.startswith("state"))

    @pytest.mark.parametrize(
        "text",
        [
            "queue = '5'",
            "queue = 1.5",
            "queue = true",
            "queue = 0",
            "queue = [1]",
            "store_seconds = '5'",
            "store_seconds = inf",
            "store_seconds = nan",
            "names = 'a,b'",
            "names = []",
            "names = ['a,b']",
            "names = [1]",
            "data = 5",
            "data = ''",
            "die_with_parent = 'true'",
            "die_with_parent = 1",
            "listen = 7070",
            "queue = 2026-01-01",
        ],
    )
    def test_a_value_of_another_type_or_out_of_range(self, tmp_path: Path, text: str) -> None:
        error = refused(tmp_path, text)
        assert error.code == "trust.settings.value" and error.path.endswith(":1")

    @pytest.mark.parametrize("text", ["queue =", b"\xff", "queue = 1\nqueue = 2", "a" * (FILE_BYTES + 1)])
    def test_what_is_no_file_of_settings(self, tmp_path: Path, text: str | bytes) -> None:
        assert refused(tmp_path, text).code == "trust.settings.file"

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable) as caught:
            load_configuration({}, {}, config=tmp_path / "none", data=tmp_path)
        assert caught.value.code == "trust.settings.unreadable"

    @pytest.mark.parametrize(
        ("name", "text", "code"),
        [
            ("CLOISTER_SERVE_QUEU", "1", "trust.settings.unknown_key"),
            ("CLOISTER_SERVE_QUEUE", "", "trust.settings.value"),
            ("CLOISTER_SERVE_QUEUE", "many", "trust.settings.value"),
            ("CLOISTER_SERVE_INSECURE_HTTP", "yes", "trust.settings.value"),
        ],
    )
    def test_a_wrong_variable(self, tmp_path: Path, name: str, text: str, code: str) -> None:
        error = refused(tmp_path, "", **{name: text})
        assert (error.code, error.path) == (code, name)


class TestInsecureHTTP:
    def test_on_loopback_it_needs_one_word(self, tmp_path: Path) -> None:
        assert load(tmp_path, "insecure_http = true").insecure_http

    @pytest.mark.parametrize("address", ["0.0.0.0:1", "192.0.2.1:1", "[::]:1"])
    def test_elsewhere_it_needs_two(self, tmp_path: Path, address: str) -> None:
        text = f'insecure_http = true\nlisten = "{address}"\n'
        with pytest.raises(Refused) as caught:
            load(tmp_path, text)
        assert caught.value.code == "trust.settings.insecure_http"
        assert load(tmp_path, text + "insecure_http_any_address = true").insecure_http
