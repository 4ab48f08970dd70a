"""References of what memory limits: RMSNorm, SwiGLU, QK-RoPE, embedding, AdamW.

Each operation has a function that takes a case, the packages that are there and whether to compile, and yields pairs of a
variant's name and a function that makes it: operands are made when their turn comes, and freed after it.

Backward passes are timed alone: the forward runs anew before each, untimed, so that what a backward overwrites is whole again.
"""

import torch
from torch import nn

from measure import BF16, Form, Reference, compared, compile_fresh, normal, sample

EPS = 1e-6
# Transformers rounds to bf16 between its passes: two or three roundings of 2^-9, on values near the largest.
TOLERANCE = 2e-2


def grad_form(forward, inputs, upstream, restore=lambda: None, name=""):
    """The backward of `forward`, whose outputs get the gradients `upstream`; `restore` mends operands that it overwrites."""

    def prepare():
        restore()
        with torch.enable_grad():
            outputs = forward()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return outputs, [g.clone() for g in upstream]

    def run(prepared):
        outputs, grads = prepared
        return torch.autograd.grad(outputs, inputs, grads)

    return Form(run=run, prepare=prepare, name=name)


def forward_form(forward, restore=lambda: None):
    def run(_):
        with torch.no_grad():
            return forward()

    return Form(run=run, prepare=restore)


# RMSNorm


def rms_norm(variant, hidden):
    if variant == "liger":
        from liger_kernel.transformers.rms_norm import LigerRMSNorm as Norm
    else:
        from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm as Norm
    norm = Norm(hidden, eps=EPS).to(device="cuda", dtype=BF16)
    norm.weight = nn.Parameter(normal(hidden))
    return norm


def rms_reference(x, weight, dy=None, dsum=None):
    """y and, with dy, dx in f64 of rows."""
    x = x.detach().double().requires_grad_()
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight.detach().double()
    if dy is None:
        return y
    (dx,) = torch.autograd.grad(y, x, dy.double())
    return dx if dsum is None else dx + dsum.double()


def rmsnorm(case, has):
    tokens, hidden = case["dims"]["tokens"], case["dims"]["hidden"]
    added, backward = "_add_" in case["op"], case["op"].endswith("backward")

    def make(variant):
        norm = rms_norm(variant, hidden)
        # The sum's gradient comes from the norm and from the residual stream; both inputs get it.
        x = [normal(tokens, hidden).requires_grad_(backward) for _ in range(2 if added else 1)]
        dy = [normal(tokens, hidden) for _ in x] if backward else []
        if added and variant == "liger":
            from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

            def whole(a, b):
                return LigerFusedAddRMSNormFunction.apply(a, b, norm.weight, EPS)

        elif added:

            def whole(a, b):
                total = a + b
                return norm(total), total

        else:

            def whole(a):
                return norm(a)

        if variant == "torch_compile":
            whole = compile_fresh(whole)
        rows = sample(tokens)
        columns = sample(hidden)

        def total(at=slice(None)):
            return sum(t.detach()[at].double() for t in x).to(BF16)

        def check_forward(outputs):
            y = outputs[0] if added else outputs
            found = [compared("y", y[rows], rms_reference(total(rows), norm.weight), TOLERANCE)]
            if added:
                found.append(compared("sum", outputs[1][rows], total(rows), TOLERANCE))
            return found

        def check_backward(outputs):
            dx, dweight = outputs[0], outputs[-1]
            dsum = dy[1][rows] if added else None
            want = rms_reference(total(rows), norm.weight, dy[0][rows], dsum)
            all_rows = total().double()
            rstd = torch.rsqrt(all_rows.pow(2).mean(-1, keepdim=True) + EPS)
            sums = (dy[0][:, columns].double() * all_rows[:, columns] * rstd).sum(0)
            return [compared("dx", dx[rows], want, TOLERANCE), compared("dweight", dweight[columns], sums, TOLERANCE)]

        if not backward:
            return Reference(variant, [forward_form(lambda: whole(*x))], check_forward)
        form = grad_form(lambda: whole(*x), [*x, norm.weight], dy)
        return Reference(variant, [form], check_backward)

    for variant in variants(has):
        yield variant, lambda v=variant: make(v)


# SwiGLU


