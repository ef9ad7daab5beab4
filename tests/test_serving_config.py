"""Settings: who wins, what is refused and how it is said, what `--help` and the README show."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serving.config import BackendConfig, EngineConfig, ServerConfig, load_config, settings, settings_table


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    import os

    for name in os.environ:
        if name.startswith("CTM_SERVE_"):
            monkeypatch.delenv(name)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "serve.toml"
    path.write_text(text)
    return str(path)


def value_of(config: ServerConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def test_the_defaults_bind_loopback():
    config = load_config([])
    assert config == ServerConfig()
    assert (config.address, config.http_address, str(config.store)) == (
        "127.0.0.1:50051",
        "127.0.0.1:8080",
        "model_store",
    )


@pytest.mark.parametrize(
    ("file", "environment", "argv", "num_slots"),
    [
        pytest.param("", {}, [], 32, id="default"),
        pytest.param("[engine]\nnum_slots = 2", {}, [], 2, id="file over default"),
        pytest.param(
            "[engine]\nnum_slots = 2", {"CTM_SERVE_ENGINE__NUM_SLOTS": "3"}, [], 3, id="environment over file"
        ),
        pytest.param(
            "[engine]\nnum_slots = 2",
            {"CTM_SERVE_ENGINE__NUM_SLOTS": "3"},
            ["--engine.num-slots", "4"],
            4,
            id="command line over all",
        ),
        pytest.param("[engine]\nnum_slots = 2", {}, ["--engine.num-slots=4"], 4, id="command line over file"),
    ],
)
def test_who_wins(tmp_path, monkeypatch, file, environment, argv, num_slots):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = load_config(["--config", write(tmp_path, file), *argv])
    assert config.engine.num_slots == num_slots


def test_one_table_is_filled_from_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("CTM_SERVE_ENGINE__MAX_ROWS", "5")
    config = load_config(["--config", write(tmp_path, "[engine]\nnum_slots = 2"), "--engine.max-waiting", "7"])
    assert config.engine == EngineConfig(num_slots=2, max_rows=5, max_waiting=7)


def test_the_file_may_be_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CTM_SERVE_CONFIG", write(tmp_path, 'log_format = "json"'))
    assert load_config([]).log_format == "json"


def test_what_others_put_into_the_environment_is_left_alone(monkeypatch):
    """A Kubernetes service named ctm-serve announces itself like this."""
    monkeypatch.setenv("CTM_SERVE_PORT", "tcp://10.0.0.1:50051")
    monkeypatch.setenv("CTM_SERVE_SERVICE_HOST", "10.0.0.1")
    assert load_config([]) == ServerConfig()


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        pytest.param(["--models", "a,b"], "models", ("a", "b"), id="names"),
        pytest.param(["--models", " a , "], "models", ("a",), id="names with spaces"),
        pytest.param(["--models", ""], "models", (), id="no names"),
        pytest.param(["--reflection"], "reflection", True, id="a switch"),
        pytest.param(["--backend.spin", "--no-backend.spin"], "backend.spin", False, id="a switch, off again"),
        pytest.param(["--address", "[::1]:0"], "address", "[::1]:0", id="IPv6"),
        pytest.param(["--address", "ctm.example:65535"], "address", "ctm.example:65535", id="a host"),
        pytest.param(["--grace-seconds", "0"], "grace_seconds", 0.0, id="no grace"),
        pytest.param(["--drain-delay-seconds", "5"], "drain_delay_seconds", 5.0, id="a delay before the drain"),
        pytest.param(["--version-policy", "latest:3"], "version_policy", "latest:3", id="three versions"),
        pytest.param(["--version-policy", "all"], "version_policy", "all", id="all versions"),
        pytest.param(
            ["--backend.kind", "torchscript", "--backend.allow-torchscript"], "backend.kind", "torchscript", id="opt-in"
        ),
        pytest.param(
            ["--backend.providers", "CUDAExecutionProvider,CPUExecutionProvider"],
            "backend.providers",
            ("CUDAExecutionProvider", "CPUExecutionProvider"),
            id="providers",
        ),
    ],
)
def test_a_value_on_the_command_line(argv, key, value):
    assert value_of(load_config(argv), key) == value


def test_lists_in_the_file_and_in_the_environment(tmp_path, monkeypatch):
    assert load_config(["--config", write(tmp_path, 'models = ["a", "b"]')]).models == ("a", "b")
    monkeypatch.setenv("CTM_SERVE_MODELS", "c,d")
    assert load_config([]).models == ("c", "d")


@pytest.mark.parametrize(
    ("file", "environment", "argv", "said"),
    [
        pytest.param(
            "[engine]\nslots = 2", {}, [], "engine.slots: no such setting; there are engine.num_slots", id="unknown key"
        ),
        pytest.param("slots = 2", {}, [], "slots: no such setting; there are address", id="unknown key at the top"),
        pytest.param("", {"CTM_SERVE_ENGINE__SLOTS": "2"}, [], "engine.slots: no such setting", id="unknown variable"),
        pytest.param("", {}, ["--slots", "2"], "unrecognized arguments: --slots 2", id="unknown flag"),
        pytest.param("", {}, ["--engine.num-slot", "2"], "unrecognized arguments", id="half a flag"),
        pytest.param(
            "",
            {},
            ["--engine.num-slots", "0"],
            "engine.num_slots: got '0', expected greater than or equal to 1",
            id="too small",
        ),
        pytest.param(
            "",
            {},
            ["--engine.num-slots", "many"],
            "engine.num_slots: got 'many', expected a valid integer",
            id="no number",
        ),
        pytest.param("", {}, ["--grace-seconds", "nan"], "grace_seconds: got 'nan', expected", id="NaN"),
        pytest.param("", {}, ["--grace-seconds", "inf"], "grace_seconds: got 'inf', expected", id="infinity"),
        pytest.param("engine = 3", {}, [], "engine: got 3, expected a table of settings", id="no table"),
        pytest.param("models = 3", {}, [], "models: got 3, expected a list of names", id="no list"),
        pytest.param(
            'reflection = "perhaps"', {}, [], "reflection: got 'perhaps', expected a valid boolean", id="no truth"
        ),
        pytest.param(
            "",
            {"CTM_SERVE_LOG_FORMAT": "xml"},
            [],
            "log_format: got 'xml', expected 'console' or 'json'",
            id="no choice",
        ),
        pytest.param("", {}, ["--address", "50051"], "address: got '50051', expected HOST:PORT", id="no host"),
        pytest.param("", {}, ["--address", ":50051"], "address: got ':50051', expected HOST:PORT", id="empty host"),
        pytest.param("", {}, ["--address", "localhost:"], "expected HOST:PORT", id="no port"),
        pytest.param("", {}, ["--address", "localhost:70000"], "the port at most 65535", id="no such port"),
        pytest.param(
            "", {}, ["--http-address", "::1:80"], "http_address: got '::1:80', expected HOST:PORT", id="bare IPv6"
        ),
        pytest.param("", {}, ["--http-address", "http://x:80"], "expected HOST:PORT", id="a URL"),
        pytest.param("", {}, ["--version-policy", "newest"], "version_policy: got 'newest', expected", id="no policy"),
        pytest.param(
            "",
            {},
            ["--backend.kind", "torchscript"],
            "expected allow_torchscript along with kind torchscript",
            id="no opt-in",
        ),
        pytest.param("", {}, ["--engine.max-rows", "2000"], "max_rows of at most max_waiting (1024)", id="never fits"),
        pytest.param("[engine", {}, [], "serve.toml: Expected ']'", id="no TOML"),
        pytest.param(
            "", {}, ["--config", "nowhere.toml"], "config: got nowhere.toml, expected a TOML file", id="no file"
        ),
        pytest.param("", {"CTM_SERVE_CONFIG": "/"}, [], "config: got /, expected a TOML file", id="a folder"),
        pytest.param("", {"CTM_SERVE_ENGINE": "{"}, [], 'error parsing value for field "engine"', id="no JSON"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, file, environment, argv, said):
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if file:
        argv = ["--config", write(tmp_path, file), *argv]
    with pytest.raises(SystemExit) as ended:
        load_config(argv)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("usage")]
    assert ended.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("ctm-serve: error: ")
    assert said in lines[0]


def test_every_wrong_setting_is_named(capsys):
    with pytest.raises(SystemExit):
        load_config(["--engine.num-slots", "0", "--log-level", "loud"])
    assert [line.split(": ")[2] for line in capsys.readouterr().err.splitlines()] == ["log_level", "engine.num_slots"]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: EngineConfig(num_slots=0), id="no slots"),
        pytest.param(lambda: EngineConfig(deadline_margin_seconds=-1), id="negative margin"),
        pytest.param(lambda: BackendConfig(kind="torchscript"), id="torchscript without opt-in"),
        pytest.param(lambda: ServerConfig(address="x"), id="no address"),
        pytest.param(lambda: ServerConfig(colour="red"), id="unknown"),
    ],
)
def test_a_configuration_made_in_code_cannot_be_wrong_either(make):
    with pytest.raises(ValidationError):
        make()


def test_a_configuration_made_in_code_reads_no_environment(monkeypatch):
    monkeypatch.setenv("CTM_SERVE_REFLECTION", "true")
    assert not ServerConfig().reflection


def test_a_configuration_does_not_change():
    with pytest.raises(ValidationError):
        ServerConfig().address = "0.0.0.0:1"


def test_help_names_every_setting_with_its_default_and_no_internals(capsys):
    with pytest.raises(SystemExit) as ended:
        load_config(["--help"])
    text = capsys.readouterr().out
    words = " ".join(text.split())
    assert ended.value.code == 0
    for setting in settings():
        assert setting.flag in text
        assert f"{setting.meaning} [{setting.default}]".removesuffix(" []") in words
    assert not re.search(r"tuple|Path\(|==SUPPRESS==|<class|JSON string", text)
    assert max(len(line) for line in text.splitlines()) <= 118


def test_the_settings_table_has_a_row_for_each():
    rows = settings_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [setting.flag for setting in settings()]
    assert all(setting.meaning.endswith(".") for setting in settings()), "a setting says what it is for"
    row = next(row for row in rows if "num-slots" in row)
    assert row == "| `--engine.num-slots` | `CTM_SERVE_ENGINE__NUM_SLOTS` | `32` | Thoughts that tick together. |"


def test_every_setting_can_be_given_in_every_way(tmp_path, monkeypatch):
    """Its own default, read back from each place."""
    defaults = {setting.key: value_of(ServerConfig(), setting.key) for setting in settings()}
    for setting in settings():
        text = setting.default
        argv = [setting.flag, text] if setting.kind else [f"--no-{setting.key.replace('_', '-')}"]
        assert value_of(load_config(argv), setting.key) == defaults[setting.key]
        with monkeypatch.context() as patch:
            patch.setenv(setting.variable, text)
            assert value_of(load_config([]), setting.key) == defaults[setting.key]
        table, _, name = setting.key.rpartition(".")
        path = write(tmp_path, (f"[{table}]\n" if table else "") + f'{name} = "{text}"')
        assert value_of(load_config(["--config", path]), setting.key) == defaults[setting.key]
