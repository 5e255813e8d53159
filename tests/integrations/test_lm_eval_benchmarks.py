"""A benchmark of the field through the harness: its own task file, on data that the test makes, not the hub's."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from tiny_tokenizer import VOCABULARY, byte_tokenizer

pytest.importorskip("lm_eval")

ITEMS = [
    {"question": "Ann has 3 apples and buys 4 more. How many has she?", "answer": "3 + 4 = 7\n#### 7"},
    {"question": "A box holds 6 eggs. How many do 5 boxes hold?", "answer": "6 * 5 = 30\n#### 30"},
]


def test_gsm8k_is_answered_from_caches_that_are_compressed_as_answers_grow(tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from forward_influence.integrations.lm_eval.model import CompressedModel

    data, task = tmp_path / "gsm8k.jsonl", tmp_path / "gsm8k_here.yaml"
    data.write_text("\n".join(json.dumps(item) for item in ITEMS))
    theirs = files("lm_eval") / "tasks" / "gsm8k" / "gsm8k-cot-zeroshot.yaml"
    task.write_text(
        f"include: {theirs}\ntask: gsm8k_here\ndataset_path: json\ndataset_name: null\ntraining_split: null\n"
        f"fewshot_split: null\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
    )
    tiny_model("llama", torch.float32, vocab_size=VOCABULARY, max_position_embeddings=2048).save_pretrained(tmp_path)
    byte_tokenizer(chat=True).save_pretrained(tmp_path)
    responses = []
    for batch in (1, 2):
        model = CompressedModel(
            pretrained=str(tmp_path),
            compressor="attention",
            budget=0.4,
            every=8,
            device="cpu",
            dtype="float64",
            batch_size=batch,
        )
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=["gsm8k_here"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            gen_kwargs="max_gen_toks=24",
            log_samples=True,
            bootstrap_iters=0,
        )
        samples = found["samples"]["gsm8k_here"]
        responses.append({sample["doc_id"]: sample["resps"] for sample in samples})
        assert {sample["doc"]["question"] for sample in samples} == {item["question"] for item in ITEMS}
        assert found["results"]["gsm8k_here"]["exact_match,flexible-extract"] in (0.0, 0.5, 1.0)
    assert responses[0] == responses[1]
