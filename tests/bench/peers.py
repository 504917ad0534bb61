#!/usr/bin/env python3
"""Exact linear attention beside its peers, on one card in one run.

    tests/bench/peers.py [--bench build/release/bin/ela_cuda_bench] [--runs N] [--compile-jobs N]

Shapes are those of ela_cuda_bench, whose --json output this reads; bf16, causal, forward and
backward, N(0, 1) inputs. Peers:
  fla    flash-linear-attention: exp of q and k, then chunk_linear_attn(normalize=True): the same
         sums as hadamard_exp without its safety against overflow; exp is in the time
  cuDNN, flash   PyTorch's scaled_dot_product_attention with that back end alone; softmax attention
         does work of another order in the length
The softmax attention of hybrid layers stands beside cuDNN's and PyTorch's flash at its own shapes,
and for decoding one token of one sequence of 16 heads of 128 with 128K and 1M tokens behind it:
attention over a key-value cache by PyTorch, beside a step of the state, which has one size.

flash-linear-attention's kernels choose among many variants, minutes of compiling: N processes (one
a core) first fill Triton's cache on disk side by side, timing nothing.

Every time is the median of N runs (20) after 3 of warm-up, by device events. Softmax attention is
not run beyond 65,536 tokens forward and backward. What is not installed, or refuses a shape, is
said.
"""

import argparse
import gc
import importlib
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LONGEST_SOFTMAX, LONGEST_FLA = 65536, 262144
CACHED = (131072, 1048576)
DECODE_HEADS, DECODE_DIM = 16, 128


class Timer:
    def __init__(self, torch, runs):
        self.torch, self.runs = torch, runs

    def seconds(self, work):
        # Without a pause, as ela_cuda_bench measures: a card that rests between runs is faster.
        moments = []
        for _ in range(3 + self.runs):
            moments.append([self.torch.cuda.Event(enable_timing=True) for _ in range(2)])
            moments[-1][0].record()
            work()
            moments[-1][1].record()
        self.torch.cuda.synchronize()
        return statistics.median(a.elapsed_time(b) * 1e-3 for a, b in moments[3:])

    def forward_backward(self, attend, inputs):
        """Seconds forward and backward of attend(*inputs), or why there are none."""
        try:
            with self.torch.no_grad():
                forward = self.seconds(lambda: attend(*inputs))
            for x in inputs:
                x.requires_grad_(True)
            out = attend(*inputs)
            dout = self.torch.randn_like(out)
            return forward, self.seconds(
                lambda: self.torch.autograd.grad(out, inputs, dout, retain_graph=True))
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            return str(error).strip().splitlines()[0][:100] or type(error).__name__


def fla_attention(torch):
    """The peer, or why it is not run."""
    try:
        ops = importlib.import_module("fla.ops.linear_attn")
    except (ImportError, AttributeError, RuntimeError) as error:
        return f"flash-linear-attention is not installed, or not for this PyTorch ({error})"

    def attend(q, k, v):
        return ops.chunk_linear_attn(torch.exp(q), torch.exp(k), v, scale=1.0, normalize=True)[0]
    return attend


def time_no_variant(seed):
    """Triton's tuners of what is imported run each variant once, in an order of `seed`'s own."""
    import triton

    def run_once(call, **_):
        call()
        return [0.0] * 3

    for tuner in (o for o in gc.get_objects() if isinstance(o, triton.runtime.Autotuner)):
        random.Random(seed).shuffle(tuner.configs)
        tuner.do_bench = run_once
        tuner.cache_results = False  # not to be taken for a choice


def compile_variants(torch, seed, heads_and_dims):
    """Every variant of the peer's kernels into Triton's cache."""
    attend = fla_attention(torch)
    if isinstance(attend, str):
        return
    time_no_variant(seed)
    for heads, dim in heads_and_dims:
        inputs = [torch.randn((1, 1024, heads, dim), device="cuda", dtype=torch.bfloat16,
                              requires_grad=True) for _ in "qkv"]
        out = attend(*inputs)
        torch.autograd.grad(out, inputs, torch.randn_like(out))


def compile_side_by_side(script, jobs, *words):
    """`script --compile SEED words` for each job; what they miss is compiled where it is timed."""
    begin = time.monotonic()
    workers = [subprocess.Popen([sys.executable, script, "--compile", str(seed), *words],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
               for seed in range(jobs)]
    for worker in workers:
        worker.wait()
    print(f"compiled flash-linear-attention's variants in {time.monotonic() - begin:.0f} s, "
          f"{jobs} processes", flush=True)


def softmax_attention(torch, name, causal):
    from torch.nn import attention
    backend = {"cuDNN": attention.SDPBackend.CUDNN_ATTENTION,
               "flash": attention.SDPBackend.FLASH_ATTENTION}[name]

    def attend(q, k, v):
        with attention.sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return attend


def cell(measured, ours):
    if isinstance(measured, str):
        return f"{'-':>23}"
    text = []
    for theirs, mine in zip(measured, ours):
        text.append(f"{theirs * 1e3:7.3f}" + (f" {theirs / mine:4.1f}x" if mine > 0 else "     -"))
    return " ".join(text)


def compare(torch, timer, rows):
    fla = fla_attention(torch)
    reasons = [fla] if isinstance(fla, str) else []
    print("times in ms forward, backward; x: how many times ours\n")
    print(f"{'shape':34} {'ELA':>15} {'fla':>25} {'cuDNN softmax':>25} {'flash softmax':>25}")
    for row in rows:
        if not row["causal"] or "decay" in row["shape"] or "documents" in row["shape"]:
            continue  # the peers have no such form
        b, length, h, d = (row[k] for k in ("sequences", "length", "heads", "dim"))
        ours = (row["forward"], row["backward"])
        cells = []
        for name in ("fla", "cuDNN", "flash"):
            shape = (b, length, h, d) if name == "fla" else (b, h, length, d)
            if name == "fla" and isinstance(fla, str):
                measured = fla
            elif length > LONGEST_FLA:
                measured = f"{name}: not run beyond {LONGEST_FLA:,} tokens"
            elif name != "fla" and length > LONGEST_SOFTMAX:
                measured = f"{name}: not run beyond {LONGEST_SOFTMAX:,} tokens"
            else:
                attend = fla if name == "fla" else softmax_attention(torch, name, True)
                inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in "qkv"]
                measured = timer.forward_backward(attend, inputs)
                del inputs
                torch.cuda.empty_cache()
                if isinstance(measured, str):
                    measured = f"{name} at {row['shape']}: {measured}"
            if isinstance(measured, str) and measured not in reasons:
                reasons.append(measured)
            cells.append(cell(measured, ours))
        mine = f"{ours[0] * 1e3:7.3f} {ours[1] * 1e3:7.3f}"
        print(f"{row['shape']:34} {mine} " + " ".join(f"{c:>25}" for c in cells), flush=True)
    for reason in reasons:
        print(f"not run: {reason}")


