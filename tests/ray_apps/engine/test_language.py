from pathlib import Path

import pytest
from transformers import LlamaConfig

from data_prep.tokenizer import load_tokenizer
from ray_apps.engine.language import answer_opens_with_space, read_language
from ray_apps.engine.protocol import GenerationRequest, SamplingParams
from tests import tiny


@pytest.mark.parametrize(("template", "opens"), [("vicuna_v1.1", True), ("chatml", False), ("llama-2", True)])
def test_the_space_that_a_template_writes_before_an_answer_is_known(tmp_path: Path, template: str, opens: bool) -> None:
    directory = tiny.write_model(tmp_path, template=template)
    assert answer_opens_with_space(load_tokenizer(str(directory))) is opens


@pytest.mark.parametrize(("goes_on", "text"), [(False, "a b"), (True, " a b")])
def test_the_space_between_a_text_and_what_goes_on_with_it_is_kept(tmp_path: Path, goes_on: bool, text: str) -> None:
    tokenizer = load_tokenizer(str(tiny.write_model(tmp_path, template="vicuna_v1.1")))
    language = read_language(tokenizer, LlamaConfig(vocab_size=len(tokenizer)), None)
    asked = GenerationRequest("id", (5,), SamplingParams(max_tokens=99), goes_on=goes_on)
    answer = language.new_answer(asked)
    told = [answer.push(token) for token in tokenizer(" a b<|im_end|>").input_ids]
    assert "".join(delta.text for delta in told if delta) == text
