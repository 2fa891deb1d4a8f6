"""What trainers say of weights that they broadcast, in the words of SGLang and of vLLM."""

from typing import Literal

from megainfer.weight_group.wishes import NAME, Group
from server.openai.protocol import Body


class GroupRequest(Body):
    """SGLang's `init_weights_update_group`. The instance is one member, of rank rank_offset."""

    master_address: str
    master_port: int
    rank_offset: int = 1
    world_size: int = 2
    group_name: str = NAME
    backend: str = "gloo"

    def group(self) -> Group:
        """Raises ConfigError."""
        return Group(
            self.master_address,
            self.master_port,
            self.rank_offset,
            self.world_size,
            self.backend,
            self.group_name,
        )


class BroadcastRequest(Body):
    """SGLang's `update_weights_from_distributed`: all tensors, in the order of their broadcasts;
    dtypes are torch's names. flush_cache, load_format and others change nothing."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    group_name: str = NAME
    weight_version: str | None = None
    abort_all_requests: bool = False


class LeaveRequest(Body):
    """SGLang's `destroy_weights_update_group`."""

    group_name: str = NAME


class InitInfo(Body):
    """vLLM's, with the backend, which it has at its start."""

    master_address: str
    master_port: int
    rank_offset: int = 1
    world_size: int = 2
    backend: str = "gloo"


class TransferRequest(Body):
    """vLLM's `init_weight_transfer_engine`."""

    init_info: InitInfo

    def group(self) -> Group:
        """Raises ConfigError."""
        return GroupRequest(**self.init_info.model_dump(exclude_unset=True)).group()


class UpdateInfo(Body):
    """vLLM's: all tensors, in the order of their broadcasts."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    packed: Literal[False] = False


class UpdateRequest(Body):
    """vLLM's `update_weights`."""

    update_info: UpdateInfo

    def broadcast(self) -> BroadcastRequest:
        info = self.update_info
        return BroadcastRequest(names=info.names, dtypes=info.dtype_names, shapes=info.shapes)
