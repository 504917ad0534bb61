#!/usr/bin/python3
"""A job's training in PyTorch, in float64: the exported model's own file, the job's batches.

    torch_peer.py train FOLDER JOB           JSON lines of metrics.jsonl: loss, aux_loss, grad_norm
    torch_peer.py gradients FOLDER JOB AFTER {tensor: difference}, see below
    torch_peer.py eval FOLDER JOB            the loss of ela model eval over all of JOB's validation

FOLDER is an exported model, JOB a resolved job as JSON: fp32, one source, no document mask, a
constant learning rate, one micro-batch. Objective, sampling, masks, AdamW and clipping are written
here again, from their descriptions in data/loader.cc, trainer/loop and kernels/adamw.

`gradients` wants a job without decay and clipping, and AFTER, FOLDER after one step of it: then
w - w' = lr g / (|g| + eps), which gives the gradient g that the trainer had. A large lr and eps
make that exact.
"""

import array
import json
import pathlib
import sys

import torch
from torch.nn import functional as F

WORD = (1 << 64) - 1
MASK_SHARE, MASK_ID, EVAL_MASK_SEED = 0.15, 0, 1234


def mix(x):
    """SplitMix64's finaliser."""
    x = (x + 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def combine(a, b):
    return mix(mix(a) ^ b)


def permuted(i, n, key):
    """Where a Feistel network of eight rounds, walked until it is in range, puts i of [0, n)."""
    half = 1
    while 1 << (2 * half) < n:
        half += 1
    mask = (1 << half) - 1
    while True:
        left, right = i >> half, i & mask
        for turn in range(8):
            left, right = right, left ^ (mix(((key + turn * n) & WORD) ^ mix(right)) & mask)
        i = left << half | right
        if i < n:
            return i


class Windows:
    """Sequences of a token shard, with one token more each: the target of the last row."""

    def __init__(self, prefix, seq_len):
        tokens = array.array("H", pathlib.Path(prefix + ".bin").read_bytes())
        self.tokens, self.length = torch.tensor(tokens, dtype=torch.long), seq_len
        self.count = (len(tokens) - 1) // seq_len

    def in_order(self, index):
        begin = index * self.length
        return self.tokens[begin:begin + self.length + 1]

    def sample(self, number, seed):
        """Of a training run: every epoch in an order of its own."""
        source_key = combine(combine(seed, 0x77696E646F77), 0)
        key = combine(source_key, number // self.count)
        return self.in_order(permuted(number % self.count, self.count, key))


def is_masked(seed, step, sample, position):
    h = mix(seed ^ 0x6D61736B5F746F6B)
    for part in (step, sample, position):
        h = mix(h ^ part)
    return (h >> 11) * 2.0 ** -53 < MASK_SHARE


def ids_and_targets(rows, masks):
    """ids, targets [B, L] of windows [B, L + 1]. masks: (seed, step, first sample), or None."""
    if masks is None:
        return rows[:, :-1], rows[:, 1:]
    seed, step, first = masks
    ids = rows[:, :-1]
    masked = torch.tensor([[is_masked(seed, step, first + b, i) for i in range(ids.shape[1])]
                           for b in range(len(ids))])
    return ids.masked_fill(masked, MASK_ID), ids.masked_fill(~masked, -100)


class Peer:
    def __init__(self, folder, job):
        sys.path.insert(0, folder)
        from modeling_ela import ElaModel
        self.spec = job["resolved"]["spec"]
        self.model = ElaModel.load(folder, dtype=torch.float64)
        self.training, self.data = self.spec["training"], self.spec["data"]
        self.masked = self.training["objective"] == "masked_token"
        self.router_logits = []  # [T, E] of each layer, of the latest forward pass
        for layer in self.model.layers:
            layer.moe.router.register_forward_hook(
                lambda module, inputs, output: self.router_logits.append(output))

    def batch(self, windows, step):
        size, seed = self.training["global_batch_size"], self.training["seed"]
        first = (step - 1) * size
        rows = torch.stack([windows.sample(first + b, seed) for b in range(size)])
        return ids_and_targets(rows, (seed, step, first) if self.masked else None)

    def balance_loss(self):
        """aux_coef E sum_e f_e P_e of each layer: tokens that chose e, mean probability of e."""
        moe, total = self.spec["model"]["moe"], 0
        for logits in self.router_logits:
            probs = logits.softmax(-1)
            chosen = F.one_hot(probs.topk(moe["top_k"]).indices, moe["num_experts"]).sum(1)
            total = total + (chosen.double().mean(0) * probs.mean(0)).sum()
        return moe["aux_coef"] * moe["num_experts"] * total

    def loss(self, ids, targets, reduction="mean"):
        self.router_logits.clear()
        logits = self.model(ids)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)

    def backward(self, windows, step):
        self.model.zero_grad()
        loss, aux = self.loss(*self.batch(windows, step)), self.balance_loss()
        (loss + aux).backward()
        norm = torch.stack([p.grad.norm() for p in self.model.parameters()]).norm()
        return {"step": step, "loss": (loss + aux).item(), "aux_loss": aux.item(),
                "grad_norm": norm.item()}

    def optimizer(self):
        options = self.spec["optimizer"]
        parts = [[p for p in self.model.parameters() if (p.dim() > 1) == decays]
                 for decays in (True, False)]  # gains and biases do not decay
        return torch.optim.AdamW(
            [{"params": parts[0], "weight_decay": options["weight_decay"]},
             {"params": parts[1], "weight_decay": 0}],
            lr=options["lr"], betas=options["betas"], eps=options["eps"], foreach=False)

    def train(self):
        windows = Windows(self.data["train"][0]["path"], self.data["seq_len"])
        optimizer, clip = self.optimizer(), self.spec["optimizer"]["grad_clip_norm"]
        for step in range(1, self.training["steps"] + 1):
            record = self.backward(windows, step)
            for p in self.model.parameters():
                p.grad *= min(1, clip / record["grad_norm"])
            optimizer.step()
            print(json.dumps(record))

    def gradients(self, after):
        """Of each tensor: the largest difference to the trainer's gradient over the largest one.

        Gradients far smaller than others are what is left of large terms that cancel, and rounded
        as those are: a thousandth of the largest gradient of all is the least to compare with.
        """
        self.backward(Windows(self.data["train"][0]["path"], self.data["seq_len"]), 1)
        lr, eps = self.spec["optimizer"]["lr"], self.spec["optimizer"]["eps"]
        stepped = type(self.model).load(after, dtype=torch.float64).state_dict()
        least = 1e-3 * max(p.grad.abs().max() for p in self.model.parameters())
        differences = {}
        for name, p in self.model.named_parameters():
            moved = (p.detach() - stepped[name]) / lr
            theirs = eps * moved / (1 - moved.abs())
            largest = torch.maximum(p.grad.abs().max(), least)
            differences[name] = ((theirs - p.grad).abs().max() / largest).item()
        print(json.dumps(differences))

    def eval(self):
        windows = Windows(self.data["validation"], self.data["seq_len"])
        total, tokens = 0.0, 0
        for i in range(windows.count):
            masks = (EVAL_MASK_SEED, 0, i) if self.masked else None
            ids, targets = ids_and_targets(windows.in_order(i)[None], masks)
            with torch.no_grad():
                total += self.loss(ids, targets, reduction="sum").item()
            tokens += (targets >= 0).sum().item()
        print(json.dumps({"loss": total / tokens, "tokens": tokens, "sequences": windows.count}))


def main():
    verb, folder, job, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    getattr(Peer(folder, json.loads(pathlib.Path(job).read_text())), verb)(*rest)


if __name__ == "__main__":
    main()
