#!/usr/bin/env python3
"""The paper's ablation, and what it leaves out, on text of this machine.

  ablation.py --bin build/release/bin --output DIR [--scale quick|paper] [--only NAME]... [--seed N]
              [--parallel N]

Trains every variant with ela-trainer from the same job, seed and data, and writes DIR/table.md,
DIR/results.json and DIR/curves.png (needs python3-matplotlib). A variant that is done is not
trained again. Losses of a bidirectional lobe under next_token leak their targets; they are marked
and mean nothing as a language model's.

  quick   4 layers of width 128, BPE 2000, 1.2M tokens seen: minutes a variant on two cores
  paper   the paper's sizes and as many steps as its 10 epochs of 451,500 tokens have (V 6400,
          d 256, batch 20 x 128)
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys

# name: (overrides, what is shown). The first is what the others are to be compared with.
PAPER = {"model.residual": "hyper_link", "model.final_norm": "true"}
VARIANTS = {
    "softmax": ({"model.residual": "pre_norm", "model.attention.softmax_every": "1"},
                "softmax attention, pre_norm"),
    "ela-pre_norm": ({"model.residual": "pre_norm"}, "hadamard_exp, pre_norm"),
    "ela-hyper_link": (PAPER, "hadamard_exp, hyper_link"),
    "ela-inner": ({**PAPER, "model.moe.label_bias": "inner"},
                  "hadamard_exp, hyper_link, inner bias"),
    "ela-outer": ({**PAPER, "model.moe.label_bias": "outer"},
                  "hadamard_exp, hyper_link, outer bias"),
    "sum_squared": ({**PAPER, "model.attention.kernel": "sum_squared"}, "sum_squared, hyper_link"),
    "sub_squared": ({**PAPER, "model.attention.kernel": "sub_squared"}, "sub_squared, hyper_link"),
    "modulated_dot": ({**PAPER, "model.attention.kernel": "modulated_dot"},
                      "modulated_dot, hyper_link"),
    "lobe-causal": ({**PAPER, "model.memory_lobe.enabled": "true"},
                    "hadamard_exp, hyper_link, causal lobe"),
    "lobe-leaks": ({**PAPER, "model.memory_lobe.enabled": "true",
                    "model.memory_lobe.mode": "bidirectional",
                    "model.memory_lobe.allow_future_leak": "true"},
                   "hadamard_exp, hyper_link, bidirectional lobe"),
    "decay": ({"model.residual": "pre_norm", "model.attention.decay": "head"},
              "hadamard_exp, pre_norm, decay: head"),
    "hybrid": ({"model.residual": "pre_norm", "model.attention.softmax_every": "3"},
               "hadamard_exp, pre_norm, every third layer softmax"),
    "recommended": ({"model.residual": "pre_norm", "model.attention.decay": "head",
                     "model.attention.softmax_every": "3", "model.moe.label_bias": "inner"},
                    "decay: head, every third layer softmax, inner bias"),
}
SCALES = {
    "quick": dict(vocab=2000, steps=300, batch=16, seq_len=256, hidden=128, layers=4, ffn=192,
                  lr="3e-3", schedule="cosine", warmup=30, betas="[0.9, 0.95]", decay="0.1"),
    "paper": dict(vocab=6400, steps=1760, batch=20, seq_len=128, hidden=256, layers=4, ffn=256,
                  lr="1e-3", schedule="constant", warmup=0, betas="[0.9, 0.999]", decay="1e-4"),
}
JOB = """
apiVersion: ela/v1
kind: TrainingJob
metadata: {{name: ablation}}
spec:
  model:
    vocab_size: {vocab}
    hidden_size: {hidden}
    num_layers: {layers}
    num_attention_heads: 4
    moe: {{num_experts: 4, top_k: 2, intermediate_size: {ffn}}}
    memory_lobe: {{norm: true}}
  tokenizer: {{path: {data}.model}}
  data: {{train: [{{path: {data}.train}}], validation: {data}.validation, seq_len: {seq_len}}}
  training: {{steps: {steps}, global_batch_size: {batch}, seed: {seed}, eval_every: {eval_every},
             eval_batches: 16}}
  optimizer: {{lr: {lr}, betas: {betas}, weight_decay: {decay}}}
  lr_scheduler: {{type: {schedule}, warmup_steps: {warmup}, min_lr: 1e-4}}
