"""References of causal attention with grouped queries: PyTorch's SDPA where all documents are as long, its variable-length
attention where they are not."""

import inspect

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from measure import Reference, compared, normal
from pointwise import forward_form, grad_form

# Probabilities and outputs are rounded to bf16.
TOLERANCE = 2e-2


def exact(q, k, v, dout=None):
    """One document and one key/value head in f64: q is [heads of it, tokens, head_dim], k and v [tokens, head_dim]."""
    q, k, v = (t.detach().double().requires_grad_() for t in (q, k, v))
    tokens = q.shape[1]
    scores = q @ k.T / q.shape[-1] ** 0.5
    hidden = torch.ones(tokens, tokens, device="cuda", dtype=torch.bool).triu(1)
    out = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1) @ v
    if dout is None:
        return out.detach()
    return torch.autograd.grad(out, [q, k, v], dout.double())


def sdpa(case, backend, variant, backward):
    dims = case["dims"]
    batch, length = len(case["documents"]), case["documents"][0]
    heads, kv_heads, k = dims["heads"], dims["kv_heads"], dims["head_dim"]
    group = heads // kv_heads

    def rows(count):
        # As projections leave them: [batch, tokens, heads, head_dim], seen with heads before tokens.
        return normal(batch, length, count, k).transpose(1, 2)

    q, key, value = rows(heads), rows(kv_heads), rows(kv_heads)
    dout = rows(heads) if backward else None
    wide = [t.repeat_interleave(group, dim=1) for t in (key, value)]
    inputs = {"enable_gqa": (q, key, value), "expanded keys and values": (q, *wide)}

    def check(outputs):
        # The last document, and the first heads of its last key/value head.
        own = slice((kv_heads - 1) * group, heads)
        operands = (q[-1, own], key[-1, -1], value[-1, -1])
        if not backward:
            return [compared("out", outputs[-1, own], exact(*operands), TOLERANCE)]
        got_q, got_k, got_v = outputs
        if got_k.shape[1] == heads:
            got_k, got_v = (t.double().unflatten(1, (kv_heads, group)).sum(2) for t in (got_k, got_v))
        want = exact(*operands, dout=dout[-1, own])
        got = (got_q[-1, own], got_k[-1, -1], got_v[-1, -1])
        return [compared(name, g, w, TOLERANCE) for name, g, w in zip(("dq", "dk", "dv"), got, want)]

    forms = []
    for name, operands in inputs.items():
        operands = [t.detach().requires_grad_(backward) for t in operands]
        grouped = name == "enable_gqa"

        def forward(operands=operands, grouped=grouped):
            with sdpa_kernel([backend]):
                return torch.nn.functional.scaled_dot_product_attention(*operands, is_causal=True, enable_gqa=grouped)

        form = grad_form(forward, operands, [dout]) if backward else forward_form(forward)
        form.name = name
        forms.append(form)
    return Reference(variant, usable(forms), check)


def usable(forms):
    """Forms that the backend takes: it may know no grouped queries. What it refuses is noted beside the others, or is the row's
    error if it takes none."""
    found, refused = [], []
    for form in forms:
        try:
            result = form.run(form.prepare())
            torch.cuda.synchronize()
            del result
            found.append(form)
        except (RuntimeError, ValueError) as error:
            refused.append((form.name, error))
    if not found:
        raise refused[-1][1]
    for form in found:
        form.note = "; ".join(f"{name} refused: {str(error).splitlines()[0]}" for name, error in refused)
    return found


def varlen(case, backward):
    from torch.nn.attention.varlen import varlen_attn

    dims = case["dims"]
    tokens, heads, kv_heads, k = (dims[name] for name in ("tokens", "heads", "kv_heads", "head_dim"))
    group, lengths = heads // kv_heads, case["documents"]
    boundaries = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    known = inspect.signature(varlen_attn).parameters
    causal = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}
    q, key, value = normal(tokens, heads, k), normal(tokens, kv_heads, k), normal(tokens, kv_heads, k)
    dout = normal(tokens, heads, k) if backward else None
    wide = [t.repeat_interleave(group, dim=1) for t in (key, value)]
    grouped = {**causal, "enable_gqa": True} if "enable_gqa" in known else causal
    inputs = [("grouped queries", (q, key, value), grouped), ("expanded keys and values", (q, *wide), causal)]
    longest = max(range(len(lengths)), key=lengths.__getitem__)

    def check(outputs):
        found = []
        for document in {0, longest, len(lengths) - 1}:
            at = slice(int(boundaries[document]), int(boundaries[document + 1]))
            own = slice((kv_heads - 1) * group, heads)
            operands = (q[at, own].transpose(0, 1), key[at, -1], value[at, -1])
            if not backward:
                want = exact(*operands).transpose(0, 1)
                found.append(compared(f"out of document {document}", outputs[at, own], want, TOLERANCE))
                continue
            got_q, got_k, got_v = outputs
            if got_k.shape[1] == heads:
                got_k, got_v = (t.double().unflatten(1, (kv_heads, group)).sum(2) for t in (got_k, got_v))
            if lengths[document] == 1:
                # dq and dk of one token cancel to nothing.
                continue
            want_q, want_k, want_v = exact(*operands, dout=dout[at, own].transpose(0, 1))
            for name, got, want in (
                ("dq", got_q[at, own].transpose(0, 1), want_q),
                ("dk", got_k[at, -1], want_k),
                ("dv", got_v[at, -1], want_v),
            ):
                found.append(compared(f"{name} of document {document}", got, want, TOLERANCE))
        return found

    forms = []
    for name, operands, options in inputs:
        operands = [t.detach().requires_grad_(backward) for t in operands]

        def forward(operands=operands, options=options):
            return varlen_attn(*operands, boundaries, boundaries, max(lengths), max(lengths), **options)

        form = grad_form(forward, operands, [dout]) if backward else forward_form(forward)
        form.name = name
        forms.append(form)
    return Reference("flash_varlen", usable(forms), check)


def attention(case, has):
    backward = case["op"].endswith("backward")
    if len(set(case["documents"])) == 1:
        backends = [("sdpa_flash", SDPBackend.FLASH_ATTENTION), ("sdpa_cudnn", SDPBackend.CUDNN_ATTENTION)]
        for variant, backend in backends:
            yield variant, lambda v=variant, b=backend: sdpa(case, b, v, backward)
        return
    yield "flash_varlen", lambda: varlen(case, backward)


OPS = {"attention_forward": attention, "attention_backward": attention}
