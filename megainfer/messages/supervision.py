"""Supervisor and child, over a socket pair: all that either may say to the other."""

import msgspec

from megainfer.messages.from_child import (
    Connected,
    Drained,
    Entered,
    Fatal,
    LinkLost,
    Loaded,
    LoadProgress,
    Met,
    Opened,
    Prepared,
    Ready,
    Release,
    Renew,
    Resize,
    Spans,
    Stats,
    UpdateWeights,
)
from megainfer.messages.pausing import PauseSet, SetPause
from megainfer.messages.to_child import (
    Chronicle,
    Drain,
    Enter,
    FrontEndDown,
    FrontEndUp,
    GetSpans,
    GetStats,
    KeepSpans,
    Measure,
    Meet,
    NodeDown,
    NodeGone,
    Prepare,
    Reload,
    Resized,
    Serve,
    Start,
    Started,
    Stop,
    WeightsUpdated,
)

ToChild = (
    Start
    | Measure
    | Serve
    | Enter
    | Started
    | NodeDown
    | NodeGone
    | FrontEndUp
    | FrontEndDown
    | Meet
    | Prepare
    | GetStats
    | KeepSpans
    | GetSpans
    | Drain
    | Resized
    | Reload
    | Chronicle
    | Stop
    | Stats
    | Spans
    | UpdateWeights
    | WeightsUpdated
    | SetPause
    | PauseSet
)
FromChild = (
    LoadProgress
    | Loaded
    | Opened
    | Connected
    | Met
    | LinkLost
    | Ready
    | Entered
    | Prepared
    | Drained
    | Stats
    | Spans
    | Fatal
    | GetStats
    | KeepSpans
    | GetSpans
    | Enter
    | NodeDown
    | NodeGone
    | Resize
    | Release
    | Renew
    | Resized
    | UpdateWeights
    | WeightsUpdated
    | SetPause
    | PauseSet
)
to_child_decoder: "msgspec.msgpack.Decoder[ToChild]" = msgspec.msgpack.Decoder(ToChild)
from_child_decoder: "msgspec.msgpack.Decoder[FromChild]" = msgspec.msgpack.Decoder(FromChild)
