from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from data_prep.errors import ConfigError
from ray_apps.serve.config import ServeArgs
from ray_apps.serve.config_file import load_serve_file
from ray_apps.serve.policy import Page

OURS = Path(__file__).parents[3] / "serve_config.yaml"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    return path


def test_the_file_at_the_top_level_is_valid_for_serve_and_for_us() -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(OURS.read_text()))
    assert (schema.http_options.host, schema.http_options.port) == ("127.0.0.1", 8000)
    (application,) = schema.applications
    assert (application.name, application.route_prefix) == ("chat", "/")
    assert application.import_path == "ray_apps.serve.app:build_app"
    file = load_serve_file(OURS)
    assert file.application.args == ServeArgs.model_validate(application.args)
    assert file.application.args == ServeArgs(num_replicas=1, page=Page(is_shown="auto"))


def test_overrides_change_single_fields() -> None:
    overrides = ["args.model=/m", "args.max_model_len=128", "http_options.port=0"]
    file = load_serve_file(OURS, overrides)
    assert file.application.args == ServeArgs(model="/m", max_model_len=128, num_replicas=1, page=Page(is_shown="auto"))
    assert (file.http_options.host, file.http_options.port) == ("127.0.0.1", 0)


def test_a_short_file_is_enough(tmp_path: Path) -> None:
    file = load_serve_file(write(tmp_path, "applications: [{import_path: ray_apps.serve.app:build_app}]"))
    assert file.application.args == ServeArgs()
    assert file.http_options.port == 8000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("engine:", "engin:", r"applications\.0\.args\.engin: unknown field; did you mean 'engine'\?"),
        ("port:", "prot:", r"http_options\.prot: unknown field; did you mean 'port'\?"),
        ("port: 8000", "port: 80000", r"http_options\.port: 80000 is not valid"),
        ("port: 8000", "request_timeout_s: 9", r"^http_options: Serve's .*; set args\.request_timeout_s instead$"),
        ("host: 127.0.0.1", "host: 1", r"http_options\.host: 1 is not valid"),
        ("name: chat", "title: chat", r"applications\.0\.title: unknown field"),
        ("route_prefix: /", "route_prefix: chat", r"applications\.0\.route_prefix: 'chat' is not valid"),
        ("ray_apps.serve.app:build_app", "other:app", r"applications\.0\.import_path: 'other:app' is not valid"),
        ("applications:", "application:", r"application: unknown field; did you mean 'applications'\?"),
        ("applications:", "applications: []\nproxy_location:", r"applications: \[\] is not valid"),
        ("    args:", "    args: 3\nproxy_location:", r"applications\.0\.args: 3 is not valid"),
        ("http_options:", "http_options: 3\nproxy_location:", r"http_options: 3 is not valid"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = OURS.read_text()
    assert old in text
    with pytest.raises(ConfigError, match=message):
        load_serve_file(write(tmp_path, text.replace(old, new, 1)))


def test_what_is_no_serve_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_serve_file(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_serve_file(write(tmp_path, "- a"))
    with pytest.raises(ConfigError, match="override model: unknown section"):
        load_serve_file(OURS, ["model=x"])
    with pytest.raises(ConfigError, match=r"args\.modle: unknown field; did you mean 'model'\?"):
        load_serve_file(OURS, ["args.modle=x"])
