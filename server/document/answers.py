"""What each address answers, by its path in the document."""

from dataclasses import dataclass
from typing import Any

from server.document import completions, inside, others

WHEN = {
    400: "the request is wrong",
    401: "a key is missing or wrong",
    403: "only for administrators; or the Host header names another machine",
    404: "the model isn't served here",
    413: "the body is too large",
    415: "the body isn't declared as JSON",
    500: "the server failed",
    503: "overloaded, draining, or a node was lost for too long; see Retry-After",
}
READING = (401, 403, 500)
PROBING = (500, 503)
CHANGING = (400, 401, 403, 413, 415, 500, 503)
GENERATING = (400, 401, 403, 404, 413, 415, 500, 503)


@dataclass(frozen=True, slots=True)
class Answers:
    """answer: the type of a good answer in JSON; None where it is text of `media_type`.

    chunk: of an event's data, where the answer may be a stream of events. errors: the statuses of
    others, each with a body of type `error`.
    """

    answer: Any = None
    errors: tuple[int, ...] = READING
    chunk: Any = None
    error: Any = completions.Error
    media_type: str = "application/json"


ANSWERS = {
    "/live": Answers(inside.State, (500,)),
    "/health": Answers(inside.HealthState, PROBING),
    "/ping": Answers(inside.HealthState, PROBING),
    "/ready": Answers(inside.State, PROBING),
    "/metrics": Answers(media_type="text/plain"),
    "/load": Answers(inside.Load),
    "/version": Answers(inside.Version),
    "/server_info": Answers(inside.ServerInfo, (401, 403, 500)),
    "/admin/nodes": Answers(inside.Nodes, (401, 403, 500)),
    "/admin/scale": Answers(inside.Changed, CHANGING),
    "/admin/drain": Answers(inside.Changed, CHANGING),
    "/admin/restart": Answers(inside.Changed, CHANGING),
    "/update_weights_from_disk": Answers(inside.WeightsUpdated, CHANGING),
    "/update_weights_from_distributed": Answers(inside.WeightsUpdated, CHANGING),
    "/init_weights_update_group": Answers(inside.GroupChanged, CHANGING),
    "/destroy_weights_update_group": Answers(inside.GroupChanged, CHANGING),
    "/init_weight_transfer_engine": Answers(inside.Told, CHANGING),
    "/update_weights": Answers(inside.NewWeights, CHANGING),
    "/get_world_size": Answers(inside.WorldSize, (401, 403, 500)),
    "/pause_generation": Answers(inside.PauseChanged, CHANGING),
    "/continue_generation": Answers(inside.PauseChanged, CHANGING),
    "/pause": Answers(inside.PauseState, (400, 401, 403, 500, 503)),
    "/resume": Answers(inside.PauseState, (400, 401, 403, 500, 503)),
    "/is_paused": Answers(inside.IsPaused, (401, 403, 500)),
    "/weight_version": Answers(inside.WeightVersion),
    "/get_weight_version": Answers(inside.WeightVersion),
    "/debug/nodes": Answers(inside.Counters, (401, 403, 500)),
    "/debug/trace": Answers(inside.Trace, (400, 401, 403, 500, 503)),
    "/page/state": Answers(inside.Live),
    "/page/placement": Answers(inside.Live, (401, 403, 500)),
    "/page/timeline": Answers(inside.Live, (401, 403, 500, 503)),
    "/docs": Answers(media_type="text/html"),
    "/v1/models": Answers(completions.ModelList),
    "/v1/models/{model_id}": Answers(completions.ModelCard, (401, 403, 404, 500)),
    "/v1/completions": Answers(
        completions.Completion, GENERATING, chunk=completions.CompletionChunk
    ),
    "/v1/chat/completions": Answers(
        completions.ChatCompletion, GENERATING, chunk=completions.ChatCompletionChunk
    ),
    "/v1/responses": Answers(others.Response, GENERATING, chunk=others.ResponseEvent),
    "/v1/messages": Answers(
        others.Message, GENERATING, chunk=others.MessageEvent, error=others.MessageError
    ),
    "/v1/messages/count_tokens": Answers(others.TokenCount, GENERATING, error=others.MessageError),
    "/tokenize": Answers(others.Tokenized, GENERATING),
    "/detokenize": Answers(others.Detokenized, GENERATING),
    "/tokenizer_info": Answers(others.TokenizerInfo, (400, 401, 403, 500)),
}
