"""Reasoning traces that the project ships: reasoning-gym problems, answered with a thought by a model at hand.

    forward-influence models pull qwen2.5-coder-1.5b
    python benchmarks/reasoning_traces.py --model qwen2.5-coder-1.5b --out data/reasoning-traces.jsonl

Greedy decoding, from problems whose seeds are counted up from --seed. The model's turn is begun with "<think>"; a
trace is kept where the thought ends, has --least tokens or more, and an answer follows. Each line: the question, the
conversation (`messages`), the reference answer, whether the answer's last number equals it, and what made it. Stopped,
it goes on with the batch behind its last line.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import reasoning_gym
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from forward_influence.models.catalog import named_model
from forward_influence.models.store import checked_folder

#: Of reasoning-gym, in the order in which they take turns; with settings that a small model can follow.
PROBLEMS: list[tuple[str, dict[str, Any]]] = [
    ("gsm_symbolic", {}),
    ("chain_sum", {"min_terms": 4, "max_terms": 6, "min_digits": 2, "max_digits": 2}),
    ("gsm_symbolic", {}),
    ("simple_equations", {}),
    ("leg_counting", {"min_animals": 3, "max_animals": 5}),
    ("time_intervals", {}),
]
SYSTEM = (
    "You solve problems. First think step by step inside <think> and </think>: write down every calculation there, "
    "with its numbers and its result. After </think>, explain to the user in two or three sentences how the result "
    "comes about, and end with: The answer is"
)
BEGIN = "<think>\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--traces", type=int, default=24, help="lines to write")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--least", type=int, default=64, help="tokens of the shortest thought that is kept")
    parser.add_argument("--most", type=int, default=384, help="tokens that the model may write")
    parser.add_argument("--batches", type=int, help="stop after so many; default: when all traces are there")
    parser.add_argument("--dtype", default="bfloat16")
    return parser.parse_args()


def problem(seed: int) -> dict[str, Any]:
    """One problem; a data set of one, for some of reasoning-gym's draw something for all entries."""
    name, settings = PROBLEMS[seed % len(PROBLEMS)]
    entry = reasoning_gym.create_dataset(name, size=1, seed=seed, **settings)[0]
    return {"problem": name, "problem_seed": seed, "question": entry["question"].strip(), "reference": entry["answer"]}


def split(written: str) -> tuple[str, str] | None:
    """Thought and answer of what the model wrote after BEGIN; None where one is missing."""
    thought, mark, answer = written.partition("</think>")
    return (thought.strip(), answer.strip()) if mark and thought.strip() and answer.strip() else None


def is_right(answer: str, reference: str) -> bool:
    """Whether an answer ends with the reference, or the last thing of its kind in the answer is it."""
    if answer.rstrip(" .").lower().endswith(reference.lower()):
        return True
    kind = r"-?\d[\d,]*(?:[.:]\d+)*" if re.search(r"\d", reference) else r"[A-Za-z]+"
    found = re.findall(kind, answer)
    if not found:
        return False
    return found[-1].replace(",", "").lower() == reference.lower()


@torch.no_grad()
def main() -> None:
    asked = parse()
    named = named_model(asked.model)
    folder = checked_folder(named)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, asked.dtype))
    lines = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    kept = len(lines)
    last = max((line["problem_seed"] - asked.seed for line in lines), default=-1)
    count = begun = -(-(last + 1) // asked.batch) * asked.batch
    generator = {"model": named.hub, "gguf_sha256": named.gguf_sha256, "dtype": asked.dtype, "decoding": "greedy"}
    while kept < asked.traces and (asked.batches is None or count < begun + asked.batches * asked.batch):
        entries = [problem(asked.seed + i) for i in range(count, count + asked.batch)]
        count += asked.batch
        said = [
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": entry["question"]}] for entry in entries
        ]
        texts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) + BEGIN for one in said]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        started = time.perf_counter()
        output = model.generate(
            **batch, max_new_tokens=asked.most, do_sample=False, temperature=None, top_p=None, top_k=None,
            repetition_penalty=1.0, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        written = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        with asked.out.open("a", encoding="utf-8") as file:
            for entry, turns, text in zip(entries, said, written, strict=True):
                parts = split(text)
                if parts is None or len(tokenizer(parts[0])["input_ids"]) < asked.least or kept == asked.traces:
                    continue
                thought, answer = parts
                content = f"{BEGIN}{thought}\n</think>\n\n{answer}"
                line = {
                    "id": f"{entry['problem']}-{entry['problem_seed']}",
                    **entry,
                    "messages": [*turns, {"role": "assistant", "content": content}],
                    "correct": is_right(answer, entry["reference"]),
                    "generator": generator,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                kept += 1
        print(f"{kept} kept of {count}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
