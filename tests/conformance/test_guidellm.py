import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import KEY, Programs, Served

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NUM_REQUESTS = 8
NUM_TOKENS = 10


def test_every_request_of_a_load_is_answered_with_as_many_tokens_as_it_asks_for(
    programs: Programs, served: Served, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    programs.run(
        "guidellm",
        "run",
        *("--backend", f"kind=openai_http,target={served.url},model=tiny,api_key={KEY}"),
        *("--tokenizer", f"kind=huggingface_auto,model={served.directory}"),
        *("--data", f"kind=synthetic_text,prompt_tokens=40,output_tokens={NUM_TOKENS}"),
        *("--profile", "kind=concurrent,streams=4", "--constraint", f"kind=max_requests,count={NUM_REQUESTS}"),
        *("--output", f"kind=json,path={report}", "--disable-console"),
        GUIDELLM__MAX_WORKER_PROCESSES="1",
    )
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    requests: dict[str, list[Any]] = benchmark["requests"]
    assert (requests["incomplete"], requests["errored"]) == ([], [])
    counts = [(one["prompt_tokens"], one["output_tokens"]) for one in requests["successful"]]
    assert len(counts) == NUM_REQUESTS
    assert {num_output for _, num_output in counts} == {NUM_TOKENS}
    assert min(num_prompt for num_prompt, _ in counts) >= 40
