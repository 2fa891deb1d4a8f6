"""The scheduler under events in any order: what every request gets must not depend on it."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.messages.requests import FinishReason, Submit
from tests.support.scheduler_engine import VOCABULARY, Engine, Flight, answer, config, submit

MAX_MODEL_LEN = 16
PROMPTS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9)


class SchedulerMachine(RuleBasedStateMachine):
    """Few blocks, several micro-batches, and every event that can come to a node."""

    @initialize(
        num_blocks=st.integers(8, 11),
        max_num_seqs=st.integers(1, 5),
        rows=st.integers(1, 9),
        micro_batches=st.integers(1, 4),
        memory=st.sampled_from(["prefix cache", "none", "recurrent"]),
        fair_prompt_rows=st.none() | st.integers(1, 4),
    )
    def start(
        self,
        num_blocks: int,
        max_num_seqs: int,
        rows: int,
        micro_batches: int,
        memory: str,
        fair_prompt_rows: int | None,
    ) -> None:
        self.config = config(
            num_blocks=num_blocks,
            block_size=2,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=rows,
            max_model_len=MAX_MODEL_LEN,
            num_micro_batches=micro_batches,
            enable_prefix_cache=memory == "prefix cache",
            recurrent=memory == "recurrent",
            fair_prompt_rows=fair_prompt_rows,
        )
        self.engine = Engine(Scheduler(self.config))
        self.requests: dict[str, Submit] = {}
        self.aborted: set[str] = set()

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 14),
        stops=st.booleans(),
        priority=st.integers(-1, 1),
        client=st.sampled_from(["a", "a", "b", "c"]),
    )
    def add(
        self, prompt: list[int], max_tokens: int, stops: bool, priority: int, client: str
    ) -> None:
        name = f"r{len(self.requests)}"
        stop = (0,) if stops else ()
        self.requests[name] = submit(name, prompt, max_tokens, stop, priority, client)
        self.engine.scheduler.add(self.requests[name])

    @rule(data=st.data())
    def compose(self, data: st.DataObject) -> None:
        idle = [mb for mb in range(self.config.num_micro_batches) if not self._is_busy(mb)]
        if idle:
            micro_batch = data.draw(st.sampled_from(idle))
            expected = self.engine.scheduler.has_work(micro_batch)
            step = self.engine.compose(micro_batch)
            assert expected or step is None
            assert step is None or 0 < step.num_rows <= self.config.max_num_batched_tokens

    @precondition(lambda self: self._runnable())
    @rule(data=st.data())
    def run(self, data: st.DataObject) -> None:
        self.engine.run(data.draw(st.sampled_from(self._runnable())))

    @precondition(lambda self: self._endable())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.engine.end(data.draw(st.sampled_from(self._endable())))

    @precondition(lambda self: self.engine.flights)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        flight = data.draw(st.sampled_from(list(self.engine.flights.values())))
        for dependent in data.draw(st.permutations(self.engine.dependents(flight))):
            self.engine.abandon(dependent)

    @precondition(lambda self: self.engine.scheduler.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        live = [sequence.request_id for sequence in self.engine.scheduler.live]
        self._abort(data.draw(st.sampled_from(live)))

    @rule(data=st.data())
    def use_micro_batches(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.config.num_micro_batches))
        self.engine.scheduler.use_micro_batches(count)

    @rule()
    def drop_cache(self) -> None:
        self.engine.scheduler.drop_cache()

    @rule()
    def round(self) -> None:
        while self.engine.flights:
            flight = next(iter(self.engine.flights.values()))
            if flight.sampled is None:
                self.engine.run(flight)
            self.engine.end(flight)
        self.engine.round()

    @invariant()
    def adds_up(self) -> None:
        self.engine.scheduler.check_integrity()
        counters = self.engine.scheduler.counters()
        assert counters["running"] <= self.config.max_num_seqs
        assert counters["steps_in_flight"] == len(self.engine.flights)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for flight in list(self.engine.flights.values()):
            if flight.sampled is None:
                self.engine.run(flight)
            self.engine.end(flight)
        self.engine.drain()
        assert self.engine.scheduler.counters()["free_blocks"] == self.config.num_blocks
        for name, request in self.requests.items():
            self._check_end(name, request)

    def _check_end(self, name: str, request: Submit) -> None:
        expected, reason = answer(request, MAX_MODEL_LEN)
        output = self.engine.outputs.get(name, [])
        if name in self.aborted:
            assert self.engine.finished[name] is FinishReason.ABORT
            assert output == expected[: len(output)]
        else:
            assert (output, self.engine.finished[name]) == (expected, reason)

    def _abort(self, name: str) -> None:
        self.aborted.add(name)
        if self.engine.scheduler.abort(name):
            self.engine.finished[name] = FinishReason.ABORT

    def _is_busy(self, micro_batch: int) -> bool:
        return any(f.step.micro_batch == micro_batch for f in self.engine.flights.values())

    def _runnable(self) -> list[Flight]:
        return [f for f in self.engine.flights.values() if self.engine.may_run(f)]

    def _endable(self) -> list[Flight]:
        return [f for f in self.engine.flights.values() if self.engine.may_end(f)]


SchedulerMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestSchedulerMachine = SchedulerMachine.TestCase
