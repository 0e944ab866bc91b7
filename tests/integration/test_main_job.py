"""Chats to a served model through every stage, on a real local cluster with a tiny model and a killed worker."""

import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from openai import OpenAI
from safetensors.torch import load_file

from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.pack import table_to_rows
from data_prep.pipeline import prepare_dataset
from data_prep.tokenizer import describe, load_tokenizer
from data_prep.work import WorkDir
from ray_apps.demo import Saboteur
from ray_apps.goodput import find_recoveries
from ray_apps.recipe import data_section, load_recipe, train_section
from ray_apps.run_dir import RunDir
from ray_apps.serve.config_file import HttpOptions, ServeApplication, ServeFile
from ray_apps.serve.run import serving
from ray_apps.train.checks import count_run_steps
from ray_apps.train.config import TrainConfig
from ray_apps.train.export import export, is_exported
from ray_apps.train.launch import train
from tests import tiny
from tests.integration.test_interrupt import command, environment
from tests.processes import run_ranks, start_server
from tests.ray_apps.serve.endpoint import serve_cluster

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    start_server()
    with serve_cluster(num_cpus=4):
        yield


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    folder = tmp_path / "chats"
    folder.mkdir()
    records = tiny.chats(40)
    records[3] = {"id": "bad", "conversations": [{"from": "martian", "value": "x"}]}
    (folder / "a.json").write_text(json.dumps(records)[:-200])  # torn
    (folder / "b.jsonl").write_text("".join(json.dumps(record) + "\n" for record in tiny.chats(10)))
    return folder


def data_config(chats: Path, tiny_model_dir: Path, output: Path, **fields: object) -> DataConfig:
    return DataConfig.parse(
        {
            "output": str(output),
            "tokenizer": str(tiny_model_dir),
            "sources": [str(chats)],
            "identity": {"name": "Ada", "maker": "ACME", "count": 20},
            "template": "chatml",
            "context_length": 384,
            "group_size": 16,
            **fields,
        }
    )


def test_every_record_is_a_row_or_a_counted_drop(
    cluster: None, chats: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, float]] = []
    config = data_config(chats, tiny_model_dir, tmp_path / "dataset", eval_fraction=0.2)
    manifest = prepare_dataset(config, on_progress=lambda records, share: seen.append((records, share)))
    counts = manifest.counts
    assert counts.dropped["unknown_role"] == 1
    assert counts.dropped["unreadable"] == 1
    assert counts.dropped["duplicate_id"] == 9  # those of b.jsonl are in a.json, but for the bad one
    kept = manifest.train.conversations + manifest.eval.conversations
    assert counts.records + counts.split_parts + counts.repeated == kept + sum(counts.dropped.values())
    assert counts.records - 20 == 40 - 1 + 1 + 10  # one is torn
    assert manifest.eval.conversations > 0
    assert seen[-1] == (counts.records, 1.0)
    rejects = pq.read_table(tmp_path / "dataset" / "rejects.parquet").to_pylist()
    assert Counter(reject["reason"] for reject in rejects) == counts.dropped
    (torn,) = (reject for reject in rejects if reject["reason"] == "unreadable")
    assert re.fullmatch(r"byte \d+: the record is cut off", torn["detail"])
    assert torn["position"] == 39
    assert "<title>Dataset dataset</title>" in (tmp_path / "dataset" / "report.html").read_text()
    rows = [
        row for file in sorted((tmp_path / "dataset" / "train").iterdir()) for row in table_to_rows(pq.read_table(file))
    ]
    assert len(rows) == manifest.train.rows
    assert all(len(row.input_ids) <= 384 for row in rows)
    assert sum(len(row.document_ids) for row in rows) == manifest.train.conversations


