#!/usr/bin/env python3
"""A training step of the demo job's model, here and in PyTorch: same machine and threads, in turns.

    tests/bench/torch_bench.py [--bin build/release/bin] [--job FILE] [--threads N] [--rounds N]

PyTorch runs the exported model's own file (checkpoints/export/modeling_ela.py) with its slow parts
replaced by what one would write for training: all chunks of a sequence in batched products (the
fastest of several chunk sizes is taken), q, k, v by one product, tokens sorted by expert, RoPE's
tables kept; AdamW over lists of tensors. That this computes the same is checked first. It keeps one
reference a sequence for keys, where the service is exact for any finite keys.

Both take turns, a few steps each; medians over all steps. CPU seconds are what other work on the
machine disturbs least. Wants Debian's python3-torch.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # products run inside PyTorch's own threads
import torch
from torch import nn
from torch.nn import functional as F

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "checkpoints/export"))
import modeling_ela  # noqa: E402


class ChunkedMixer:
    """hadamard_exp with causal decay for a whole sequence at once: [B, H, n, chunk, D]."""

    def __init__(self, log_decay, chunk):
        self.log_decay, self.chunk = log_decay[..., None], chunk  # [1, H, 1, 1, 1]
        place = torch.arange(1, chunk + 1, dtype=torch.float32)[:, None]
        self.alpha = self.log_decay * place
        self.fade = torch.exp(self.log_decay[:, :, 0] * chunk)
        self.mask = torch.ones(chunk, chunk).tril()

    def __call__(self, q, k, v, state):
        b, h, length, d = q.shape
        q, k, v = (x.reshape(b, h, length // self.chunk, self.chunk, d) for x in (q, k, v))
        top = k.detach().amax(dim=(2, 3), keepdim=True)
        a = q + top + self.alpha
        a = torch.exp(a - a.detach().amax(dim=4, keepdim=True))
        k = torch.exp(k - top - self.alpha)
        scores = (a @ k.transpose(3, 4)) * self.mask
        out, den = scores @ v, scores.sum(-1, keepdim=True)
        if k.shape[2] > 1:
            k = k * torch.exp(self.alpha[:, :, :, -1:])
            sums, norms = k.transpose(3, 4) @ v, k.sum(3)[..., None]
            s, c, all_s, all_c = sums[:, :, 0], norms[:, :, 0], [], []
            for i in range(1, k.shape[2]):
                all_s.append(s)
                all_c.append(c)
                s, c = self.fade * s + sums[:, :, i], self.fade * c + norms[:, :, i]
            later = a[:, :, 1:]
            out = torch.cat([out[:, :, :1], out[:, :, 1:] + later @ torch.stack(all_s, 2)], 2)
            den = torch.cat([den[:, :, :1], den[:, :, 1:] + later @ torch.stack(all_c, 2)], 2)
        return (out / den).view(b, h, length, d), None


def project(module, x):
    w = torch.cat([module.q.weight, module.k.weight, module.v.weight])
    qkv = F.linear(x, w).view(x.shape[0], x.shape[1], 3, module.heads, -1)
    return qkv.permute(2, 0, 3, 1, 4)


@functools.lru_cache(None)
def rope_table(length, d, theta):
    rate = theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return angle.cos().float(), angle.sin().float()


def attention_forward(self, x, position, state):
    qkv = project(self, x)
    cos, sin = rope_table(x.shape[1], qkv.shape[-1], self.theta)
    even, odd = qkv[:2, ..., 0::2], qkv[:2, ..., 1::2]
    qk = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    y, _ = self.mixer(qk[0], qk[1], qkv[2], None)
    return self.o(modeling_ela.merge_heads(y)), None


def lobe_forward(self, f, state):
    q, k, v = project(self, self.norm(f))
    y, _ = self.mixer(q, k, v, None)
    return modeling_ela.merge_heads(y), None


def moe_forward(self, x):
    rows = x.flatten(0, 1)
    probs = self.router(rows).softmax(dim=-1)
    values, chosen = probs.topk(self.top_k, dim=-1)
    weights = values / (values.sum(-1, keepdim=True) + 1e-8)
    order = chosen.flatten().argsort(stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=len(self.experts))
    parts = rows.index_select(0, order // self.top_k).split(counts.tolist())
    scales = weights.flatten().index_select(0, order)[:, None].split(counts.tolist())
    out = []
    for e, expert in enumerate(self.experts):
        f, label = expert(parts[e]), self.router.weight[e]
        if self.label_bias == "inner":
            out.append(scales[e] * (f + label))
        elif self.label_bias == "outer":
            out.append(scales[e] * f + label)
        else:
            out.append(scales[e] * f)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    y = torch.cat(out).index_select(0, place).view(len(rows), self.top_k, -1).sum(1)
    share = counts.float() / len(rows)
    self.balance = len(self.experts) * (share * probs.mean(0)).sum()
    return y.view_as(x)


class PyTorch:
    """The model, its optimizer and a step."""

    def __init__(self, job):
        spec = job["spec"]
        self.config, self.batch = spec["model"], spec["training"]["global_batch_size"]
        self.length, self.aux = spec["data"]["seq_len"], self.config["moe"]["aux_coef"]
        if (self.config["attention"]["kernel"], self.config["attention"]["softmax_every"]) != (
                "hadamard_exp", 0):
            sys.exit("torch_bench.py: wants attention.kernel: hadamard_exp in every layer")
        torch.manual_seed(1)
        self.model = modeling_ela.ElaModel(self.config)
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.fill_(1) if "norm" in name else p.normal_(0, 0.02)
        ids = self.tokens()
        with torch.no_grad():
            wanted = self.model(ids)
        modeling_ela.Attention.forward = attention_forward
        modeling_ela.Lobe.forward = lobe_forward
        modeling_ela.Moe.forward = moe_forward
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, betas=(0.9, 0.95),
                                           weight_decay=0.1, foreach=True)
        self.rates = {m: m.mixer.log_decay for m in self.model.modules() if hasattr(m, "mixer")}
        chunks = [c for c in (32, 64, 128, 256) if self.length % c == 0]
        for chunk in chunks:
            self.use_chunk(chunk)
            with torch.no_grad():
                worst = (self.model(ids) - wanted).abs().max().item()
            if not worst < 1e-4:
                sys.exit(f"torch_bench.py: at chunk {chunk} logits differ by {worst}")
        best = {}
        for chunk in chunks:
            self.use_chunk(chunk)
            self.step()
            best[chunk] = min(self.step()[1] for _ in range(3))
        self.chunk = min(best, key=best.get)
        self.use_chunk(self.chunk)

    def use_chunk(self, chunk):
        for module, rate in self.rates.items():
            module.mixer = ChunkedMixer(rate, chunk)

    def tokens(self):
        return torch.randint(self.config["vocab_size"], (self.batch, self.length))

    def step(self):
        """Wall and CPU seconds of a step on random tokens."""
        ids, targets = self.tokens(), self.tokens()
        wall, cpu = time.monotonic(), time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        for layer in self.model.layers:
            loss = loss + self.aux * layer.moe.balance
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return time.monotonic() - wall, time.process_time() - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--job", type=pathlib.Path, default=ROOT / "deploy/jobs/demo.yaml")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    resolved = subprocess.run(
        [options.bin / "ela-trainer", "--job", options.job, "--run-dir", "unused", "--validate",
         "--output", "json"], check=True, capture_output=True, text=True).stdout
    job = json.loads(resolved)
    theirs = PyTorch(job["resolved"])
    ours = [options.bin / "train_step_bench", "--json", "--job", options.job, "--threads",
            str(options.threads), "--steps", "5"]
    walls, cpus = ([], []), ([], [])
    for _ in range(options.rounds):
        run = json.loads(subprocess.run(ours, check=True, capture_output=True, text=True).stdout)
        walls[0].append(run["wall"])
        cpus[0].append(run["cpu"])
        theirs.step()
        steps = [theirs.step() for _ in range(5)]
        walls[1].append(statistics.median(s[0] for s in steps))
        cpus[1].append(statistics.median(s[1] for s in steps))
    print(f"{options.job.name}, {run['tokens']} tokens a step, threads: {options.threads}, "
          f"{options.rounds} rounds in turns; PyTorch {torch.__version__}, chunk {theirs.chunk}")
    for name, both in (("wall", walls), ("CPU", cpus)):
        for what, pick in (("median", statistics.median), ("best", min)):
            mine, other = pick(both[0]), pick(both[1])
            print(f"{name:4} {what:6}  here {mine * 1e3:8.1f} ms  PyTorch {other * 1e3:8.1f} ms  "
                  f"{other / mine:5.2f}x")


if __name__ == "__main__":
    main()
