"""`vicuna eval run`: two small models, served by the command itself, answer and are judged by one of them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ray_apps.cli import vicuna
from ray_apps.evaluate.records import Evaluation
from tests import tiny
from tests.ray_apps.serve.endpoint import serve_environment

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


def test_base_and_tuned_answer_and_are_judged(tmp_path: Path) -> None:
    base, tuned = (tiny.write_model(tmp_path / name, max_position_embeddings=8192) for name in ("base", "tuned"))
    (base / "chat_template.jinja").unlink()  # it is asked by the tuned model's
    questions = tmp_path / "questions.jsonl"
    asked = [{"question_id": f"q{number}", "category": "generic", "text": "Who are you?"} for number in range(2)]
    questions.write_text("\n".join(map(json.dumps, asked)))
    recipe = tmp_path / "recipe.yaml"
    places = {"model": str(base), "output": str(tuned), "dataset": "no-dataset", "run_dir": "no-run"}
    judge = {"max_tokens": 1600, "repeats": 1}
    settings = {"output": str(tmp_path / "eval"), "questions": str(questions), "max_tokens": 12, "judge": judge}
    recipe.write_text(json.dumps({"train": places, "eval": settings}))
    with serve_environment():
        done = CliRunner().invoke(vicuna, ["eval", "run", str(recipe)], catch_exceptions=False)
    assert done.exit_code == 0
    evaluation = Evaluation(tmp_path / "eval")
    assert evaluation.models() == ["base", "tuned"]
    verdicts = evaluation.verdicts()
    assert len(verdicts) == 2 * 2 + 2 * 2
    assert all(
        json.loads(one.text).keys() == {"explanation", "verdict" if one.kind == "pair" else "score"} for one in verdicts
    )
    assert "Smoke test" in (tmp_path / "eval" / "report.md").read_text()
