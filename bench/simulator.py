"""The simulator: simulated attempts a second on one core, of plans in examples/scenarios (target: 200,000, `billion`).

  billion     200 sources, 2 regions, 7 sites: 30 minutes of one billion messages a day, or `--seconds` of it
  warm-eight  12 sources, 8 of them in warm-up, two million messages a day: what the owners' reports cost counts here

CPU seconds are measured, so that other processes of the machine do not count. Each run checks that every message is
accounted for.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

from bench.harness import Measurement, compare, print_results, write_result
from engine.simulator.plan import load_plan
from engine.simulator.simulation import Simulation

SCENARIOS = Path(__file__).parents[1] / "examples" / "scenarios"
LENGTH_S = {"billion": 300.0, "warm-eight": 86_400.0}


def run(name: str, seconds: float) -> Measurement:
    """One run of the first `seconds` of a plan; the samples are as far apart as in the whole plan."""
    plan = load_plan(SCENARIOS / f"{name}.yaml")
    seconds = min(seconds, plan.duration)
    samples = max(10, round(plan.samples * seconds / plan.duration))
    simulation = Simulation(plan.model_copy(update={"duration": seconds, "samples": samples}))
    begin = time.process_time()
    record = simulation.run()  # raises if a message is lost
    spent = time.process_time() - begin
    attempts = record.delivered_count + record.attempts_refused
    figures = {"simulated_s_per_cpu_s": seconds / spent}
    return Measurement(attempts, spent, None, figures)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, help="Simulated time of each plan.")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("engine.region").setLevel(logging.CRITICAL)
    lengths = {name: options.seconds or length for name, length in LENGTH_S.items()}
    results = compare(
        {name: lambda name=name: run(name, lengths[name]) for name in LENGTH_S},  # type: ignore[misc]
        repeats=options.repeats,
    )
    print_results("simulated attempts (per CPU second of one core)", results)
    write_result("simulator", results, settings={**lengths}, is_durable=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
