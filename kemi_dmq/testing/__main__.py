"""Run a simulated bus with faults, and say what does not hold.

python -m kemi_dmq.testing --seed 7                    faults drawn from the seed
python -m kemi_dmq.testing --seed 7 --runs 100         from seeds 7 to 106, the failing ones shown
python -m kemi_dmq.testing --nodes ppp6 --schedule "2 kill 3; 10 restart 3"
"""

from __future__ import annotations

import argparse
import sys

from . import schedule
from .schedule import Scenario, ScenarioError, random_scenario


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kemi_dmq.testing",
        description=__doc__,
        epilog=schedule.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=1, help="so many seeds, from --seed on")
    parser.add_argument("--nodes", default="ppp", help="with --schedule: a letter for each node")
    parser.add_argument("--schedule", help="faults; without, they are drawn from the seed")
    parser.add_argument("--settle", type=float, default=0.0, help="seconds until lists are whole")
    parser.add_argument(
        "--detection", type=float, default=0.0, help="seconds until a death is seen"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--transcript", choices=["no", "changes", "all"], default="changes", help="of a single run"
    )
    options = parser.parse_args(arguments)
    more = {
        "settle": options.settle,
        "detection": options.detection,
        "settings": dict(item.split("=", 1) for item in options.set),
    }
    failed = 0
    for seed in range(options.seed, options.seed + options.runs):
        error_text = ""
        try:
            if options.schedule is None:
                scenario = random_scenario(seed, **more)
            else:
                scenario = Scenario(seed, options.nodes, options.schedule, **more)
            scenario.run()
        except ScenarioError as error:
            failed += 1
            error_text = str(error)
        except ValueError as error:
            parser.error(str(error))
        if options.runs == 1 and options.transcript != "no":
            for line in scenario.simulator.lines(datagrams=options.transcript == "all"):
                print(line)
        if error_text:
            # The last lines of the transcript stand above already.
            print(error_text if options.runs > 1 else "\n".join(error_text.splitlines()[:2]))
    print(f"{options.runs} run{'s' * (options.runs > 1)}, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
