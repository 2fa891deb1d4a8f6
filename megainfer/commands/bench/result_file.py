"""What `bench serve` writes: the JSON result under vLLM's names, and pictures."""

import json
from datetime import datetime
from pathlib import Path

from megainfer.bench.plots import save_plots
from megainfer.bench.report import Report
from megainfer.commands.bench.serve_options import LoadOptions, ReportOptions, ServerOptions
from megainfer.errors import MegaInferError


def save_all(
    report: ReportOptions,
    load: LoadOptions,
    server: ServerOptions,
    made: Report,
    about: dict[str, str],
) -> None:
    if report.plot is not None and made.summary.completed:
        for path in save_plots(made.result.outcomes, report.plot):
            print(f"wrote {path}")
    if not (report.save_result or report.save_detailed):
        return
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    document = {
        "date": now,
        "backend": server.backend,
        "label": report.label,
        "num_prompts": load.num_prompts,
        **about,
        "request_rate": "inf" if made.rate is None else made.rate,
        "burstiness": load.burstiness,
        "max_concurrency": load.max_concurrency,
        **made.document(),
        **(made.details() if report.save_detailed else {}),
    }
    path = (report.result_dir or Path()) / _filename(report, load, server, about["model_id"], now)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
    except OSError as error:
        raise MegaInferError(f"--save-result: {path} can't be written: {error}") from error
    print(f"wrote {path}")


def _filename(
    report: ReportOptions, load: LoadOptions, server: ServerOptions, model: str, now: str
) -> str:
    if report.result_filename is not None:
        return report.result_filename
    rate = f"{load.request_rate}qps"
    if load.ramp_up_strategy is not None:
        rate = (
            f"ramp-up-{load.ramp_up_strategy}-{load.ramp_up_start_rps:g}qps-"
            f"{load.ramp_up_end_rps:g}qps"
        )
    limit = f"-concurrency{load.max_concurrency}" if load.max_concurrency else ""
    name = model.rstrip("/").rpartition("/")[2]
    return f"{report.label or server.backend}-{rate}{limit}-{name}-{now}.json"
