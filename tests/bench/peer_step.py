#!/usr/bin/env python3
"""A training step of decoder.yaml beside peers' decoders of the same size, on one card in one run.

    tests/bench/peer_step.py [--bench build/release/bin/train_step_bench] [--steps N]
                             [--compile-jobs N]

24 layers of width 1024, 8 heads of 128, hidden width 2816, a vocabulary of 32,000. Peers take steps
of 8 x 4096 random tokens, forward, backward and PyTorch's fused AdamW, all in bf16:
  fla    flash-linear-attention's linear attention decoder (attn_mode chunk, feature map elu; its
         output head is not tied to the embedding, which newer releases of transformers refuse)
  Llama  softmax attention by PyTorch's scaled_dot_product_attention (transformers)
Ours runs as train_step_bench does: bf16 with fp32 masters, more micro-batches a step, so that AdamW
and its weights' memory traffic weigh less; "without AdamW" is what compares forward and backward.

flash-linear-attention's kernels are compiled by N processes first, as in peers.py.

Medians of N steps (5) after 3 of warm-up, by device events. Of products: 6 FLOP a parameter of
train_step_bench's count a token, over the rate of a bf16 product of 8192^3 by PyTorch, measured
first. What is not installed is said.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

from peers import Timer, compile_side_by_side, time_no_variant

ROOT = pathlib.Path(__file__).resolve().parents[2]
BATCH, LENGTH = 8, 4096
LAYERS, WIDTH, HEADS, HIDDEN, VOCABULARY = 24, 1024, 8, 2816, 32000


def product_rate(torch):
    a, b = (torch.randn((8192, 8192), device="cuda", dtype=torch.bfloat16) for _ in "ab")
    return 2 * 8192**3 / Timer(torch, 20).seconds(lambda: a @ b)


def fla_decoder(layers=LAYERS):
    from fla.models.linear_attn import LinearAttentionConfig, LinearAttentionForCausalLM
    return LinearAttentionForCausalLM(LinearAttentionConfig(
        attn_mode="chunk", feature_map="elu", hidden_size=WIDTH, num_heads=HEADS,
        num_hidden_layers=layers, intermediate_size=HIDDEN, vocab_size=VOCABULARY,
        use_cache=False))


def compile_fla_decoder(torch, seed):
    model = fla_decoder(layers=1).to("cuda", torch.bfloat16)
    time_no_variant(seed)
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH), device="cuda")
    model(input_ids=ids, labels=ids).loss.backward()


def llama_decoder():
    from transformers import LlamaConfig, LlamaForCausalLM
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_hidden_layers=LAYERS,
        intermediate_size=HIDDEN, vocab_size=VOCABULARY, max_position_embeddings=LENGTH,
        tie_word_embeddings=True, use_cache=False, attn_implementation="sdpa"))


def measure(torch, make, steps):
    """Seconds of a step, and of its forward and backward; or why there are none."""
    try:
        model = make().to("cuda", torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        ids = torch.randint(VOCABULARY, (BATCH, LENGTH), device="cuda")

        def passes():
            optimizer.zero_grad(set_to_none=True)
            model(input_ids=ids, labels=ids).loss.backward()

        def step():
            passes()
            optimizer.step()
        timer = Timer(torch, steps)
        return timer.seconds(step), timer.seconds(passes)
    except Exception as error:  # pylint: disable=W0718  what peers raise is theirs
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", nargs="+",
                        default=[str(ROOT / "build/release/bin/train_step_bench")],
                        help="the program, and what comes before it on its command line")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile-jobs", type=int, default=os.cpu_count(), metavar="N")
    parser.add_argument("--compile", type=int, metavar="SEED", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("peer_step.py: PyTorch is not installed")
    if not torch.cuda.is_available():
        sys.exit("peer_step.py: no card that PyTorch can use")
    if options.compile is not None:
        return compile_fla_decoder(torch, options.compile)
    output = subprocess.run(
        [*options.bench, "--job", str(ROOT / "tests/bench/decoder.yaml"), "--set",
         "resources.device=cuda", "--contexts", str(LENGTH), "--steps", "3", "--json"],
        check=True, capture_output=True, text=True).stdout
    ours = json.loads(output.splitlines()[-1])
    if importlib.util.find_spec("fla"):
        compile_side_by_side(__file__, options.compile_jobs)
    flops, tokens = ours["model_flops_per_token"], BATCH * LENGTH
    rate = product_rate(torch)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, bf16 product "
          f"{rate * 1e-12:.0f} TFLOP/s")
    print(f"{'decoder':10} {'tokens/s':>10} {'of products':>12} {'without AdamW':>14}  ours is")
    mine = ours["tokens_per_second"]
    print(f"{'ELA':10} {mine:10,.0f} {100 * mine * flops / rate:11.0f}%", flush=True)
    for name, make in (("fla", fla_decoder), ("Llama", llama_decoder)):
        seconds = measure(torch, make, options.steps)
        torch.cuda.empty_cache()
        if isinstance(seconds, str):
            print(f"{name:10} not run: {seconds}", flush=True)
            continue
        step, passes = (tokens / s for s in seconds)
        print(f"{name:10} {step:10,.0f} {100 * step * flops / rate:11.0f}% {passes:14,.0f}  "
              f"{mine / step:.2f}x", flush=True)


if __name__ == "__main__":
    main()
