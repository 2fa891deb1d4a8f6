"""`megainfer agent`."""

import typer

from megainfer.commands.agent_options import AgentOptions
from megainfer.commands.options import takes_options
from megainfer.console.logs import set_up_logs

EPILOG = """[bold]Example[/bold]

On each host that is to have nodes:

[cyan]megainfer agent --join 10.0.0.1:7300 --token-file token --host 10.0.0.2[/cyan]

And where clients come to:

[cyan]megainfer serve MODEL --agents 2 --listen-agents 10.0.0.1:7300 --token-file token[/cyan]"""


@takes_options
def agent(options: AgentOptions) -> None:
    """Offer this machine to a supervisor elsewhere, which has nodes started here."""
    set_up_logs(options.log_level)
    raise typer.Exit(options.offer().run(lambda text: print(text, flush=True)))
