"""TRL trains by GRPO on answers that its own vLLM client draws from the server, which gets the new
weights after every step.

TRL hands weights to vLLM by NCCL, through vLLM's own package; here they go through SGLang's door.
Its client refuses to be made without that package, of which drawing needs nothing.
"""

import json
from pathlib import Path

import pytest

from tests.support.rl_models import END_TOKEN, write_text_model
from tests.support.served import serving

REQUIREMENTS = ["trl>=1.16,<2"]
SHARES = True
STEPS, ANSWERS = 3, 4
SCRIPT = """
import json, sys, tempfile
import httpx, torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.generation import vllm_client

url, folder, steps, answers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
vllm_client.is_vllm_available = lambda *given: True
client = vllm_client.VLLMClient(base_url=url, connection_timeout=10)
tokenizer = AutoTokenizer.from_pretrained(folder)
seen = []

def told_by(model, ids, count):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    table = torch.log_softmax(logits.float(), dim=-1)[-count - 1 : -1]
    return table.gather(1, torch.tensor(ids[-count:])[:, None])[:, 0].tolist()

def rollout(prompts, trainer):
    step = trainer.state.global_step
    if step:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as new:
            trainer.model.save_pretrained(new)
            body = {"model_path": new, "weight_version": f"step-{step}"}
            httpx.post(f"{url}/update_weights_from_disk", json=body, timeout=60).raise_for_status()
    drawn = client.generate(prompts[::answers], n=answers, max_tokens=8)
    version = httpx.get(f"{url}/weight_version").json()["weight_version"]
    prompt_ids = [ids for ids in drawn["prompt_ids"] for _ in range(answers)]
    logprobs = [[places[0] for places in answer] for answer in drawn["logprobs"]]
    far = [
        abs(ours - theirs)
        for prompt, answer, told in zip(prompt_ids, drawn["completion_ids"], logprobs, strict=True)
        for ours, theirs in zip(told, told_by(trainer.model, prompt + answer, len(answer)))
    ]
    seen.append({"version": version, "answers": drawn["completion_ids"], "far": max(far)})
    answer_ids = drawn["completion_ids"]
    return {"prompt_ids": prompt_ids, "completion_ids": answer_ids, "logprobs": logprobs}

def even(completion_ids, **others):
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]

trainer = GRPOTrainer(
    folder,
    reward_funcs=even,
    rollout_func=rollout,
    processing_class=tokenizer,
    train_dataset=Dataset.from_dict({"prompt": ["ab", "cd", "ef", "gh"]}),
    args=GRPOConfig(
        output_dir="out", use_cpu=True, bf16=False, max_steps=steps,
        per_device_train_batch_size=2 * answers,
        num_generations=answers, max_completion_length=8, learning_rate=3e-3, report_to="none",
        save_strategy="no", disable_tqdm=True,
    ),
)
trainer.train()
print(json.dumps({"seen": seen, "chat": client.chat(
    [[{"role": "user", "content": "ab"}]], max_tokens=3
)["completion_ids"]}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_trl_trains_on_what_the_server_draws(python_environment, tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "model")
    (tmp_path / "script.py").write_text(SCRIPT)
    with serving(str(folder), "--served-model-name", "policy") as served:
        args = ("script.py", served.url, str(folder), str(STEPS), str(ANSWERS))
        done = python_environment.run("python", *args, cwd=tmp_path)
    said = json.loads(done.stdout.splitlines()[-1])
    seen = said["seen"]
    assert [step["version"] for step in seen] == ["0", "step-1", "step-2"]
    for step in seen:
        assert len(step["answers"]) == 2 * ANSWERS
        assert all(len(ids) == 8 or ids[-1] == END_TOKEN for ids in step["answers"])
        assert step["far"] < 1e-4, "log-probabilities are those of the weights of the time"
    assert 1 <= len(said["chat"][0]) <= 3
