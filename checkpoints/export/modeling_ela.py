"""An exported ELA model in PyTorch: one file, no dependency but torch.

    from modeling_ela import ElaModel
    model = ElaModel.load("DIR")                 # model.safetensors and config.json
    logits = model(ids)                          # ids [B, L] -> [B, L, V], each row one document
    ids = model.generate(ids, max_new_tokens=64, temperature=0.8)

Exact linear attention (arXiv 2605.18848): y_i = sum_j k(q_i, k_j) v_j / sum_j k(q_i, k_j), where
the kernel is a product of feature maps, k(q, k) = phi(q) . psi(k), so the sums over j are states of
fixed size. B batch, L tokens, H heads, D head dim, V vocabulary.
"""

import json
import math
import pathlib
import struct

import torch
from torch import nn
from torch.nn import functional as F

EPS = 1e-6
DTYPES = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16}


# Attention. ---------------------------------------------------------------------------------

class HadamardExp:
    """k(q, k) = sum_d exp(q_d + k_d), for any finite q and k.

    State: per feature the largest key m [B, H, D], and S [B, H, D, D + 1] = sum exp(k - m) [v, 1].
    """

    def __init__(self, chunk=64, max_growth=60.0):
        self.chunk, self.max_growth = chunk, max_growth

    def start(self, q):
        b, h, _, d = q.shape
        return q.new_full((b, h, d), -1e30), q.new_zeros((b, h, d, d + 1))

    def causal(self, q, k, v, log_decay, state):
        """q, k [B, H, L, D], v [B, H, L, D + 1] with ones last -> numerators and denominators."""
        parts = []
        for q_c, k_c, v_c in zip(*(x.split(self.chunk, dim=2) for x in (q, k, v))):
            part, state = self.span(q_c, k_c, v_c, log_decay, state)
            parts.append(part)
        return torch.cat(parts, dim=2), state

    def span(self, q, k, v, log_decay, state):
        m, s = state
        length = k.shape[2]
        # Decay only shifts exponents: e^{q + alpha_i} e^{k - alpha_j}, alpha = log_decay x place.
        alpha = log_decay * torch.arange(1, length + 1, device=q.device, dtype=q.dtype)[:, None]
        k_shifted = k - alpha
        # References cancel in numerator over denominator: no gradient flows through them.
        top = torch.maximum(m, k_shifted.amax(dim=2)).detach()
        # One reference for the whole span is exact unless a key jumps far within it.
        growth = (top - torch.maximum(m, k_shifted[:, :, 0])).max()
        if length > 1 and growth > self.max_growth:
            half = length // 2
            halves = []
            for part in (slice(0, half), slice(half, length)):
                out, state = self.span(q[:, :, part], k[:, :, part], v[:, :, part], log_decay,
                                       state)
                halves.append(out)
            return torch.cat(halves, dim=2), state
        a = q + alpha + top[:, :, None]
        a = torch.exp(a - a.detach().amax(dim=3, keepdim=True))
        b = torch.exp(k_shifted - top[:, :, None])
        s = torch.exp(m - top)[..., None] * s
        out = a @ s + (a @ b.transpose(2, 3)).tril() @ v
        s = s + b.transpose(2, 3) @ v
        return out, (top + log_decay[..., 0] * length, s)

    def bidirectional(self, q, k, v):
        top = k.detach().amax(dim=2, keepdim=True)
        a = q + top
        a = torch.exp(a - a.detach().amax(dim=3, keepdim=True))
        return a @ (torch.exp(k - top).transpose(2, 3) @ v)


class Polynomial:
    """Kernels with features of their own: phi(q), psi(k) [B, H, L, features]."""

    def __init__(self, name, chunk=64):
        self.name, self.chunk = name, chunk

    def phi(self, q):
        ones, squares = torch.ones_like(q[..., :1]), (q * q).sum(-1, keepdim=True)
        if self.name == "modulated_dot":
            unit = q / q.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            return (squares + 1) * torch.cat([unit, (1 + EPS) * ones], dim=-1)
        return torch.cat([q, squares + EPS, ones], dim=-1)

    def psi(self, k):
        ones, squares = torch.ones_like(k[..., :1]), (k * k).sum(-1, keepdim=True)
        if self.name == "modulated_dot":
            unit = k / k.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            return (squares + 1) * torch.cat([unit, ones], dim=-1)
        sign = 2.0 if self.name == "sum_squared" else -2.0
        return torch.cat([sign * k, ones, squares], dim=-1)

    def start(self, q):
        features = self.phi(q[:, :, :1]).shape[-1]
        return q.new_zeros(q.shape[:2] + (features, q.shape[3] + 1))

    def causal(self, q, k, v, log_decay, state):
        parts = []
        for q_c, k_c, v_c in zip(*(x.split(self.chunk, dim=2) for x in (q, k, v))):
            place = torch.arange(1, q_c.shape[2] + 1, device=q.device, dtype=q.dtype)[:, None]
            phi, psi = self.phi(q_c), self.psi(k_c)
            distance = (place - place.T).clamp_min(0)
            scores = (phi @ psi.transpose(2, 3)) * torch.exp(log_decay * distance)
            parts.append(torch.exp(log_decay * place) * (phi @ state) + scores.tril() @ v_c)
            left = torch.exp(log_decay * (place[-1] - place))
            state = (torch.exp(log_decay * place[-1]) * state
                     + (left * psi).transpose(2, 3) @ v_c)
        return torch.cat(parts, dim=2), state

    def bidirectional(self, q, k, v):
        return self.phi(q) @ (self.psi(k).transpose(2, 3) @ v)


