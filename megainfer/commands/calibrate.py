"""`megainfer calibrate`."""

from pathlib import Path
from typing import Annotated

from typer import Option

from megainfer.errors import ConfigError

EPILOG = """[bold]Examples[/bold]

What a node on half of this machine's cores reaches, in a file that `megainfer plan` and
`megainfer serve` take as --hardware:

[cyan]megainfer calibrate --output here.toml[/cyan]"""


def calibrate(
    output: Annotated[
        Path, Option("--output", "-o", help="Where to write the description.")
    ] = Path("hardware.toml"),
    name: Annotated[str, Option(help="What the devices' names begin with.")] = "here",
    cores: Annotated[
        list[int] | None,
        Option(help="Cores of a node, each number a device; half of them if left out. Repeatable."),
    ] = None,
    watts: Annotated[float, Option(min=0.001, help="What the whole machine takes.")] = 200.0,
    price: Annotated[
        float, Option(min=0.001, help="Of the whole machine, where an NVIDIA L20 is 1.")
    ] = 1.0,
) -> None:
    """Measure this machine (kernels, copies, messages) for the planner. Takes a minute or two.

    Let nothing else run meanwhile: what others take would count as what the machine can't do.
    """
    from rich.console import Console

    from megainfer.calibration.calibrate import Wish, check_cores, check_memory
    from megainfer.calibration.calibrate import calibrate as measured
    from megainfer.commands.environment import processor_name
    from megainfer.launch.machine import read_machine
    from megainfer.planner.hardware import to_toml

    if not output.absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}; make it first")
    machine = read_machine()
    check_memory(machine)
    wish = Wish(name, check_cores(cores or (), machine), watts, price)
    console = Console(highlight=False)
    devices = measured(wish, machine, processor_name(), lambda what: console.print(what))
    output.write_text(to_toml(devices))
    for device in devices:
        best = max(device.flops.values())
        console.print(
            f"{device.name}: memory {device.memory_bytes_per_second / 1e9:.1f} GB/s, products up "
            f"to {best / 1e9:.0f} GFLOP/s"
        )
    console.print(f"written to {output}", soft_wrap=True, markup=False)
