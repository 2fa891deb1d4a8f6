"""A road of the host for a node that computes on a device: messages are brought over on the way.

Where experts are in the host's memory beside a GPU, or the other way round, the host has to know
what is sent. So it is read back, looked for without waiting, and then sent as any host would; what
comes is uploaded. To its node such a port is one of the device, with all that `mailbox` promises.
"""

from megainfer.device import Device
from megainfer.m2n.mailbox import ExpertPort, JoiningPort
from megainfer.m2n.staged.attention_port import StagedAttentionPort
from megainfer.m2n.staged.expert_port import StagedExpertPort


def attention_port_for(device: Device, port: JoiningPort) -> JoiningPort:
    """`port` itself where it belongs to the device."""
    return port if port.device is device else StagedAttentionPort(port, device)


def expert_port_for(device: Device, port: ExpertPort) -> ExpertPort:
    """As `attention_port_for`."""
    return port if port.device is device else StagedExpertPort(port, device)
