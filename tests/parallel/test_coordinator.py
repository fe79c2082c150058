"""The coordinator with sections that sleep: order, idleness, failures, restarts, and the end of the time."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seechange_mpi.model.errors import LostRank, TransientError
from seechange_mpi.model.task import STEPS, Outcome, SectionReport
from seechange_mpi.mpi.coordinator import Coordinator, Limits
from seechange_mpi.mpi.deadline import Deadline
from seechange_mpi.mpi.host import DIED
from seechange_mpi.mpi.messages import Setup, Work
from seechange_mpi.mpi.prediction import Predictor
from seechange_mpi.mpi.results import exit_code
from seechange_mpi.mpi.scatter import Crew
from seechange_mpi.mpi.stopping import StopRequest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from sleeping import (
    SleepyComm,
    SleepyExposure,
    SleepyStages,
    VirtualTime,
    longest_first,
    sleepy_exposures,
    slept,
)

QUICK = Limits(commit_guess_s=0.1, leave_s=0.5)


def coordinator(exposures, workers, *, limits=QUICK, left_s=None, outcome=None, stages=None, guess_s=1.0, stop=None,
                **kw) -> tuple[Coordinator, VirtualTime]:
    """A coordinator of sleeping sections in virtual time."""
    when = VirtualTime()
    comm = SleepyComm(workers + 1, when.clock, outcome)
    stages = stages or SleepyStages(exposures, sleep=when.sleep, **kw)
    stages.sleep = when.sleep
    made = Coordinator(stages, Crew(comm, Setup(), clock=when.clock), limits=limits, predictor=Predictor(guess_s),
                       deadline=Deadline(left_s, term_s=10.0, clock=when.clock), clock=when.clock, pause=when.pause,
                       stop=stop)
    when.next_due = comm.next_due
    when.longest_step_s = 0.3 * limits.leave_s
    when.busy = lambda: bool(made._prefetch.pending or made._finisher.pending)
    return made, when


def test_commits_are_made_in_the_order_of_claims():
    exposures = [SleepyExposure("long", {"S0": 9.0, "S1": 1.0}), SleepyExposure("short", {"S0": 1.0}),
                 SleepyExposure("last", {"S0": 0.5})]
    made, when = coordinator(exposures, 3)
    results = made.run()
    assert made.stages.finished == ["long", "short", "last"]
    assert [r.state for r in results] == ["done"] * 3
    assert when.now - 1000.0 == pytest.approx(9.0, abs=0.2), "the short ones were done beside the long one"


def test_claims_preparation_and_commits_run_beside_the_sections():
    """8 exposures of 4 sections of 1 s on 4 workers; preparing takes 0.9 s, committing 0.9 s: still one second each."""
    exposures = [SleepyExposure(f"e{k}", {f"S{j}": 1.0 for j in range(4)}) for k in range(8)]
    made, when = coordinator(exposures, 4, prepare_s=0.9, commit_s=0.9)
    made.run()
    assert when.now - 1000.0 < 0.9 + 8 * 1.0 + 0.9 + 0.3


@pytest.mark.parametrize("workers", [3, 4, 8, 12])
def test_makespan_is_that_of_longest_first_on_the_true_durations(workers):
    """6 exposures of 8 sections whose length varies by 4, predicted to 5 %: within 4 %, in the mean within 2.5 %."""
    ratios = []
    for seed in range(6):
        exposures = sleepy_exposures(6, 8, 10.0, seed)
        made, when = coordinator(exposures, workers, guess_s=30.0)
        made.run()
        assert made.stages.finished == [e.identifier for e in exposures]
        true = [d for e in exposures for d in e.durations.values()]
        ratios.append((when.now - 1000.0) / longest_first(true, workers))
    assert max(ratios) <= 1.04, ratios
    assert sum(ratios) / len(ratios) <= 1.025


def test_slow_commits_begin_as_early_as_they_can():
    """Sections of 1, 1 and 0.5 s, commits of 1 s: the longest first commits two of them at the end (4.5 s)."""
    exposures = [SleepyExposure(f"e{k}", {"S0": 1.0, "S1": 1.0, "S2": 0.5}, {"S0": 100, "S1": 100, "S2": 50})
                 for k in range(3)]
    made, when = coordinator(exposures, 3, limits=Limits(commit_guess_s=1.0, leave_s=0.5), commit_s=1.0)
    made.run()
    assert when.now - 1000.0 == pytest.approx(4.0, abs=0.3)


def test_exposures_that_are_complete_already_do_not_pile_up():
    exposures = sleepy_exposures(60, 4, 1.0, 1)
    done = {e.identifier: set(e.durations) for e in exposures}
    made, _ = coordinator(exposures, 4, commit_s=1.0, done=done)
    seen, look = [], made._look

    def looked():
        seen.append(len(made.open))
        return look()

    made._look = looked
    assert len(made.run()) == 60
    assert max(seen) <= 8, "what is claimed waits for the commits"


def test_no_more_exposures_are_claimed_than_allowed():
    made, _ = coordinator(sleepy_exposures(9, 3, 1.0, 1), 4, limits=Limits(max_exposures=2))
    assert [r.state for r in made.run()] == ["done", "done"]
    assert made.stages.claims == 2


def died(work: Work) -> Outcome:
    return Outcome(work.task.exposure.identifier, work.key.section, "failed",
                   SectionReport(error_step="subtraction", error_type=DIED, error_message="killed"))


def test_a_section_whose_process_died_is_tried_again_and_then_failed():
    seen = []

    def outcome(work, rank):
        seen.append((work.key.section, work.key.attempt))
        return died(work) if work.key.section == "S1" or (work.key.section, work.key.attempt) == ("S0", 1) else slept(
            work, rank)

    made, _ = coordinator([SleepyExposure("e", {"S0": 1.0, "S1": 1.0, "S2": 1.0})], 2, outcome=outcome)
    (result,) = made.run()
    assert sorted(seen) == [("S0", 1), ("S0", 2), ("S1", 1), ("S1", 2), ("S2", 1)]
    assert result.failed_sections == ["S1"]
    assert exit_code([result]) == 3


def test_a_rank_that_falls_silent_ends_the_run_by_name():
    class Deaf(SleepyComm):
        def receive(self, timeout_s=None):
            return None

    when = VirtualTime()
    crew = Crew(Deaf(3, when.clock), Setup(), clock=when.clock)
    made = Coordinator(SleepyStages([SleepyExposure("e", {"S7": 1.0})], sleep=when.sleep), crew,
                       limits=Limits(silence_s=60.0), clock=when.clock, pause=when.pause)
    when.busy = lambda: bool(made._prefetch.pending)
    with pytest.raises(LostRank, match=r"rank \d was lost in section S7 of e at"):
        made.run()
    assert made.stages.given_back == ["e"]


def test_a_source_that_does_not_answer_ends_the_run_after_what_is_in_hand():
    stages = SleepyStages(sleepy_exposures(1, 3, 1.0, 1))
    claim = stages.claim

    def claim_once():
        if stages.claims:
            raise TransientError("the conductor does not answer")
        return claim()

    stages.claim = claim_once
    made, _ = coordinator([], 2, stages=stages)
    results = made.run()
    assert [r.state for r in results] == ["done"]
    assert exit_code(results, trouble=made.trouble is not None) == 4


def test_an_empty_queue_is_waited_for_and_then_the_run_ends_with_0():
    exposures = sleepy_exposures(3, 2, 1.0, 1)
    stages = SleepyStages(exposures)
    made, when = coordinator([], 2, stages=stages, limits=Limits(max_idle_s=300.0, poll_s=10.0, commit_guess_s=0.1))
    claim, asked = stages.claim, []

    def later():
        asked.append(when.now)
        return None if 1020 < when.now < 1100 else claim()

    stages.claim = later
    results = made.run()
    assert len(results) == 3
    assert exit_code(results) == 0
    assert 300 <= when.now - asked[0] < 450
    pauses = [b - a for a, b in itertools.pairwise(asked[4:])]
    assert len({round(p, 2) for p in pauses}) > 5, "with jitter"
    assert 4 < sum(pauses) / len(pauses) < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_finishes_what_fits_and_gives_the_rest_back(number):
    exposures = [SleepyExposure("soon", {"S0": 4.0, "S1": 4.0}), SleepyExposure("late", {"S0": 500.0, "S1": 4.0})]
    stop = StopRequest()
    stages = SleepyStages(exposures)
    made, when = coordinator([], 3, stages=stages, stop=stop, guess_s=4.0)
    look = made._look

    def look_and_signal():
        if when.now >= 1003 and not stop.number:
            stop.receive(number)
        return look()

    made._look = look_and_signal
    results = {r.identifier: r for r in made.run()}
    assert results["soon"].state == "done"
    assert results["late"].state == "given_back"
    assert stages.given_back == ["late"]
    assert set(results["late"].outcomes) == {"S1"}, "what was done is durable"
    assert signal.Signals(number).name in results["late"].message
    assert exit_code(results.values()) == 5
    assert when.now - 1003 < (61 if number == signal.SIGUSR1 else 11)


patterns = st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 5)),
                           st.sampled_from(["failed", "died", "died twice"]), max_size=12)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 13), patterns, st.lists(st.floats(0.2, 9.0), max_size=3),
       st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_section_is_processed_once_or_failed_with_a_reason(n, sections, workers, pattern, ends, seed):
    """For any number of workers, any failures, and any points at which runs are stopped and begun again."""
    exposures = sleepy_exposures(n, sections, 1.0, seed)
    durable: dict[str, set[str]] = {}
    processed: list[tuple[str, str]] = []
    reasons: dict[tuple[str, str], str] = {}

    def outcome(work, rank):
        name, section = work.task.exposure.identifier, work.key.section
        how = pattern.get((int(name[1:]), int(section[1:])))
        if how == "died twice" or (how == "died" and work.key.attempt == 1):
            return died(work)
        if how == "failed":
            return Outcome(name, section, "failed", SectionReport(error_step=STEPS[2], error_type="AlgorithmError",
                                                                  error_message="no stars"))
        assert section not in durable.setdefault(name, set()), "durable work was repeated"
        durable[name].add(section)
        processed.append((name, section))
        return slept(work, rank)

    left = {e.identifier: e for e in exposures}
    for end in [*ends, None]:
        stages = SleepyStages(list(left.values()), done={k: set(v) for k, v in durable.items()})
        made, _ = coordinator([], workers, stages=stages, outcome=outcome, left_s=end)
        for result in made.run():
            if result.state in ("done", "sections_failed"):
                del left[result.identifier]
                for section in result.failed_sections:
                    reasons[result.identifier, section] = result.outcomes[section].report.error_message
            else:
                assert result.state == "given_back"
        assert sorted(stages.given_back + stages.finished) == sorted(
            e.identifier for e in exposures if e.identifier in stages.given_back or e.identifier in stages.finished)
        assert len(stages.given_back) + len(stages.finished) == stages.claims, "every claim was released"
    assert not left
    everything = {(e.identifier, s) for e in exposures for s in e.durations}
    assert sorted(processed) == sorted(set(processed))
    assert set(processed) | set(reasons) == everything
    assert not set(processed) & set(reasons)
    assert all(reasons.values())


def whole_exposures_in(exposures, workers, limit, commit):
    """Work [s] of the exposures that can be done in the order of claims by a clairvoyant within the limit."""
    free, used, best, committed = [0.0] * workers, 0.0, 0.0, 0.0
    for e in exposures:
        ends = []
        for d in sorted(e.durations.values(), reverse=True):
            end = heapq.heappop(free) + d
            heapq.heappush(free, end)
            ends.append(end)
        used += sum(e.durations.values())
        committed = max(committed, max(ends)) + commit
        if committed > limit:
            break
        best = used
    return best


def test_a_time_limit_is_kept_and_used():
    """20 runs with exposures of random length: none ends late, together they use 80 % of what could have been used."""
    shares = []
    for seed in range(20):
        rng = random.Random(seed)
        mean = rng.uniform(10.0, 40.0)
        exposures = sleepy_exposures(200, 8, mean, seed, spread=3.0)
        limit = rng.uniform(900.0, 1800.0)
        limits = Limits(commit_guess_s=10.0, leave_s=1.0)
        made, when = coordinator(exposures, 8, limits=limits, left_s=limit, guess_s=40.0, commit_s=3.0, prepare_s=1.0)
        results = made.run()
        assert when.now - 1000.0 < limit, f"seed {seed}"
        assert len(made.stages.finished) + len(made.stages.given_back) == made.stages.claims, f"seed {seed}"
        assert math.isclose(sum(r.state == "done" for r in results), len(made.stages.finished))
        work = {e.identifier: sum(e.durations.values()) for e in exposures}
        used = sum(work[name] for name in made.stages.finished)
        shares.append(used / whole_exposures_in(exposures, 8, limit, 3.0))
    assert min(shares) > 0.8, f"share of the oracle's work: {shares}"