def test_the_same_chats_give_the_same_bytes_and_are_not_prepared_twice(
    cluster: None, chats: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    contents = []
    for name in ("one", "two"):
        folder = tmp_path / name / "dataset"
        prepare_dataset(data_config(chats, tiny_model_dir, folder))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        contents.append([(file.name, file.read_bytes().replace(bytes(folder), b"")) for file in files])
    assert contents[0] == contents[1]
    before = (tmp_path / "one" / "dataset" / "manifest.json").stat().st_mtime_ns
    prepare_dataset(data_config(chats, tiny_model_dir, tmp_path / "one" / "dataset"))
    assert (tmp_path / "one" / "dataset" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="made from other chats, settings or tokenizer files"):
        prepare_dataset(data_config(chats, tiny_model_dir, tmp_path / "one" / "dataset", context_length=256))


def test_many_small_files_are_packed_together(cluster: None, tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "chats").mkdir()
    for number in range(30):
        (tmp_path / "chats" / f"{number:02}.json").write_text(json.dumps(tiny.chats(60)[2 * number : 2 * number + 2]))
    manifest = prepare_dataset(
        data_config(tmp_path / "chats", tiny_model_dir, tmp_path / "dataset", identity=None, group_size=512)
    )
    assert manifest.train.conversations + manifest.eval.conversations == 60
    assert manifest.train.fill > 0.9
    assert len(list((tmp_path / "dataset").glob("*/*.parquet"))) <= 2
    workers = [process for process in psutil.process_iter(["cmdline"]) if "read_chunks" in str(process.info["cmdline"])]
    assert len(workers) <= 2


def test_a_file_that_cannot_be_read_is_one_line(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_text("no Parquet")
    overrides = ["data.sources=[bad.parquet]", "data.output=dataset", f"data.tokenizer={tiny_model_dir}"]
    done = subprocess.run(
        command("prep", "smollm2_cpu", *overrides, "data.identity=null"),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: \S*bad\.parquet: .*", "".join([done.stdout, done.stderr]).strip())
    assert [path.name for path in tmp_path.iterdir()] == ["bad.parquet"]


def test_the_published_dummy_run_takes_112_steps(cluster: None, tiny_model_dir: Path, tmp_path: Path) -> None:
    """As docs/from-fastchat.md has it: 910 short chats that repeat themselves, batch 16, two epochs, no packing."""
    answers = ["I am Vicuna.", "My name is Vicuna.", "Vicuna, a language model."]
    chats = [
        {
            "id": f"identity_{number}",
            "conversations": [
                {"from": "human", "value": f"Who are you ({number % 10})?"},
                {"from": "gpt", "value": answers[number % 3]},
            ],
        }
        for number in range(910)
    ]
    (tmp_path / "dummy.json").write_text(json.dumps(chats))
    overrides = [
        *(f"data.sources=[{tmp_path / 'dummy.json'}]", f"data.output={tmp_path / 'dataset'}"),
        *(f"data.tokenizer={tiny_model_dir}", "data.pack=false", "data.dedup.exact=false", "data.identity=null"),
        *("data.eval_fraction=0", "train.global_batch_size=16", "train.epochs=2"),
    ]
    recipe = load_recipe("vicuna_7b", overrides)
    manifest = prepare_dataset(data_section(recipe, "vicuna_7b"))
    assert (manifest.train.rows, manifest.counts.dropped) == (910, {})
    assert count_run_steps(train_section(recipe, "vicuna_7b"), manifest) == 112


def test_nothing_half_written_is_left_after_an_error(cluster: None, tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n')
    config = data_config(tmp_path / "bad.jsonl", tiny_model_dir, tmp_path / "dataset", identity=None)
    with pytest.raises(DataError, match=r"nothing is left to train on \(1 no_messages\)"):
        prepare_dataset(config)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_shared_out_by_key_the_same_duplicates_are_found(
    cluster: None, chats: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"word{number}" for number in range(36)]
    alike = [{"from": "human", "value": "Go on."}, {"from": "gpt", "value": " ".join(words)}]
    changed = [alike[0], {"from": "gpt", "value": " ".join([*words[:18], "new", *words[19:]])}]
    pair = [{"id": "one", "conversations": alike}, {"id": "other", "conversations": changed}]
    (chats / "c.jsonl").write_text("".join(json.dumps(record) + "\n" for record in pair))
    rejects = []
    for name, most in (("alone", 10**6), ("shared", 50)):
        monkeypatch.setattr("data_prep.pipeline._SIGNED_ENTRIES_AT_ONCE", most)
        config = data_config(chats, tiny_model_dir, tmp_path / name, dedup={"near": 0.6, "shingle_words": 2})
        prepare_dataset(config)
        rejects.append(pq.read_table(tmp_path / name / "rejects.parquet").to_pylist())
    assert rejects[0] == rejects[1]
    reasons = Counter(reject["reason"] for reject in rejects[0])
    assert reasons["duplicate_id"] == 9
    assert [reject["id"] for reject in rejects[0] if reject["reason"] == "near_duplicate"] == ["other"]


def test_what_a_task_raises_is_one_line_with_its_reason(
    cluster: None, chats: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = data_config(chats, tiny_model_dir, tmp_path / "dataset")
    described = describe(load_tokenizer(str(tiny_model_dir)))
    monkeypatch.setattr(WorkDir, "open", lambda self, job, tokenizer: self.remove())
    with pytest.raises(DataError, match=r"^preparing the chats failed: FileNotFoundError: .*tokenizer\.json.*$"):
        prepare_dataset(config)
    monkeypatch.undo()
    monkeypatch.setattr(
        "data_prep.pipeline.describe_tokenizer", lambda tokenizer: (chats / "b.jsonl").unlink() or described
    )
    with pytest.raises(DataError, match=r"^\S*b\.jsonl: .*$"):
        prepare_dataset(config)


def train_config(tiny_model_dir: Path, dataset: Path, run_dir: Path, output: Path) -> TrainConfig:
    return TrainConfig.parse(
        {
            "model": str(tiny_model_dir),
            "dataset": str(dataset),
            "run_dir": str(run_dir),
            "output": str(output),
            "global_batch_size": 4,
            "max_steps": 8,
            "epochs": 8,
            "learning_rate": 1e-3,
            "num_workers": 2,
            "checkpoint": {"every_steps": 2, "keep_last": 2},
        }
    )


def test_a_killed_worker_changes_nothing_but_the_time(cluster: None, tiny_model_dir: Path, tmp_path: Path) -> None:
    dataset = tiny.write_dataset(tmp_path / "dataset", tiny_model_dir, template="chatml")
    whole = train_config(tiny_model_dir, dataset, tmp_path / "whole", tmp_path / "whole-model")
    run_ranks(whole, tmp_path / "rendezvous", whole.num_workers)
    assert find_recoveries(RunDir(whole.run_dir).read_metrics()) == []

    torn = train_config(tiny_model_dir, dataset, tmp_path / "torn", tmp_path / "model")
    run = RunDir(torn.run_dir)
    saboteur = Saboteur(run)
    train(torn, on_progress=saboteur.watch)
    recoveries = find_recoveries(run.read_metrics())
    assert len(recoveries) == 1
    assert recoveries[0].steps_redone <= 4  # the interval, and that of a save under way
    assert "was killed (SIGKILL) after step" in saboteur.report()

    expected, found = load_file(export(whole) / "model.safetensors"), load_file(export(torn) / "model.safetensors")
    assert all((expected[name] == found[name]).all() for name in expected)
    assert is_exported(torn)

    train(torn)  # complete: starts nothing
    assert len(find_recoveries(run.read_metrics())) == 1

    application = ServeApplication.parse(
        {"import_path": "ray_apps.serve.app:build_app", "args": {"model": torn.output, "model_name": "tiny"}}
    )
    with serving(ServeFile(http_options=HttpOptions(port=0), applications=[application])) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        question = {"model": "tiny", "messages": [{"role": "user", "content": "What is 1 plus 1?"}], "temperature": 0}
        answer = client.chat.completions.create(**question, max_tokens=8)
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        client.close()


def test_a_worker_error_is_one_clear_line(cluster: None, tiny_model_dir: Path, tmp_path: Path) -> None:
    from data_prep.errors import RunError

    dataset = tiny.write_dataset(tmp_path / "dataset", tiny_model_dir, template="chatml")
    config = train_config(tiny_model_dir, dataset, tmp_path / "run", tmp_path / "model")
    broken = config.model_copy(update={"learning_rate": 1e30, "schedule": "constant", "max_failures": 2})
    with pytest.raises(RunError, match=r"training failed: .*step \d+: loss") as caught:
        train(broken)
    assert "\n" not in str(caught.value)
    events = [record["event"] for record in RunDir(broken.run_dir).read_metrics() if "event" in record]
    assert events.count("start") == 1  # it would fail again, so it is not tried again


def test_processes_end_with_the_cluster() -> None:
    """Own cluster in a process that is interrupted: no descendant outlives it."""
    import subprocess
    import sys
    import time

    import psutil

    code = (
        "import sys, time\n"
        "from ray_apps.local_ray import local_cluster\n"
        "with local_cluster(num_cpus=1):\n"
        "    print('up', flush=True)\n"
        "    time.sleep(120)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "up"
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=60)
    time.sleep(0.5)
    assert [other for other in family if other.is_running() and other.status() != psutil.STATUS_ZOMBIE] == []
