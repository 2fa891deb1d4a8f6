"""GLM-4.5: half of each head is rotated, DeepSeek-V3's router, dense layers first."""

from megainfer.models import common, latent
from megainfer.models.config import Config
from megainfer.models.family import Family
from megainfer.models.spec import AttentionSpec, DenseSpec, LayerSpec, ModelSpec, QkNorm

ARCHITECTURE = "Glm4MoeForCausalLM"


def read_spec(config: Config) -> ModelSpec:
    """The spec of a Glm4MoeForCausalLM folder."""
    common.refuse_unsupported(config)
    attention, moe = _attention(config), latent.sigmoid_moe(config)
    dense, first = (
        DenseSpec(config.positive("intermediate_size")),
        config.whole("first_k_dense_replace", 1),
    )
    layers = tuple(
        LayerSpec(attention, moe if layer >= first else dense)
        for layer in range(config.positive("num_hidden_layers"))
    )
    return common.model_spec(config, ARCHITECTURE, layers, latent.NAMES, default_eps=1e-5)


def _attention(config: Config) -> AttentionSpec:
    head_dim = common.head_dim(config)
    return AttentionSpec(
        num_heads=config.positive("num_attention_heads"),
        num_kv_heads=config.positive("num_key_value_heads"),
        head_dim=head_dim,
        rope=common.read_rope(config, form=common.RopeForm(head_dim=head_dim, share=0.5)),
        qkv_bias=config.flag("attention_bias", False),
        qk_norm=QkNorm.HEAD if config.flag("use_qk_norm", False) else QkNorm.NONE,
    )


FAMILY = Family("GLM-4.5", "GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7", (ARCHITECTURE,), read_spec)