def make_kernel(name):
    if name == "hadamard_exp":
        return HadamardExp()
    if name in ("sum_squared", "sub_squared", "modulated_dot"):
        return Polynomial(name)
    raise ValueError(f"this file knows no attention kernel {name}")


class LinearMixer:
    """Exact linear attention over heads; its state is what decoding carries on."""

    def __init__(self, kernel, heads, decay, causal):
        self.kernel, self.causal = make_kernel(kernel), causal
        rate = torch.zeros(heads)
        if decay == "head":
            x = torch.linspace(2, 9, heads) if heads > 1 else torch.tensor([2.0])
            rate = torch.log1p(-(2.0 ** -x))
        self.log_decay = rate.view(1, heads, 1, 1)

    def __call__(self, q, k, v, state):
        v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
        if self.causal:
            state = self.kernel.start(q) if state is None else state
            out, state = self.kernel.causal(q, k, v, self.log_decay.to(q), state)
        else:
            out = self.kernel.bidirectional(q, k, v)
        return out[..., :-1] / out[..., -1:], state


class SoftmaxMixer:
    """Softmax attention of hybrid layers; its state is all keys and values."""

    def __init__(self, causal):
        self.causal = causal

    def __call__(self, q, k, v, state):
        if state is not None:
            k, v = torch.cat([state[0], k], dim=2), torch.cat([state[1], v], dim=2)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if self.causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
            scores = scores.masked_fill(~seen.tril(k.shape[2] - q.shape[2]), -math.inf)
        return scores.softmax(dim=-1) @ v, (k, v)


# The decoder layer. ------------------------------------------------------------------------

class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS)


def linear(rows, columns):
    return nn.Linear(columns, rows, bias=False)


def split_heads(x, heads):
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge_heads(x):
    return x.transpose(1, 2).flatten(2)


def rope(x, position, theta):
    """Rotates pairs (2i, 2i + 1) of x [B, H, L, D] by position x theta^(-2i / D)."""
    d = x.shape[-1]
    rate = theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    places = torch.arange(position, position + x.shape[2], dtype=torch.float64)
    angle = places[:, None] * rate
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, config, index, causal):
        super().__init__()
        d, attention = config["hidden_size"], config["attention"]
        self.heads, self.theta = config["num_attention_heads"], attention["rope_theta"]
        self.q, self.k, self.v, self.o = (linear(d, d) for _ in range(4))
        every = attention["softmax_every"]
        if every > 0 and (index + 1) % every == 0:
            self.mixer = SoftmaxMixer(causal)
        else:
            self.mixer = LinearMixer(attention["kernel"], self.heads, attention["decay"], causal)

    def forward(self, x, position, state):
        q, k, v = (split_heads(w(x), self.heads) for w in (self.q, self.k, self.v))
        q, k = rope(q, position, self.theta), rope(k, position, self.theta)
        y, state = self.mixer(q, k, v, state)
        return self.o(merge_heads(y)), state


class Expert(nn.Module):
    def __init__(self, d, hidden):
        super().__init__()
        self.up, self.down = linear(2 * hidden, d), linear(d, hidden)

    def forward(self, x):
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class Moe(nn.Module):
    """Routed experts; an expert's label vector is its row of the router matrix."""

    def __init__(self, config):
        super().__init__()
        moe, d = config["moe"], config["hidden_size"]
        self.top_k, self.label_bias = moe["top_k"], moe["label_bias"]
        self.router = nn.Linear(d, moe["num_experts"])
        self.experts = nn.ModuleList(Expert(d, moe["intermediate_size"])
                                     for _ in range(moe["num_experts"]))

    def forward(self, x):
        rows = x.flatten(0, 1)
        probs = self.router(rows).softmax(dim=-1)
        # A stable sort: of equal probabilities the lower expert wins.
        values, order = probs.sort(dim=-1, descending=True, stable=True)
        values, chosen = values[:, :self.top_k], order[:, :self.top_k]
        weights = values / (values.sum(-1, keepdim=True) + 1e-8)
        out = torch.zeros_like(rows)
        for e, expert in enumerate(self.experts):
            row, slot = torch.where(chosen == e)
            f, w, label = expert(rows[row]), weights[row, slot, None], self.router.weight[e]
            if self.label_bias == "inner":
                y = w * (f + label)
            elif self.label_bias == "outer":
                y = w * f + label
            else:
                y = w * f
            out = out.index_add(0, row, y)
        return out.view_as(x)


