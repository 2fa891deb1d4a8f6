"""From a wish to all that can be known before a process is started: where the model is, the plan,
that its weights are whole, its tokenizer. A dry run and a start go the same way."""

import json
from dataclasses import dataclass
from pathlib import Path

from megainfer.checkpoint.check import check_names, check_weights
from megainfer.checkpoint.headers import INDEX
from megainfer.config import EngineConfig, format_bytes
from megainfer.launch.hosts.spread import Site, make_spread_plan
from megainfer.launch.machine import Machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.launch.plan_text import describe, warnings
from megainfer.model_folder.prepare import prepare
from megainfer.model_folder.resolve import ModelSource
from megainfer.sharing.budgets import BudgetOptions
from megainfer.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Deployment:
    """A plan that was checked. weights: what is known of them, in words."""

    plan: Plan
    tokenizer: Tokenizer | None
    weights: str

    def describe(self) -> list[str]:
        """What would run where, a line each."""
        weights = f"weights    {self.weights}"
        return [*describe(self.plan), weights, *self._lacks(), *warnings(self.plan)]

    def _lacks(self) -> list[str]:
        if self.tokenizer is None:
            return ["tokenizer  none in the folder: prompts are token ids, and there are no chats"]
        if not self.tokenizer.chat_marks:
            return ["chats      none: the folder has no chat template; --chat-template gives one"]
        return []


def plan_deployment(
    config: EngineConfig,
    machine: Machine,
    fetch: bool = True,
    budgets: BudgetOptions | None = None,
    servers: int = 0,
    site: Site | None = None,
) -> Deployment:
    """Check a wish as far as that goes without a process of any node.

    fetch: whether a hub id's weights are fetched, once all else is known to fit; without them only
    the names in its index are checked. budgets, servers: as in `make_plan`. site: the hosts of the
    nodes, where they aren't on this machine.

    Raises ModelError for what is wrong with the model, ConfigError for the wish.
    """
    small = ModelSource(config.model, config.revision, weights=False)

    def planned(folder: Path) -> Plan:
        if site is not None:
            return make_spread_plan(config, folder, site)
        return make_plan(config, folder, machine, budgets, servers)

    plan = planned(prepare(small))
    tokenizer = load_tokenizer(plan.folder, config.chat_template)
    if fetch and config.model is not None and small.place is None:
        folder = prepare(ModelSource(config.model, config.revision))
        if folder != plan.folder:
            plan = planned(folder)
    return Deployment(plan, tokenizer, _checked(plan, lacking=not fetch and small.place is None))


def _checked(plan: Plan, lacking: bool) -> str:
    """lacking: its weights may not have been fetched yet."""
    folder = plan.folder
    if lacking and not any(folder.glob("*.safetensors")):
        if not (folder / INDEX).is_file():
            return "not fetched yet, and not checked"
        check_names(folder, plan.spec, plan.quantization)
        return f"not fetched yet ({_size(folder / INDEX)}); only their names were checked"
    size = check_weights(folder, plan.spec, plan.quantization)
    return f"{format_bytes(size)} on disk, every tensor there and of its shape"


def _size(index: Path) -> str:
    try:
        return format_bytes(int(json.loads(index.read_text())["metadata"]["total_size"]))
    except (ValueError, KeyError, TypeError):
        return "of unknown size"
