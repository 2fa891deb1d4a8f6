"""Which implementation a node moves its messages and sleeps with."""

from dataclasses import dataclass

from megainfer.m2n.shm.region import Bell
from megainfer.m2n.shm.sleeper import NativeSleeper, PlainSleeper, Sleeper
from megainfer.m2n.slotted import native_library
from megainfer.m2n.slotted.mail import AttentionMail, ExpertMail, Memory, Seat
from megainfer.m2n.slotted.native_mail import NativeAttentionMail, NativeExpertMail
from megainfer.m2n.slotted.plain_mail import PlainAttentionMail, PlainExpertMail


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a node may choose for itself.

    spin_seconds: how long `wait` looks at the slots before it sleeps, at most; only useful where
    every process has a core. native: whether C++ does the work; None: where it was built.
    """

    spin_seconds: float = 0.0
    native: bool | None = None


UNTUNED = Tuning()


def is_native(wish: bool | None) -> bool:
    return native_library.is_built() if wish is None else wish


def open_attention_mail(seat: Seat, memory: Memory, native: bool) -> AttentionMail:
    """Raises ConfigError when `native` isn't built."""
    return NativeAttentionMail(seat, memory) if native else PlainAttentionMail(seat, memory)


def open_expert_mail(seat: Seat, memory: Memory, native: bool) -> ExpertMail:
    """Raises ConfigError when `native` isn't built."""
    return NativeExpertMail(seat, memory) if native else PlainExpertMail(seat, memory)


def open_sleeper(mail: AttentionMail | ExpertMail, bell: Bell, spin_seconds: float) -> Sleeper:
    """One that wakes for news in this mail's slots."""
    if isinstance(mail, NativeAttentionMail | NativeExpertMail):
        return NativeSleeper(mail.end, bell, spin_seconds)
    return PlainSleeper(mail.news, bell, spin_seconds)
