"""What `calibrate` could have measured of a machine with two cores, and the devices of that."""

from dataclasses import replace

from megainfer.calibration.description import Share, device_of
from megainfer.calibration.measured import Exchanged, HostWork, KernelTime, KernelTimes
from megainfer.memory import stored_bytes
from megainfer.planner.hardware import Device

RATE = 10e9
PEAKS = {"float32": 60e9, "bfloat16": 90e9, "int8": 70e9}
FLOPS_A_ROW = 2.0 * 2048 * 1024
ROWS = (1, 4, 16, 64)
SHARE = Share("here-1", 1, 2, 16e9, watts=100.0, price=2.0, when="today, a processor")
HOST = HostWork(120e-6, 60e-6, 5e-6, 300e-6, 20e-6)
LINKS = (
    Exchanged(1, 4096, packing=4e-6, unpacking=26e-6),
    Exchanged(64, 4096, packing=90e-6, unpacking=140e-6),
)


def kernel_times(
    dtype: str, peak: float, rate: float, most_a_call: float = 1e9
) -> tuple[KernelTime, ...]:
    """As memory and arithmetic allow. most_a_call: FLOPs of the largest call, by which those of
    many rows have fewer experts."""
    read = stored_bytes(int(FLOPS_A_ROW / 2), dtype) / rate
    times = []
    for rows in ROWS:
        seconds = max(FLOPS_A_ROW * rows / peak, read)
        part = min(1.0, most_a_call / (FLOPS_A_ROW * rows))
        times.append(KernelTime(rows, part * FLOPS_A_ROW * rows, part * seconds))
    return tuple(times)


def kernels_at(rate: float) -> KernelTimes:
    """Where memory has so many bytes a second."""
    return KernelTimes(
        rate,
        {dtype: kernel_times(dtype, peak, rate) for dtype, peak in PEAKS.items()},
        {dtype: kernel_times(dtype, peak / 2, rate, 5e7) for dtype, peak in PEAKS.items()},
        {
            dtype: tuple(KernelTime(size, size, size / (rate * part)) for size in (2**20, 2**24))
            for dtype, part in (("float32", 0.8), ("bfloat16", 0.6))
        },
    )


KERNELS = kernels_at(RATE)


def devices(name: str = "here", cores: int = 2) -> dict[str, Device]:
    """All that it writes of such a machine; those of half of its cores beside others are slower."""
    half = cores // 2
    slower = kernels_at(RATE / 2)
    made = [
        device_of(replace(SHARE, name=f"{name}-{half}"), KERNELS, LINKS, HOST),
        device_of(replace(SHARE, name=f"{name}-{half}-beside"), slower, LINKS, HOST),
        device_of(replace(SHARE, name=f"{name}-{cores}", cores=cores), KERNELS, LINKS, HOST),
        device_of(replace(SHARE, name=f"{name}-colocated", cores=cores), KERNELS, LINKS, HOST),
    ]
    return {device.name: device for device in made}
