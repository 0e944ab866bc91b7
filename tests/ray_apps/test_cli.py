"""What a person types, and what they are told: every mistake is one line and exit code 1, before Ray is started."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.manifest import MANIFEST_NAME, read_manifest
from ray_apps import cli
from ray_apps.recipe import load_recipe, train_section
from ray_apps.run_dir import RunDir
from tests import tiny

ROOT = Path(__file__).parents[2]
COMMANDS = ["demo", "prep", "train", "export", "serve", "doctor"]

Mistake = Callable[..., list[str]]


@pytest.fixture(scope="module")
def artifacts(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a dataset for it, chats, and a recipe with both of its sections; one more model and dataset."""
    folder = tmp_path_factory.mktemp("artifacts")
    shutil.copytree(tiny_model_dir, folder / "model")
    shutil.copytree(tiny_model_dir, folder / "other-model")
    tiny.sentencepiece_like(legacy=True).save_pretrained(folder / "other-model")
    tiny.write_dataset(folder / "dataset", folder / "model", count=16, template="chatml")
    tiny.write_dataset(folder / "long-dataset", folder / "model", count=16, context_length=1024, template="chatml")
    (folder / "chats.json").write_text(json.dumps(tiny.chats(4)))
    train = {"model": "model", "dataset": "dataset", "run_dir": "run", "output": "tuned", "global_batch_size": 2}
    data = {"output": "new-dataset", "tokenizer": "model", "sources": ["chats.json"], "template": "chatml"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": data, "train": train}))
    application = {"import_path": "ray_apps.serve.app:build_app", "args": {"model": "model"}}
    (folder / "serve.yaml").write_text(yaml.safe_dump({"applications": [application]}))
    (folder / "wrong.yaml").write_text((folder / "serve.yaml").read_text().replace("model:", "modle:"))
    return folder


@pytest.fixture
def vicuna(artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command line in this process, in a folder of its own, where Ray must not be started; gives the exit code."""
    import ray

    folder = tmp_path / "work"
    shutil.copytree(artifacts, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(ray, "init", lambda *args, **options: pytest.fail("Ray was started"))
    for name, value in cli.QUIET.items():
        monkeypatch.setenv(name, os.environ.get(name, value))

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["vicuna", *arguments])
        try:
            cli.main()
        except SystemExit as exit_:
            return int(exit_.code or 0)
        return 0

    return run


@pytest.fixture
def mistake(vicuna: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Mistake:
    """Run a command that must fail; gives its lines on stderr without the `error: ` that each begins with."""

    def run(*arguments: str) -> list[str]:
        capsys.readouterr()
        assert vicuna(*arguments) == 1
        return error_lines(*capsys.readouterr())

    return run


def error_lines(output: str, errors: str) -> list[str]:
    assert "Traceback" not in output + errors
    lines = errors.splitlines()
    assert all(line.startswith("error: ") for line in lines), errors
    return [line.removeprefix("error: ") for line in lines]


def process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own."""
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)], ids=lambda command: " ".join(command))
def test_help_tells_what_a_command_is_for(tmp_path: Path, command: list[str]) -> None:
    done = process(tmp_path, "-m", "ray_apps.cli", *command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
    assert all(name in done.stdout for name in (command or COMMANDS))
    assert not list(tmp_path.iterdir())


def test_help_loads_no_large_library(tmp_path: Path) -> None:
    code = f"""
import sys
from ray_apps import cli
for command in ([], *([name] for name in {COMMANDS})):
    sys.argv = ["vicuna", *command, "--help"]
    cli.main()
print(sorted({{"torch", "ray", "transformers", "pydantic"}} & set(sys.modules)))
"""
    done = process(tmp_path, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Usage: ") == 1 + len(COMMANDS)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_mistake_ends_the_process_with_one_line(tmp_path: Path) -> None:
    done = process(tmp_path, "-m", "ray_apps.cli", "train", "vicuna_70b")
    (line,) = error_lines(done.stdout, done.stderr)
    assert line.startswith("recipe 'vicuna_70b': no such recipe; valid: ")
    assert "smollm2_cpu" in line
    assert (done.returncode, done.stdout) == (1, "")


def test_every_wrong_field_gets_a_line(tmp_path: Path) -> None:
    wrong = ["train.learning_rat=1e-4", "train.epochs=three", "data.pack=3"]
    done = process(tmp_path, "-m", "ray_apps.cli", "prep", "vicuna_7b", *wrong)
    assert done.returncode == 1
    pack, epochs, learning_rate = sorted(error_lines(done.stdout, done.stderr))
    assert pack == "data.pack: 3 is not valid; expected a valid boolean"
    assert epochs == "train.epochs: 'three' is not valid; expected a valid integer"
    assert learning_rate.startswith("train.learning_rat: unknown field; did you mean 'learning_rate'? Valid fields: ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("train nowhere.yaml", "nowhere.yaml: No such file or directory"),
        ("train recipe.yaml train.epoch=1", "train.epoch: unknown field; did you mean 'epochs'? "),
        ("train recipe.yaml train.epochs='3'", "train.epochs: '3' is not valid; expected a valid integer"),
        ("train recipe.yaml train.epochs", "override 'train.epochs': expected section.key=value"),
        ("train recipe.yaml train=null", "recipe 'recipe.yaml': it has no section 'train'"),
        ("prep recipe.yaml data=null", "recipe 'recipe.yaml': it has no section 'data'"),
        ("prep recipe.yaml train.model=3", "train.model: 3 is not valid; expected a valid string"),
        ("prep recipe.yaml data.sources=[nowhere.json]", "nowhere.json: no such file, folder or glob match; valid are"),
        ("prep recipe.yaml --fresh data.sources=[nowhere.json]", "nowhere.json: no such file, folder or glob match"),
        ("prep recipe.yaml data.sources=[serve.yaml]", "serve.yaml: cannot be read; valid are files that end in"),
        ("prep recipe.yaml data.tokenizer=./nowhere", "model './nowhere': no such directory"),
        ("prep recipe.yaml data.tokenizer=other/model", "model 'other/model': not a directory here, and the hub did"),
        ("prep recipe.yaml data.identity.count=99999", "data.identity.count: 99999 is not valid; expected 1 to "),
        ("prep recipe.yaml data.output=chats.json/new", "data.output: 'chats.json/new' is not outside of the source "),
        ("prep recipe.yaml data.output=model", "data.output: 'model' "),
        ("train recipe.yaml train.dataset=nowhere", "train.dataset: dataset 'nowhere': there is no manifest.json"),
        ("train recipe.yaml train.model=nowhere", "model 'nowhere': no such directory"),
        ("train recipe.yaml train.model=dataset", "model 'dataset': the directory has no config.json"),
        (
            "train recipe.yaml train.model=other-model",
            "train.dataset: 'dataset' was made with the tokenizer of '{artifacts}/model', which is not that of "
            "train.model 'other-model'; make it again with `vicuna prep --fresh`",
        ),
        (
            "train recipe.yaml train.dataset=long-dataset",
            "data.context_length: 1024 is more than the 512 tokens that train.model 'model' can attend to",
        ),
        (
            "train recipe.yaml train.global_batch_size=128",
            "train.global_batch_size: 128 is more than the dataset's {rows} rows; valid: 1 to {rows}",
        ),
        (
            "train recipe.yaml train.lora.target_modules=[query]",
            "train.lora.target_modules: the model has no linear layer of its own called query; valid: down",
        ),
        ("train recipe.yaml train.global_batch_size=3 train.num_workers=2", "train.global_batch_size: 3 is not a mult"),
        ("export recipe.yaml", "train.run_dir: 'run' has no complete checkpoint; run `vicuna train` first"),
        ("serve", "serve_config.yaml: No such file or directory"),
        ("serve serve.yaml args.modle=x", "args.modle: unknown field; did you mean 'model'? "),
        ("serve serve.yaml args.engine=vlm", "args.engine: 'vlm' is not valid; expected "),
        ("serve serve.yaml args.model=nowhere", "model directory nowhere does not exist; run `make demo` or set args"),
        (
            "serve serve.yaml args.device=cuda",
            "args.device: 'cuda' is not valid; the cluster has no GPU, so expected 'auto' or",
        ),
        ("serve wrong.yaml", "applications.0.args.modle: unknown field; did you mean 'model'? "),
        ("serve serve.yaml args.model=dataset", "model 'dataset': the directory has no config.json"),
        ("doctor nowhere.yaml", "nowhere.yaml: No such file or directory"),
        ("doctor recipe.yaml train.epoch=1", "train.epoch: unknown field; did you mean 'epochs'? "),
        ("doctor train.num_workers=2", "recipe 'train.num_workers=2': no such recipe; valid: "),
        ("demo data.identity=null", "data.identity: the demo needs a name and a maker"),
        ("demo data.identity.nam=Ada", "data.identity.nam: unknown field; did you mean 'name'? "),
    ],
)
def test_a_mistake_is_one_line_and_ray_is_not_started(
    mistake: Mistake, artifacts: Path, arguments: str, line: str
) -> None:
    rows = read_manifest(artifacts / "dataset").train.rows
    (told,) = mistake(*arguments.split(" "))
    assert told.startswith(line.format(artifacts=artifacts, rows=rows))


@pytest.mark.slow
def test_the_doctor_ends_with_1_if_there_is_a_problem(
    vicuna: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = sorted(Path().rglob("*"))
    assert vicuna("doctor", "recipe.yaml", "--json", "train.use_gpu=false") == 0
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert "problem" not in {check["status"] for check in found.values()}
    assert found["train.model"]["measures"]["checkpoint_bytes"] > 0
    assert vicuna("doctor", "recipe.yaml", "train.use_gpu=false", "train.model=nowhere") == 1
    assert "✗ model        train.model" in capsys.readouterr().out
    assert sorted(Path().rglob("*")) == before


def test_a_recipe_is_no_serve_config(mistake: Mistake) -> None:
    assert [line.partition(":")[0] for line in mistake("serve", "recipe.yaml")] == ["applications", "data", "train"]


def test_a_usage_mistake_shows_the_usage(vicuna: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [(["train"], "Missing argument 'RECIPE'"), (["trian"], "No such command 'trian'")]:
        assert vicuna(*arguments) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("Usage: ")
        assert message in errors


def test_a_taken_port_is_one_line(mistake: Mistake) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        (line,) = mistake("serve", "serve.yaml", "args.engine=fake", f"http_options.port={port}")
    assert line.startswith(f"http_options.port: cannot listen on 127.0.0.1:{port}: Address already in use; 0 takes")


@pytest.mark.parametrize(
    ("file", "change", "arguments", "words"),
    [
        ("recipe.yaml", "a: [", "train recipe.yaml", "recipe.yaml: not valid YAML"),
        ("recipe.yaml", "- a", "prep recipe.yaml", "recipe.yaml: expected a mapping of sections, found list"),
        ("recipe.yaml", "data: 1\ntrain: 2\ndata: 3", "prep recipe.yaml", "line 3: field 'data' appears twice"),
        ("serve.yaml", "applications: {", "serve serve.yaml", "serve.yaml: not valid YAML"),
        (f"dataset/{MANIFEST_NAME}", "{", "train recipe.yaml", "manifest.json: not valid JSON"),
        (f"dataset/{MANIFEST_NAME}", "{}", "train recipe.yaml", "not a dataset manifest of this version"),
        ("model/config.json", "{", "train recipe.yaml", "model 'model': "),
        ("model/config.json", '{"model_type": "nonsense"}', "train recipe.yaml", "model type `nonsense`"),
        (
            "model/config.json",
            '{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 3}',
            "train recipe.yaml",
            "model 'model': config.json: The hidden size (64) is not a multiple of the number of attention heads (3)",
        ),
        ("model/tokenizer.json", "{", "train recipe.yaml", "model 'model': no usable tokenizer"),
        ("model/tokenizer.json", "{", "prep recipe.yaml", "model 'model': no usable tokenizer"),
    ],
)
def test_a_broken_file_is_one_line(mistake: Mistake, file: str, change: str, arguments: str, words: str) -> None:
    Path(file).write_text(change)
    (line,) = mistake(*arguments.split(" "))
    assert words in line


def test_a_dataset_of_another_version_is_refused(mistake: Mistake) -> None:
    path = Path("dataset") / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "row_schema_version": 999}))
    (line,) = mistake("train", "recipe.yaml")
    assert line.startswith("train.dataset: 'dataset' has rows of version 999")


