"""Policy and value model as transformers' classes: forward and backward are theirs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megainfer.errors import CheckpointError, ModelError
from megainfer.rl.losses.logprobs import chosen_logprobs
from megainfer.rl.ranks.ranks import ALONE, Ranks
from megainfer.rl.ranks.sharding import whole_state
from megainfer.rl.samples.rows import Row
from megainfer.rl.training.padded import Padded
from megainfer.rl.training.replayed_routing import RoutingReplay

HEAD_FILE = "value_head.safetensors"


class Policy(nn.Module):
    """A causal language model whose tokens' log-probabilities are trained.

    Weights are float32, whatever the folder has: they are the master weights.
    """

    METHOD = "logprobs"
    """What computes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._replay: RoutingReplay | None = None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises ModelError where transformers can't read it."""
        from transformers import AutoModelForCausalLM

        return cls(_pretrained(AutoModelForCausalLM, folder))

    @property
    def transformer(self) -> nn.Module:
        """transformers' own class."""
        return cast(nn.Module, self.model)

    @property
    def vocab_size(self) -> int:
        """Every token id is below it."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def context(self) -> int | None:
        """Tokens of prompt and answer together, at most, where the model says."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def replay_routing(self) -> None:
        """Choose the experts that rows name from now on. Raises ModelError where it can't."""
        self._replay = RoutingReplay(self.model)

    def logprobs(self, answers: Sequence[Row]) -> Tensor:
        """log p of the tokens in the answers' spans, float32 [R]."""
        padded = Padded.of(answers, self.model.device)
        if self._replay is not None:
            self._replay.tell(padded.routing)
        # Logits of other places are never made: they would be the largest tensor of all.
        first, last = int(padded.columns.min()), int(padded.columns.max())
        kept = torch.arange(first, last + 1, device=padded.columns.device)
        logits = self.model(
            input_ids=padded.token_ids,
            attention_mask=padded.mask,
            logits_to_keep=kept,
            use_cache=False,
        ).logits
        return chosen_logprobs(logits[padded.rows, padded.columns - first], padded.chosen)

    def save(self, folder: Path, ranks: Ranks = ALONE) -> None:
        """As Hugging Face has models: config.json and safetensors, in float32. Of several ranks all
        have to call it, and the first writes."""
        state = whole_state(self.model)
        if ranks.first:
            self.model.save_pretrained(folder, state_dict=state)


class ValueModel(nn.Module):
    """A transformer whose last hidden states a linear head maps to V(s_t).

    The head begins at 0, so that a new value model says 0 of everything.
    """

    METHOD = "values"
    """What computes."""

    def __init__(self, backbone: Any, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The backbone of any model; its head where the folder has one, as `save` writes it.

        Raises ModelError where transformers can't read it, CheckpointError for a bad head.
        """
        from transformers import AutoModel

        backbone = _pretrained(AutoModel, folder)
        head = nn.Linear(backbone.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        if (path := folder / HEAD_FILE).exists():
            try:
                head.load_state_dict(load_file(path))
            except Exception as error:  # safetensors' own, and torch's RuntimeError for shapes
                raise CheckpointError(f"{path} is no head of this value model: {error}") from error
        return cls(backbone, head)

    @property
    def transformer(self) -> nn.Module:
        """transformers' own class."""
        return cast(nn.Module, self.backbone)

    def values(self, answers: Sequence[Row]) -> Tensor:
        """V(s_t) of the tokens in the answers' spans, float32 [R]; s_t is all before token t."""
        padded = Padded.of(answers, self.head.weight.device)
        hidden = self.backbone(
            input_ids=padded.token_ids, attention_mask=padded.mask, use_cache=False
        ).last_hidden_state
        chosen = hidden[padded.rows, padded.columns].float()
        with torch.autocast(chosen.device.type, enabled=False):  # bfloat16 has 3 digits for a value
            values: Tensor = self.head(chosen).squeeze(-1)
        return values

    def save(self, folder: Path, ranks: Ranks = ALONE) -> None:
        """The backbone as Hugging Face has models, the head beside it; see `Policy.save`."""
        backbone, head = whole_state(self.backbone), whole_state(self.head)
        if ranks.first:
            self.backbone.save_pretrained(folder, state_dict=backbone)
            save_file(dict(head), folder / HEAD_FILE)


def checkpoint_activations(model: Policy | ValueModel) -> None:
    """Compute activations again in the backward pass instead of keeping them.

    transformers' layers do so in training mode only. The modules inside them stay out of it, as
    routers draw at random there: what is trained is the policy that drew the tokens.
    """
    inner: Any = model.transformer
    # Earlier releases of transformers 5 have the second name alone.
    enable = getattr(inner, "activation_checkpointing_enable", inner.gradient_checkpointing_enable)
    enable()
    for module in inner.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            for name, value in vars(module).items():
                if isinstance(value, float) and ("dropout" in name or "pdrop" in name):
                    setattr(module, name, 0.0)


def check_pair(policy: Policy, value: ValueModel) -> None:
    """Raises ModelError where the value model can't read what the policy writes."""
    own = policy.vocab_size
    other = value.backbone.config.get_text_config().vocab_size
    if own != other:
        raise ModelError(
            f"the value model has a vocabulary of {other} tokens, the policy one of {own}; take a "
            "value model with the policy's tokenizer, or leave value_model out"
        )


def _pretrained(kind: Any, folder: Path) -> Any:
    """Without dropout: what is trained is the policy that drew the tokens."""
    try:
        model, told = kind.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"transformers can't load {folder} for training: {error}") from error
    if missing := sorted(told["missing_keys"]):  # transformers makes up random ones
        raise ModelError(
            f"{folder} lacks {len(missing)} tensors that {type(model).__name__} has, such as "
            f"{missing[0]}; training needs them all"
        )
    return model.eval()
