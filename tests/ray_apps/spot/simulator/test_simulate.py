"""What a run costs on traces, by hand and in general."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.spot.policy import EAGER, PolicySettings
from ray_apps.spot.simulator.job import SimulatedJob
from ray_apps.spot.simulator.optimum import optimum_usd
from ray_apps.spot.simulator.simulate import simulate
from ray_apps.spot.simulator.traces import Trace
from tests.ray_apps.spot.simulator.tracing import any_traces, trace

JOB = SimulatedJob(work_h=4, cold_start_h=0.5, on_demand_usd_per_hour=3, checkpoint_gb=100, egress_usd_per_gb=0.02)


def test_an_undisturbed_run_pays_for_its_cold_start_and_its_work() -> None:
    outcome = simulate(JOB, PolicySettings(), [trace("us-east-1a", "#" * 20, 0.8)])
    assert outcome.is_done
    assert (outcome.wall_h, outcome.paid_h, outcome.usd) == pytest.approx((4.5, 4.5, 3.6))
    assert (outcome.recovery_h, outcome.productive_h, outcome.num_preemptions) == pytest.approx((0.5, 4, 0))


def test_each_step_is_paid_at_its_own_price() -> None:
    prices = [1.0] * 5 + [2.0] * 15
    outcome = simulate(JOB, PolicySettings(), [trace("us-east-1a", "#" * 20, prices)])
    assert outcome.usd == pytest.approx(2.5 * 1 + 2 * 2)


def test_a_move_to_another_region_pays_for_the_checkpoint_and_one_within_does_not() -> None:
    first = trace("us-east-1a", "####" + "." * 20, 0.5)
    near, far = (trace(zone, "#" * 24, 1.0) for zone in ("us-east-1b", "us-west-2a"))
    to_near, to_far = (simulate(JOB, EAGER, [first, other]) for other in (near, far))
    assert (to_near.egress_usd, to_near.num_migrations) == (0, 0)
    assert (to_far.egress_usd, to_far.num_migrations) == (2, 1)
    assert to_far.usd == pytest.approx(to_near.usd + 2)
    assert to_far.num_preemptions == 1


def test_a_list_of_prices_goes_before_the_one_for_all() -> None:
    traces = [trace("us-east-1a", "####" + "." * 20, 0.5), trace("us-west-2a", "#" * 24, 1.0)]
    assert simulate(JOB, EAGER, traces, {("us-east-1", "us-west-2"): 0.05}).egress_usd == 5


def test_without_time_for_an_urgent_checkpoint_what_was_not_saved_is_done_again() -> None:
    traces = [trace("us-east-1a", "#####." + "#" * 20)]
    urgent = JOB.model_copy(update={"checkpoint_every_h": 1.5})
    short = urgent.model_copy(update={"notice_h": 0.0})
    kept, lost = (simulate(job, EAGER, traces) for job in (urgent, short))
    assert (kept.wasted_h, lost.wasted_h) == pytest.approx((0, 0.5))  # 2 h of work, of which 1.5 were saved
    assert lost.paid_h == pytest.approx(kept.paid_h + 0.5)
    assert lost.productive_h == pytest.approx(4)


def test_saves_take_time() -> None:
    job = JOB.model_copy(update={"checkpoint_every_h": 1.0, "save_h": 0.1})
    outcome = simulate(job, EAGER, [trace("us-east-1a", "#" * 20)])
    assert outcome.save_h == pytest.approx(0.3)  # the work ends where the fourth would be
    assert outcome.paid_h == pytest.approx(4.5 + 0.3)


def test_traces_that_end_too_early_leave_the_work_undone() -> None:
    outcome = simulate(JOB, EAGER, [trace("us-east-1a", "####")])
    assert not outcome.is_done
    assert outcome.is_late(None)


POLICIES = st.builds(
    PolicySettings,
    deadline_h=st.sampled_from([8.0, 12.0, 20.0]),
    patience_h=st.sampled_from([0.0, 1.0, 4.0]),
    price_margin=st.sampled_from([None, 0.0, 0.2]),
)
JOBS = st.builds(
    SimulatedJob,
    work_h=st.sampled_from([4.0, 4.2]),
    cold_start_h=st.sampled_from([0.0, 0.4, 0.5]),
    on_demand_usd_per_hour=st.just(3.0),
    checkpoint_every_h=st.sampled_from([0.3, 1.0, 50.0]),
    save_h=st.sampled_from([0.0, 0.02]),
    notice_h=st.sampled_from([0.0, 0.05]),
)


@given(any_traces(), POLICIES, JOBS)
def test_the_deadline_is_kept_and_the_figures_add_up(
    traces: list[Trace], settings: PolicySettings, job: SimulatedJob
) -> None:
    outcome = simulate(job, settings, traces)
    assert not outcome.is_late(settings.deadline_h)
    assert outcome.productive_h == pytest.approx(job.work_h)
    assert outcome.paid_h + outcome.waiting_h == pytest.approx(outcome.wall_h)
    assert min(outcome.recovery_h, outcome.save_h, outcome.wasted_h, outcome.waiting_h, outcome.on_demand_h) >= 0
    assert outcome.recovery_h <= outcome.num_starts * job.cold_start_h + 1e-9
    assert outcome.egress_usd <= outcome.usd


@given(any_traces(), POLICIES, JOBS)
def test_no_policy_is_cheaper_than_the_optimum(
    traces: list[Trace], settings: PolicySettings, job: SimulatedJob
) -> None:
    assert settings.deadline_h is not None
    least = optimum_usd(job, traces, settings.deadline_h)
    assert least <= simulate(job, settings, traces).usd + 1e-9
    assert least <= job.on_demand_usd_per_hour * (job.work_h + job.cold_start_h)


@given(any_traces(), POLICIES, JOBS, st.floats(0.1, 12))
def test_no_more_is_spent_than_is_allowed(
    traces: list[Trace], settings: PolicySettings, job: SimulatedJob, most: float
) -> None:
    outcome = simulate(job, settings.model_copy(update={"max_cost_usd": most}), traces)
    assert outcome.usd <= most
    assert outcome.is_done or outcome.stopped == "max_cost_usd"


def test_the_optimum_by_hand() -> None:
    """Two hours of work and half an hour of cold start, in the cheap zone's second stretch, or else in two places."""
    job = SimulatedJob(work_h=2, cold_start_h=0.5, on_demand_usd_per_hour=3)
    dear = trace("us-east-1a", "#" * 20, 1.0)
    cheap = trace("us-east-1b", "##......" + "#####" + "." * 7, 0.4)
    assert optimum_usd(job, [dear, cheap], 10) == pytest.approx(2.5 * 0.4)
    assert optimum_usd(job, [dear, cheap], 3) == pytest.approx(1 * 0.4 + 2 * 1.0)
    assert optimum_usd(job, [dear, cheap], 2.5) == pytest.approx(2.5 * 1.0)
    assert optimum_usd(job, [trace("us-east-1a", "." * 20)], 3) == pytest.approx(2.5 * 3)
    assert optimum_usd(job, [trace("us-east-1a", "." * 20)], 3, on_demand=False) == math.inf