def swiglu(case, has):
    tokens, ffn = case["dims"]["tokens"], case["dims"]["ffn"]
    backward = case["op"].endswith("backward")

    def function_of(variant):
        if variant == "liger":
            from liger_kernel.ops.swiglu import LigerSiLUMulFunction

            return LigerSiLUMulFunction.apply
        from transformers.activations import ACT2FN

        act = ACT2FN["silu"]

        def gated(gate, up):
            return act(gate) * up

        return compile_fresh(gated) if variant == "torch_compile" else gated

    def make(variant):
        function = function_of(variant)
        gate, up = (normal(tokens, ffn).requires_grad_(backward) for _ in range(2))
        rows = sample(tokens)
        wide = [t.detach()[rows].double().requires_grad_() for t in (gate, up)]
        want = nn.functional.silu(wide[0]) * wide[1]
        if not backward:
            check = lambda y: [compared("act", y[rows], want, TOLERANCE)]  # noqa: E731
            return Reference(variant, [forward_form(lambda: function(gate, up))], check)
        dact = normal(tokens, ffn)
        grads = torch.autograd.grad(want, wide, dact[rows].double())
        # Liger's backward writes the gradients where gate and up were.
        kept = [t.detach().clone() for t in (gate, up)] if variant == "liger" else []

        def restore():
            for t, value in zip((gate, up), kept):
                t.data.copy_(value)

        def check(outputs):
            named = zip(("dgate", "dup"), outputs, grads)
            return [compared(name, got[rows], exact, TOLERANCE) for name, got, exact in named]

        return Reference(variant, [grad_form(lambda: function(gate, up), [gate, up], [dact], restore)], check)

    for variant in variants(has):
        yield variant, lambda v=variant: make(v)


def variants(has):
    names = []
    if has["transformers"]:
        names += ["hf_eager", "torch_compile"]
    return names + (["liger"] if has["liger_kernel"] else [])


# QK-RoPE: rotation alone; the bias is part of the projection elsewhere, so that there is no reference for it.


def rotated(x, cos, sin, back=False):
    """In f64; rows of [batch, heads, tokens, head_dim]."""
    x, cos, sin = x.detach().double(), cos.double(), sin.double() * (-1 if back else 1)
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[..., :half], sin[..., :half]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def qk_rope(case, has):
    dims = case["dims"]
    length, k = dims["positions"], dims["head_dim"]
    batch = dims["tokens"] // length
    backward = case["op"].endswith("backward")

    def function_of(variant):
        if variant == "liger":
            from liger_kernel.ops.rope import LigerRopeFunction

            return LigerRopeFunction.apply
        from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

        return compile_fresh(apply_rotary_pos_emb) if variant == "torch_compile" else apply_rotary_pos_emb

    def make(variant):
        function = function_of(variant)

        def heads(count):
            # As projections leave them: [batch, tokens, heads, head_dim], seen with heads before tokens.
            return normal(batch, length, count, k).transpose(1, 2)

        q, key = heads(dims["heads"]).requires_grad_(backward), heads(dims["kv_heads"]).requires_grad_(backward)
        steps = torch.arange(0, k, 2, device="cuda", dtype=torch.float64)
        angles = torch.arange(length, device="cuda", dtype=torch.float64)[:, None] * (1e6 ** (-steps / k))[None]
        angles = torch.cat([angles, angles], dim=-1)[None].expand(batch, -1, -1)
        # Transformers hands them over in the type of the activations.
        cos, sin = angles.cos().to(BF16).contiguous(), angles.sin().to(BF16).contiguous()
        rows = sample(length)
        upstream = [heads(dims["heads"]), heads(dims["kv_heads"])] if backward else []
        exact = [
            rotated(t[-1][:, rows], cos[-1][rows], sin[-1][rows], back=backward)
            for t in (upstream if backward else [q.detach().clone(), key.detach().clone()])
        ]
        # Liger rotates where q and k are.
        kept = [t.detach().clone() for t in (q, key)] if variant == "liger" else []

        def restore():
            for t, value in zip((q, key), kept):
                t.data.copy_(value)

        def check(outputs):
            named = zip(("q", "k"), outputs, exact)
            return [compared(name, got[-1][:, rows], want, TOLERANCE) for name, got, want in named]

        if not backward:
            return Reference(variant, [forward_form(lambda: function(q, key, cos, sin), restore)], check)

        def forward():
            # What Liger overwrites must not be a leaf.
            a, b = (q.view_as(q), key.view_as(key)) if variant == "liger" else (q, key)
            return function(a, b, cos, sin)

        return Reference(variant, [grad_form(forward, [q, key], upstream, restore)], check)

    for variant in variants(has):
        yield variant, lambda v=variant: make(v)


# Embedding


