#!/usr/bin/env python3
"""The demo job on a card, from text: killed and resumed with the same bits, and beside the CPU.

    tests/bench/gpu_job.py prepare --work DIR [--bin BIN]     on any machine
    tests/bench/gpu_job.py card --work DIR [--bin BIN]        on one with a card

`prepare` makes the job's token shards from C headers and trains its first 100 steps on the CPU: in
fp32, in bf16, and twice more in fp32 with what rounding alone may change: on two ranks (sums are
grouped in another way) and with a learning rate that is larger by a millionth. How far those two
are from the first after 100 steps is how fast a rounding grows in this job, whatever computes it.
`card` (DIR may have moved) trains all 500 steps in fp32 and bf16, each again with a kill -9 on the
way, and prints for chosen steps how losses and gradient norms differ from the CPU's. A difference
that begins at the size of a rounding and grows as the controls do is a rounding; one that is there
in step 1 is not. Exit code 1 if a resumed run has other bits, or if the first fp32 loss or gradient
norm is more than 1e-5 (relative) from the CPU's.

BIN is a folder of programs, or a command that runs the one it is given.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
JOB = ROOT / "deploy/jobs/demo.yaml"
STEPS, COMPARED, KILLED_BEFORE = 500, 100, 260
SHOWN = (1, 2, 3, 5, 10, 20, 30, 50, 70, 100)
FIRST_STEP = 1e-5
RESUMED = ("step", "loss", "aux_loss", "grad_norm", "lr", "tokens")


class Programs:
    def __init__(self, where):
        self.where = where

    def run(self, program, *words, env=None, launcher=()):
        at = pathlib.Path(self.where)
        command = [str(at / program)] if at.is_dir() else [str(at), program]
        environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1",
                       "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", **(env or {})}
        return subprocess.run([*launcher, *command, *map(str, words)], env=environment,
                              capture_output=True, text=True)


def train(programs, work, name, *sets, steps=STEPS, ranks=1, fault_before=None, fresh=True):
    """Trains into work/name until `steps`, or until it is killed before step `fault_before`."""
    folder = work / name
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    data = work / "data/demo"
    words = [f"tokenizer.path={data}.model", f"data.train=[{{path: {data}.train}}]",
             f"data.validation={data}.validation", f"training.steps={steps}", *sets]
    if ranks == 1:
        words += ["parallelism.sequence=1", "parallelism.expert=1"]
    launcher = [] if ranks == 1 else ["mpirun", "-n", str(ranks), "--oversubscribe", "--bind-to",
                                      "none"]
    env = {} if fault_before is None else {"ELA_FAULT": f"kill:0:{fault_before}"}
    done = programs.run("ela-trainer", "--job", JOB, "--run-dir", folder, "--metrics-address", "",
                        *[w for s in words for w in ("--set", s)], env=env, launcher=launcher)
    if (done.returncode == 0) != (fault_before is None):
        sys.exit(f"gpu_job.py: {name} ended with {done.returncode}\n{done.stderr[-3000:]}")
    return records(folder)


def records(folder):
    """{step: record} of a run, evaluations left out."""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "eval_loss" not in record:
            found[record["step"]] = record
    return found


def prepare(programs, work):
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "data").exists():
        (work / "data").mkdir()
        done = programs.run("ela-data", "build", "--input", "/usr/include/linux", "--tokenizer",
                            "train:2000", "--validation-fraction", "0.02", "--output",
                            work / "data/demo")
        if done.returncode != 0:
            sys.exit(f"gpu_job.py: ela-data: {done.stderr}")
    runs = {"fp32": (1, ()), "bf16": (1, ("training.precision=bf16",)), "two_ranks": (2, ()),
            "lr": (1, ("optimizer.lr=0.002000002",))}
    for name, (ranks, sets) in runs.items():
        curve = work / f"cpu_{name}.json"
        if curve.exists():
            continue
        got = train(programs, work, f"cpu_{name}", "resources.device=cpu",
                    "checkpoint.every_steps=0", *sets, ranks=ranks, fault_before=COMPARED + 1)
        curve.write_text(json.dumps([got[s] for s in range(1, COMPARED + 1)]))
        shutil.rmtree(work / f"cpu_{name}")
        print(f"{name}: loss {got[1]['loss']:.6f} at step 1, {got[COMPARED]['loss']:.6f} at "
              f"step {COMPARED}", flush=True)


def curve_of(work, name):
    return {r["step"]: r for r in json.loads((work / f"cpu_{name}.json").read_text())}


def relative(a, b):
    return abs(a - b) / abs(b)


def print_differences(columns):
    """columns: {title: (run, what it is compared with)}."""
    print(f"{'step':>4}" + "".join(f"{title:>34}" for title in columns))
    print("    " + f"{'|loss - loss|':>20}{'rel. grad norm':>14}" * len(columns))
    for step in SHOWN:
        cells = [(abs(run[step]["loss"] - base[step]["loss"]),
                  relative(run[step]["grad_norm"], base[step]["grad_norm"]))
                 for run, base in columns.values()]
        print(f"{step:4}" + "".join(f"{loss:20.3e}{norm:14.3e}" for loss, norm in cells))
    worst = [max(abs(run[s]["loss"] - base[s]["loss"]) for s in range(1, COMPARED + 1))
             for run, base in columns.values()]
    print(" max" + "".join(f"{w:20.3e}{'':14}" for w in worst), flush=True)


def resumed_differences(work, whole, resumed, programs):
    """What of the resumed run is not what it is in the whole one; empty: nothing."""
    a, b = (records(work / name) for name in (whole, resumed))
    for step in range(1, STEPS + 1):
        for key in RESUMED:
            if a[step][key] != b[step][key]:
                return f"{key} of step {step} is {b[step][key]!r}, not {a[step][key]!r}"
    done = programs.run("ela-checkpoint", "diff", work / whole, work / resumed)
    return "" if done.returncode == 0 else f"the last checkpoints differ: {done.stdout[-500:]}"


def card(programs, work):
    bad = []
    runs = {}
    for precision in ("fp32", "bf16"):
        sets = ("resources.device=cuda", f"training.precision={precision}")
        whole, cut = f"card_{precision}", f"card_{precision}_killed"
        runs[precision] = train(programs, work, whole, *sets)
        seconds = sorted(r["step_seconds"] for r in runs[precision].values())
        print(f"{precision}: loss {runs[precision][STEPS]['loss']:.4f} after {STEPS} steps of "
              f"{seconds[STEPS // 2] * 1e3:.1f} ms (median)", flush=True)
        log = (work / whole / "logs").glob("rank-0*")
        for line in (l for path in log for l in path.read_text().splitlines()):
            if "memory:" in line or "products run" in line:
                print("  " + line.split("info", 1)[-1].strip())
        train(programs, work, cut, *sets, fault_before=KILLED_BEFORE)
        train(programs, work, cut, *sets, fresh=False)
        difference = resumed_differences(work, whole, cut, programs)
        print(f"{precision}: killed before step {KILLED_BEFORE} and resumed: "
              + (difference or "the same bits, metrics and checkpoint"), flush=True)
        if difference:
            bad.append(difference)
    fp32 = curve_of(work, "fp32")
    print_differences({"card - CPU, fp32": (runs["fp32"], fp32),
                       "card - CPU, bf16": (runs["bf16"], curve_of(work, "bf16"))})
    print("controls, on the CPU in fp32:")
    controls = {"two ranks": "two_ranks", "lr + 1e-6": "lr"}
    print_differences({title: (curve_of(work, name), fp32) for title, name in controls.items()
                       if (work / f"cpu_{name}.json").exists()})
    for key in ("loss", "grad_norm"):
        off = relative(runs["fp32"][1][key], fp32[1][key])
        if not off <= FIRST_STEP:
            bad.append(f"{key} of step 1 in fp32 is off by {off:.2e}")
    for what in bad:
        print(f"FAILED: {what}")
    return 1 if bad else 0


def has_card():
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout.startswith(b"GPU")
    except FileNotFoundError:
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("prepare", "card"))
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--bin", default=str(ROOT / "build/release/bin"))
    options = parser.parse_args()
    work, programs = options.work.resolve(), Programs(options.bin)
    if options.part == "prepare":
        return prepare(programs, work)
    if not has_card():
        print("skipped: nvidia-smi finds no card")
        return 0
    return card(programs, work)


if __name__ == "__main__":
    sys.exit(main())