class Lobe(nn.Module):
    """Memory Lobe: attention over the layer's own output, without RoPE or output projection."""

    def __init__(self, config, causal):
        super().__init__()
        lobe, d = config["memory_lobe"], config["hidden_size"]
        self.heads = lobe["num_heads"]
        self.norm = RmsNorm(d) if lobe["norm"] else nn.Identity()
        self.q, self.k, self.v = (linear(d, d) for _ in range(3))
        self.mixer = LinearMixer(config["attention"]["kernel"], self.heads, "none",
                                 causal and lobe["mode"] == "causal")

    def forward(self, f, state):
        z = self.norm(f)
        y, state = self.mixer(*(split_heads(w(z), self.heads) for w in (self.q, self.k, self.v)),
                              state)
        return merge_heads(y), state


class Layer(nn.Module):
    def __init__(self, config, index, causal):
        super().__init__()
        d = config["hidden_size"]
        self.norm1 = RmsNorm(d)
        self.attn = Attention(config, index, causal)
        self.norm2 = RmsNorm(d) if config["residual"] == "pre_norm" else None
        self.moe = Moe(config)
        self.lobe = Lobe(config, causal) if config["memory_lobe"]["enabled"] else None

    def forward(self, x, position, state):
        a, state_a = self.attn(self.norm1(x), position, state[0])
        if self.norm2 is not None:  # pre_norm
            x = x + a
            f = self.moe(self.norm2(x))
        else:  # hyper_link: one skip around the whole layer
            f = a + self.moe(a)
        x = x + f
        state_l = None
        if self.lobe is not None:
            y, state_l = self.lobe(f, state[1])
            x = x + y
        return x, (state_a, state_l)


class ElaModel(nn.Module):
    def __init__(self, config, causal=True):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config, i, causal) for i in range(config["num_layers"]))
        self.final_norm = RmsNorm(config["hidden_size"]) if config["final_norm"] else nn.Identity()

    @classmethod
    def load(cls, folder, dtype=torch.float32):
        """The model of an exported folder: weights and config.json."""
        folder = pathlib.Path(folder)
        tensors, metadata = read_weights(folder)
        causal = metadata.get("ela.objective") != "masked_token"
        model = cls(json.loads((folder / "config.json").read_text()), causal).to(dtype)
        model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()})
        return model.eval()

    def forward(self, ids, states=None, return_states=False):
        """Logits [B, L, V]. states: as an earlier call returned them; the ids go on from there."""
        position, states = states if states is not None else (0, [(None, None)] * len(self.layers))
        x, after = self.embed(ids), []
        for layer, state in zip(self.layers, states):
            x, state = layer(x, position, state)
            after.append(state)
        logits = self.final_norm(x) @ self.embed.weight.T
        return (logits, (position + ids.shape[1], after)) if return_states else logits

    @torch.no_grad()
    def generate(self, ids, max_new_tokens=64, temperature=1.0, top_k=0):
        """ids [B, L] and the new tokens after them; each token costs O(1), whatever L is."""
        logits, states = self(ids, return_states=True)
        for i in range(max_new_tokens):
            last = logits[:, -1]
            if top_k > 0:
                last = last.masked_fill(last < last.topk(top_k).values[:, -1:], -math.inf)
            if temperature > 0:
                token = torch.multinomial((last / temperature).softmax(-1), 1)
            else:
                token = last.argmax(-1, keepdim=True)
            ids = torch.cat([ids, token], dim=1)
            if i + 1 < max_new_tokens:
                logits, states = self(token, states, return_states=True)
        return ids


def read_weights(folder):
    """{name: tensor} and metadata of model.safetensors, or of the parts its index names."""
    files = ["model.safetensors"]
    if not (folder / files[0]).exists():
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        files = sorted(set(index["weight_map"].values()))
    tensors, metadata = {}, {}
    for file in files:
        part, metadata = read_safetensors(folder / file)
        tensors.update(part)
    return tensors, metadata


def read_safetensors(path):
    """A .safetensors file: u64 header size, JSON header, little-endian data."""
    data = bytearray(pathlib.Path(path).read_bytes())
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + size])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        dtype = DTYPES[info["dtype"]]
        count = (end - begin) // torch.empty((), dtype=dtype).element_size()
        tensor = torch.frombuffer(data, dtype=dtype, count=count, offset=8 + size + begin)
        tensors[name] = tensor.view(info["shape"])
    return tensors, metadata