def test_a_plan_needs_no_weights_and_no_dataset(
    vicuna: Callable[..., int], mistake: Mistake, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in Path("model").glob("*.safetensors"):
        path.unlink()
    shutil.rmtree("dataset")
    arguments = ["train", "plan", "recipe.yaml", "--num-gpus", "2", "train.global_batch_size=8"]
    assert vicuna(*arguments, "--gpu", "l4", "--rows", "80", "--price", "1", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["num_gpus"], planned["num_steps"], planned["fits"]) == (2, 30, True)
    assert planned["config_source"] == "model/config.json"
    (line,) = mistake(*arguments, "--gpu", "l5")
    assert line.startswith("--gpu: 'l5' is not known; valid: ")
    (line,) = mistake(*arguments[:4], "3", "--gpu", "l4")
    assert line.startswith("train.global_batch_size: 2 is not a multiple of")


def begin_run(**overrides: Any) -> RunDir:
    """A run of the recipe that has begun."""
    from ray_apps.train.receipt import run_receipt

    settings = [f"train.{name}={value}" for name, value in overrides.items()]
    config = train_section(load_recipe("recipe.yaml", settings), "recipe.yaml")
    run = RunDir(config.run_dir)
    run.check_receipt(run_receipt(config, read_manifest(config.dataset)))
    return run


def test_a_run_directory_of_another_run_is_refused(mistake: Mistake) -> None:
    begin_run()
    (line,) = mistake("train", "recipe.yaml", "train.learning_rate=1e-3", "train.seed=7")
    assert "holds a run made with other settings: learning_rate (2e-05 → 0.001), seed (42 → 7)" in line


def test_a_finished_run_with_other_settings_is_not_taken_for_done(mistake: Mistake) -> None:
    run = begin_run(max_steps=1)
    run.take_over("a1")
    (Path(run.begin_checkpoint(1, "a1").path) / "shard-0").write_bytes(b"weights")
    run.commit_checkpoint(1, "a1", {"shard-0": {"bytes": 7, "sha256": ""}})
    (line,) = mistake("train", "recipe.yaml", "train.max_steps=1", "train.learning_rate=1e-3")
    assert "holds a run made with other settings: learning_rate" in line


def test_starting_over_deletes_nothing_when_the_run_could_not_start(mistake: Mistake) -> None:
    run = begin_run()
    assert mistake("train", "recipe.yaml", "--fresh", "train.dataset=nowhere")
    assert run.has_receipt()


@pytest.mark.ray
def test_a_file_where_a_directory_must_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "ray_apps.cli", "prep", "smollm2_cpu", "data.output=file/dataset"]
    command += [f"data.tokenizer={tiny.write_model(tmp_path / 'model')}", "data.identity.count=5"]
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