"""


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of the programs")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--scale", choices=SCALES, default="quick")
    parser.add_argument("--only", action="append", choices=VARIANTS, help="may be repeated")
    parser.add_argument("--input", action="append", help="text to train on")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--parallel", type=int, default=1, help="variants that train at a time")
    return parser.parse_args()


def build_data(options, scale):
    prefix = options.output.resolve() / "data" / "text"
    if not prefix.with_suffix(".validation.idx").exists():
        prefix.parent.mkdir(parents=True, exist_ok=True)
        inputs = options.input or ["/usr/include/linux"]
        subprocess.run([options.bin / "ela", "data", "build", "--input", *inputs, "--tokenizer",
                        f"train:{scale['vocab']}", "--output", prefix, "--validation-fraction",
                        "0.05"], check=True)
    return prefix


def train(options, scale, prefix, name):
    run_dir = options.output.resolve() / name
    job = options.output / f"{name}.yaml"
    job.write_text(JOB.format(**scale, data=prefix, seed=options.seed,
                              eval_every=max(1, scale["steps"] // 10)))
    overrides, _ = VARIANTS[name]
    words = [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
    subprocess.run([options.bin / "ela-trainer", "--job", job, "--run-dir", run_dir,
                    "--metrics-address", "", *words], check=True,
                   env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1",
                        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"})
    losses, evals, seconds = [], [], []
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "eval_loss" in record:
            evals.append((record["step"], record["eval_loss"]))
        else:
            # Without the balance loss: what models with other experts can be compared by.
            losses.append(record["loss"] - record["aux_loss"])
            seconds.append(record["step_seconds"])
    tenth = max(1, len(losses) // 10)
    tokens = scale["batch"] * scale["seq_len"]
    return {"losses": losses, "evals": evals, "leaks": name == "lobe-leaks",
            "first_tenth": statistics.fmean(losses[:tenth]),
            "half": statistics.fmean(losses[len(losses) // 2 - tenth:len(losses) // 2]),
            "last_tenth": statistics.fmean(losses[-tenth:]),
            "validation": evals[-1][1] if evals else None,
            "tokens_per_second": tokens / statistics.median(seconds)}


def table(results):
    lines = ["| variant | first tenth | at half | last tenth | validation | tokens/s |",
             "|---|---|---|---|---|---|"]
    for name, r in results.items():
        shown = VARIANTS[name][1] + (" (**leaks its targets**)" if r["leaks"] else "")
        lines.append(f"| {shown} | {r['first_tenth']:.3f} | {r['half']:.3f} | "
                     f"{r['last_tenth']:.3f} | {r['validation']:.3f} | "
                     f"{r['tokens_per_second']:,.0f} |")
    return "\n".join(lines) + "\n"


def smooth(values, window=15):
    return [statistics.fmean(values[max(0, i - window):i + 1]) for i in range(len(values))]


def draw(results, path):
    try:
        import matplotlib
    except ImportError:
        print("no curves.png: install python3-matplotlib", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    colours = pyplot.get_cmap("tab20").colors
    for (name, r), colour in zip(results.items(), colours):
        style = dict(color=colour, lw=1.4, ls=":" if r["leaks"] else "-")
        label = VARIANTS[name][1] + (" (leaks)" if r["leaks"] else "")
        left.plot(range(1, len(r["losses"]) + 1), smooth(r["losses"]), label=label, **style)
        right.plot(*zip(*r["evals"]), marker=".", **style)
    left.set(title="training loss", xlabel="step", ylabel="nats a token")
    right.set(title="validation loss", xlabel="step")
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="center left", bbox_to_anchor=(0.91, 0.5), frameon=False, fontsize=8)
    figure.subplots_adjust(wspace=0.08)
    figure.savefig(path, dpi=90, bbox_inches="tight")


def main():
    options = parse()
    options.bin = options.bin.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    scale = SCALES[options.scale]
    prefix = build_data(options, scale)
    kept = options.output / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    left = [name for name in VARIANTS
            if name not in results and (not options.only or name in options.only)]
    with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
        started = {pool.submit(train, options, scale, prefix, name): name for name in left}
        for done in concurrent.futures.as_completed(started):
            results[started[done]] = done.result()
            kept.write_text(json.dumps(results))
    results = {name: results[name] for name in VARIANTS if name in results}
    (options.output / "table.md").write_text(table(results))
    draw(results, options.output / "curves.png")
    print(table(results))


if __name__ == "__main__":
    main()