def embedding(case, has):
    dims = case["dims"]
    tokens, vocab, hidden = dims["tokens"], dims["vocab"], dims["hidden"]
    backward = case["op"].endswith("backward")

    def make():
        table = normal(vocab, hidden).requires_grad_(backward)
        # Frequencies that fall off as those of words do.
        top = torch.log(torch.tensor(float(vocab), device="cuda"))
        ids = (torch.rand(tokens, device="cuda") * top).exp().long().clamp(1, vocab) - 1
        rows = sample(tokens)

        def forward():
            return nn.functional.embedding(ids, table)

        if not backward:
            check = lambda x: [compared("x", x[rows], table[ids[rows]], 0.0)]  # noqa: E731
            return Reference("torch_eager", [forward_form(forward)], check)
        dx = normal(tokens, hidden)
        looked = ids[rows].unique()
        want = torch.stack([dx[ids == i].double().sum(0) for i in looked])
        check = lambda out: [compared("dtable", out[0][looked], want, TOLERANCE)]  # noqa: E731
        form = grad_form(forward, [table], [dx])
        # A bf16 gradient of the whole table, zeros and all.
        form.note = "its gradient is bf16 and written whole, ours f32 and added to where words occur"
        return Reference("torch_eager", [form], check)

    yield "torch_eager", make


# AdamW

PIECE = 4864 * 896
HYPER = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
STEP = 100


def pieces(n, make):
    """A model's worth of matrices."""
    return [make(min(PIECE, n - start)) for start in range(0, n, PIECE)]


def adamw_update(case, has):
    n = case["dims"]["parameters"]
    dtype = torch.float32 if case["op"] == "adamw_master" else BF16

    def make(variant):
        fused = variant == "torch_fused"
        parameters = pieces(n, lambda size: nn.Parameter(normal(size, scale=0.02, dtype=dtype)))
        for p in parameters:
            p.grad = normal(p.numel(), scale=1e-3, dtype=dtype)
        optimizer = torch.optim.AdamW(parameters, **HYPER, fused=fused, foreach=not fused)
        for p in parameters:
            step = torch.tensor(float(STEP - 1), device="cuda" if fused else "cpu")
            m, v = normal(p.numel(), scale=3e-4, dtype=dtype), normal(p.numel(), scale=3e-4, dtype=dtype).square()
            optimizer.state[p] = {"step": step, "exp_avg": m, "exp_avg_sq": v}
        at = sample(parameters[-1].numel(), 1000)
        last = parameters[-1]
        state = optimizer.state[last]
        p0, g0, m0, v0 = (t.detach()[at].double() for t in (last, last.grad, state["exp_avg"], state["exp_avg_sq"]))

        def check(_):
            beta1, beta2 = HYPER["betas"]
            m, v = beta1 * m0 + (1 - beta1) * g0, beta2 * v0 + (1 - beta2) * g0 * g0
            root = (v / (1 - beta2**STEP)).sqrt() + HYPER["eps"]
            want = p0 * (1 - HYPER["lr"] * HYPER["weight_decay"]) - HYPER["lr"] * m / (1 - beta1**STEP) / root
            # In bf16 decay and update round one after the other, and so do the steps to the moment.
            of_p, of_m = (1e-5, 1e-5) if dtype == torch.float32 else (6e-3, 1e-2)
            return [compared("p", last[at], want, of_p), compared("m", state["exp_avg"][at], m, of_m)]

        size = torch.finfo(dtype).bits // 8
        note = f"parameters, moments and gradients {str(dtype).removeprefix('torch.')}"
        # The host takes some milliseconds for as many tensors.
        form = Form(run=lambda _: optimizer.step(), bytes=7 * size * n, note=note, sleep_cycles=40_000_000)
        return Reference(variant, [form], check)

    for variant in ("torch_foreach", "torch_fused"):
        yield variant, lambda v=variant: make(v)


def adamw_norm(case, has):
    n = case["dims"]["parameters"]

    def make():
        grads = pieces(n, lambda size: normal(size, scale=1e-3, dtype=torch.float32))

        def check(total):
            want = sum(g.double().square().sum() for g in grads).sqrt()
            return [compared("norm", total, want, 1e-4)]

        form = Form(run=lambda _: torch.nn.utils.get_total_norm(grads, foreach=True), sleep_cycles=40_000_000)
        return Reference("torch_foreach", [form], check)

    yield "torch_foreach", make


OPS = {
    "rmsnorm_forward": rmsnorm,
    "rmsnorm_backward": rmsnorm,
    "rmsnorm_add_forward": rmsnorm,
    "rmsnorm_add_backward": rmsnorm,
    "swiglu_forward": swiglu,
    "swiglu_backward": swiglu,
    "qk_rope_forward": qk_rope,
    "qk_rope_backward": qk_rope,
    "embedding_forward": embedding,
    "embedding_backward": embedding,
    "adamw_norm": adamw_norm,
    "adamw_master": adamw_update,
    "adamw_rounded": adamw_update,
}