def compare_softmax(torch, timer, rows):
    reasons = []
    print(f"\n{'softmax attention':34} {'ours':>15} {'cuDNN':>25} {'flash':>25}")
    for row in rows:
        if "documents" in row["softmax"]:
            continue
        shape = tuple(row[k] for k in ("sequences", "heads", "length", "dim"))
        ours = (row["forward"], row["backward"])
        cells = []
        for name in ("cuDNN", "flash"):
            inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in "qkv"]
            measured = timer.forward_backward(softmax_attention(torch, name, row["causal"]), inputs)
            del inputs
            torch.cuda.empty_cache()
            if isinstance(measured, str):
                reasons.append(f"{name} at {row['softmax']}: {measured}")
            cells.append(cell(measured, ours))
        mine = f"{ours[0] * 1e3:7.3f} {ours[1] * 1e3:7.3f}"
        print(f"{row['softmax']:34} {mine} " + " ".join(f"{c:>25}" for c in cells), flush=True)
    for reason in reasons:
        print(f"not run: {reason}")


def decode(torch, timer, rows, copy):
    state = next((r for r in rows if (r["batch"], r["heads"], r["dim"]) ==
                  (1, DECODE_HEADS, DECODE_DIM)), None)
    print(f"\ndecoding one token, one sequence, {DECODE_HEADS} heads of {DECODE_DIM}, one layer")
    if state is not None:
        print(f"{'ELA, after any number of tokens':40} {state['seconds'] * 1e6:10.1f} us "
              f"{state['state_bytes'] / 2**20:10.2f} MiB of state (fp32)")
    for length in CACHED:
        q = torch.randn((1, DECODE_HEADS, 1, DECODE_DIM), device="cuda", dtype=torch.bfloat16)
        k, v = (torch.randn((1, DECODE_HEADS, length, DECODE_DIM), device="cuda",
                            dtype=torch.bfloat16) for _ in "kv")
        size = 2 * k.numel() * k.element_size()
        for name in ("cuDNN", "flash"):
            attend = softmax_attention(torch, name, False)  # everything cached is in the past
            try:
                with torch.no_grad():
                    seconds = timer.seconds(lambda: attend(q, k, v))
            except RuntimeError as error:
                print(f"{name} after {length:,} tokens: {str(error).strip().splitlines()[0][:100]}")
                continue
            print(f"{f'softmax ({name}) after {length:,} tokens':40} {seconds * 1e6:10.1f} us "
                  f"{size / 2**20:10.2f} MiB of cache (bf16), read at "
                  f"{100 * size / seconds / copy:.0f}% of copy speed")
        del k, v
        torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", nargs="+",
                        default=[str(ROOT / "build/release/bin/ela_cuda_bench")],
                        help="the program, and what comes before it on its command line")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--compile-jobs", type=int, default=os.cpu_count(), metavar="N")
    parser.add_argument("--compile", nargs=2, metavar=("SEED", "SHAPES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("peers.py: PyTorch is not installed")
    if not torch.cuda.is_available():
        sys.exit("peers.py: no card that PyTorch can use")
    if options.compile:
        seed, shapes = options.compile
        return compile_variants(torch, int(seed), json.loads(shapes))
    output = subprocess.run([*options.bench, "--json"], check=True, capture_output=True,
                            text=True).stdout
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if not rows:
        sys.exit(f"peers.py: {options.bench[-1]} measured nothing: {output.strip()}")
    shapes = [r for r in rows if "shape" in r]
    copy = shapes[0]["copy"]
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, copy {copy * 1e-9:,.0f} "
          f"GB/s (read + written), medians of {options.runs} runs")
    if not isinstance(fla_attention(torch), str):
        heads_and_dims = sorted({(r["heads"], r["dim"]) for r in shapes
                                 if r["length"] <= LONGEST_FLA})
        compile_side_by_side(__file__, options.compile_jobs, json.dumps(heads_and_dims))
    timer = Timer(torch, options.runs)
    compare(torch, timer, shapes)
    compare_softmax(torch, timer, [r for r in rows if "softmax" in r])
    decode(torch, timer, [r for r in rows if "decode" in r], copy)


if __name__ == "__main__":
    main()
