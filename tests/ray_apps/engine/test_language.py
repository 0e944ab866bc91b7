from pathlib import Path

import pytest

from data_prep.tokenizer import load_tokenizer
from ray_apps.engine.language import answer_opens_with_space
from tests import tiny


@pytest.mark.parametrize(("template", "opens"), [("vicuna_v1.1", True), ("chatml", False), ("llama-2", True)])
def test_the_space_that_a_template_writes_before_an_answer_is_known(tmp_path: Path, template: str, opens: bool) -> None:
    directory = tiny.write_model(tmp_path, template=template)
    assert answer_opens_with_space(load_tokenizer(str(directory))) is opens
