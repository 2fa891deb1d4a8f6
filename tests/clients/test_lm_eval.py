"""lm-eval, the evaluation harness, with tasks and data of our own."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.documented import documented_command
from tests.clients.environment import PythonEnvironment

REQUIREMENTS = ["lm_eval[api]>=0.4.9,<0.5", "transformers>=4,<6"]
QUESTIONS = [
    {"question": "Hello world, how are", "choices": [" you", " dog", " fox"], "answer": 0},
    {"question": "The quick brown", "choices": [" you", " today", " fox"], "answer": 2},
    {"question": "jumps over the lazy", "choices": [" dog", " world"], "answer": 0},
]
DATA = """
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
"""
CHOICES = """
task: local_choices
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
target_delimiter: ""
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
GENERATED = """
task: local_generated
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["zz"], max_gen_toks: 8, do_sample: false, temperature: 0}
metric_list: [{metric: exact_match}]
"""
PERPLEXITY = """
task: local_perplexity
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    data = tmp_path / "questions.jsonl"
    data.write_text("\n".join(json.dumps(question) for question in QUESTIONS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for index, task in enumerate((CHOICES, GENERATED, PERPLEXITY)):
        about = DATA.replace("DATA", str(data))
        (folder / f"{index}.yaml").write_text(task + about)
    return folder


def evaluate(
    environment: PythonEnvironment, command: list[str], tasks: Path, names: str
) -> tuple[dict[str, Any], str]:
    """Run a documented command with our tasks in the place of its own; results, and its log."""
    program, *args = command
    args[args.index("--tasks") + 1] = names
    out = tasks.parent / "out"
    cache = {"HF_HOME": str(tasks.parent / "hf")}
    more = ["--include_path", str(tasks), "--output_path", str(out)]
    done = environment.run(program, *args, *more, cwd=tasks.parent, env=cache)
    (results,) = out.rglob("results*.json")
    return json.loads(results.read_text())["results"], done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("tokenizer", ["of the server", "of the model's folder"])
def test_log_likelihoods_and_texts_of_completions(
    served, python_environment, tasks, model_folder, tokenizer
) -> None:
    *command, arguments = documented_command("lm-eval", served.url)
    local = f",tokenizer={model_folder},tokenizer_backend=huggingface"
    remote = tokenizer == "of the server"
    command.append(arguments if remote else arguments + local)
    names = "local_choices,local_generated,local_perplexity"
    results, log = evaluate(python_environment, command, tasks, names)
    assert ("Using remote tokenizer backend" in log) is remote
    assert 0 <= results["local_choices"]["acc,none"] <= 1
    assert results["local_generated"]["exact_match,none"] == 0  # the model's words are random
    assert results["local_perplexity"]["byte_perplexity,none"] > 1


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_texts_of_chats(served, python_environment, tasks) -> None:
    command = documented_command("lm-eval, chats", served.url)
    results, _ = evaluate(python_environment, command, tasks, "local_generated")
    assert results["local_generated"]["exact_match,none"] == 0
