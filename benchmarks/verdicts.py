"""Are the verdicts right? The whole pipeline on every case with a planted cause, next to the truth.

Prints the confusion matrix and every case that is not right; the last line is one JSON object: the score of all cases,
and of the open and held-out halves.

    python -m benchmarks.verdicts [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json

import aitia
from aitia.reports.verdict.rules import Verdict


def main() -> None:
    """Run what is not finished, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/suite", help="where the cases run; finished ones are kept")
    found = aitia.suite(out=parser.parse_args().out)
    verdicts = [str(verdict) for verdict in Verdict]
    print(f"{'truth / verdict':20s}" + "".join(f"{verdict[:12]:>14s}" for verdict in verdicts))
    for truth, counts in found["confusion"].items():
        print(f"{truth:20s}" + "".join(f"{counts[verdict]:14d}" for verdict in verdicts))
    for case in found["cases"]:
        if case["right"] is not True:
            print(f"{case['name']}: {case['verdict']} (rule {case['rule']}), truth {case['truth']} ({case['half']})")
    everything = found["scores"].pop("all")
    print(json.dumps({**everything, **found["scores"]}))


if __name__ == "__main__":
    main()
