"""References of linear cross-entropy: loss and gradients of x and W, forward and backward together, and the memory they need."""

import torch

from measure import Form, Reference, compared, compile_fresh, normal, sample

# Logits, their gradients and the results are rounded to bf16.
TOLERANCE = 3e-2
ROWS = 1024


def witness(x, w, labels):
    """lse of every row, and the mean loss, in f32 a few rows at a time."""
    wide = w.detach().float()
    lse, loss = [], 0.0
    for start in range(0, x.shape[0], ROWS):
        z = x.detach()[start : start + ROWS].float() @ wide.T
        lse.append(torch.logsumexp(z, dim=-1))
        target = z.gather(1, labels[start : start + ROWS, None])[:, 0]
        loss += (lse[-1] - target).double().sum()
    return torch.cat(lse), loss / x.shape[0]


def checks(x, w, labels):
    """What loss, dx and dW should be at sampled rows; those of dW are sums over all tokens."""
    lse, loss = witness(x, w, labels)
    tokens = x.shape[0]
    rows = sample(tokens, 2)
    z = x.detach()[rows].float() @ w.detach().float().T
    dz = torch.softmax(z.double(), dim=-1)
    dz[torch.arange(len(rows), device="cuda"), labels[rows]] -= 1
    dx = (dz.float() / tokens) @ w.detach().float()
    words = labels[rows].unique()
    p = torch.exp(x.detach().float() @ w.detach()[words].float().T - lse[:, None])
    p -= (labels[:, None] == words[None]).float()
    dw = (p / tokens).T @ x.detach().float()
    del z, dz, p

    def check(outputs):
        got_loss, got_dx, got_dw = outputs
        return [
            compared("loss", got_loss, loss, 1e-3),
            compared("dx", got_dx[rows], dx, TOLERANCE),
            compared("dw", got_dw[words], dw, TOLERANCE),
        ]

    return check


def linear_ce(case, has):
    dims = case["dims"]
    tokens, hidden, vocab = dims["tokens"], dims["hidden"], dims["vocab"]

    def dense():
        from transformers.loss.loss_utils import ForCausalLMLoss

        def loss(x, w, labels):
            logits = torch.nn.functional.linear(x, w)
            return ForCausalLMLoss(logits, None, vocab, shift_labels=labels)

        return loss

    def liger(accumulate):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        def loss(x, w, labels):
            # Only what is named: the rest are its defaults.
            defaults = (None, None, -100, 0.0, 0.0, "mean", None, False)
            result = LigerFusedLinearCrossEntropyFunction.apply(x, w, labels, *defaults, accumulate)
            return result[0] if isinstance(result, tuple) else result

        return loss

    def make(variant, loss_of, note):
        loss = loss_of()
        x = normal(tokens, hidden).requires_grad_()
        w = normal(vocab, hidden, scale=0.02).requires_grad_()
        labels = torch.arange(tokens, device="cuda") * 7919 % vocab
        check = checks(x, w, labels)

        def run(_):
            value = loss(x, w, labels)
            dx, dw = torch.autograd.grad(value, [x, w])
            return value, dx, dw

        return Reference(variant, [Form(run=run, note=note)], check, measure_memory=True)

    of_head = "gradient of the head bf16, ours f32"
    ways = []
    if has["transformers"]:
        ways.append(("hf_eager", dense, of_head))
        ways.append(("torch_compile", lambda: compile_fresh(dense()), of_head))
    if has["liger_kernel"]:
        ways.append(("liger", lambda: liger(None), f"{of_head}: its default"))
        ways.append(("liger_f32", lambda: liger(torch.float32), "gradient of the head added up in f32, as ours"))
    for variant, loss_of, note in ways:
        yield variant, lambda v=variant, make_loss=loss_of, n=note: make(v, make_loss, n)


OPS = {"linear_ce": linear_ce}
