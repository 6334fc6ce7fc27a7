"""Losses and gradients by PyTorch's autograd in float64, for test/torch.test.ts.

    python3 scripts/torch-fixtures.py test/fixtures/torch.json

Each loss is written the plain way, from the formulas, with torch operations; autograd does the rest. Inputs are float32
numbers, outputs float64. On an exact tie of min or max torch splits the gradient, so every case is checked to lie away
from the kinks of the loss; inside the clip interval both branches are the same and the halves add up.
"""

import argparse
import json
import math

import torch

IGNORE = -100

# Options are those of fusedPolicyLoss; `make` says what the data look like.
CASES = [
    dict(name="defaults", seed=1, rows=8, vocab=11, lengths=[3, 5]),
    dict(name="temperature and mask", seed=2, rows=10, vocab=17, lengths=[4, 6], masked=[0, 5, 9],
         options=dict(temperature=0.7, gradScale=8.0)),
    dict(name="softcap, dual clip 3, ignored ids", seed=3, rows=9, vocab=40, lengths=[2, 3, 4], scale=20.0, ignored=[4],
         options=dict(logitSoftcap=15.0, temperature=1.2, clipRatioC=3.0)),
    dict(name="k1, sequence means of sums", seed=4, rows=12, vocab=7, lengths=[5, 0, 7], masked=[1, 11],
         options=dict(klEstimator="k1", klCoef=0.3, lossAggMode="seq-mean-token-sum")),
    dict(name="k2, sequence means of means", seed=5, rows=11, vocab=32, lengths=[4, 1, 6], masked=[4, 6, 7],
         options=dict(klEstimator="k2", klCoef=0.05, lossAggMode="seq-mean-token-mean")),
    dict(name="k3, token-sum, weights per token", seed=6, rows=8, vocab=33, lengths=[8], weights="token",
         options=dict(klEstimator="k3", klCoef=0.2, lossAggMode="token-sum", temperature=0.9)),
    dict(name="sum-norm, weights per sequence", seed=7, rows=12, vocab=13, lengths=[4, 4, 4], weights="sequence",
         options=dict(lossAggMode="seq-mean-token-sum-norm", horizon=6.0, clipRatioC=1.5)),
    dict(name="entropy bonus, global tokens", seed=8, rows=9, vocab=19, lengths=[3, 3, 3], masked=[2],
         options=dict(entropyCoef=0.02, globalTokens=40, temperature=1.5)),
    dict(name="entropy, softcap, k3, everything", seed=9, rows=12, vocab=29, lengths=[5, 2, 5], masked=[0, 6], scale=8.0,
         weights="token", options=dict(entropyCoef=0.1, logitSoftcap=10.0, temperature=0.8, klEstimator="k3", klCoef=0.5,
         lossAggMode="seq-mean-token-mean", globalSequences=5, gradScale=3.0, clipRatioLow=0.1, clipRatioHigh=0.5)),
    dict(name="advantages per token", seed=10, rows=7, vocab=8, lengths=[7], advantages="token"),
    dict(name="no old log-probs", seed=11, rows=6, vocab=23, lengths=[2, 4], old=None,
         options=dict(klEstimator="k3", klCoef=0.1)),
    dict(name="clamped ratios and clamped KL", seed=12, rows=10, vocab=12, lengths=[5, 5], old="wild",
         options=dict(klEstimator="k3", klCoef=0.1, lossAggMode="token-mean")),
    dict(name="k1 and a narrow clamp, wild", seed=13, rows=10, vocab=12, lengths=[5, 5], old="wild",
         options=dict(klEstimator="k1", klCoef=0.1, logRatioClamp=3.0, clipRatioHigh=100.0)),
    dict(name="k2, wild, no dual clip", seed=14, rows=10, vocab=9, lengths=[10], old="wild",
         options=dict(klEstimator="k2", klCoef=0.01, clipRatioC=math.inf, logRatioClamp=5.0)),
    dict(name="masked vocabulary", seed=15, rows=8, vocab=16, lengths=[8], minus_infinity=5,
         options=dict(temperature=0.6)),
]  # fmt: skip


def float32(values):
    """Rounds to what a float32 can hold, and stays in float64."""
    return values.to(torch.float32).to(torch.float64)


def make(case):
    generator = torch.Generator().manual_seed(case["seed"])

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, vocab, sequences = case["rows"], case["vocab"], len(case["lengths"])
    options = case.get("options", {})
    data = {
        "logits": float32(normal(rows, vocab) * case.get("scale", 2.0)),
        "tokenIds": torch.randint(0, vocab, (rows,), generator=generator),
        "cuSeqlens": torch.tensor([0, *torch.tensor(case["lengths"]).cumsum(0).tolist()]),
    }
    if "minus_infinity" in case:
        for row in range(rows):
            banned = torch.randperm(vocab, generator=generator)[: case["minus_infinity"]]
            banned = banned[banned != data["tokenIds"][row]]
            data["logits"][row, banned] = -math.inf
    # The first and the last token of the vocabulary are among the targets.
    data["tokenIds"][1], data["tokenIds"][2] = 0, vocab - 1
    data["logits"][1, 0] = data["logits"][2, vocab - 1] = 0.5
    for row in case.get("ignored", []):
        data["tokenIds"][row] = IGNORE
    if "masked" in case:
        data["responseMask"] = torch.ones(rows, dtype=torch.int64)
        data["responseMask"][case["masked"]] = 0

    logprobs = float32(token_logprobs(data, options)[0])
    data["logprobs"] = logprobs
    if case.get("old", "near") == "near":
        data["oldLogprobs"] = float32(logprobs + normal(rows) * 0.4)
        data["oldLogprobs"][0] = float32(logprobs[0] - 2.6)  # a ratio of 13, for the dual clip
    elif case["old"] == "wild":
        gaps = torch.tensor([0.1, -25.0, 30.0, 50.0, -50.0, 1e4, -1e4, 2.0, -0.3, 6.0], dtype=torch.float64)
        data["oldLogprobs"] = float32(logprobs + gaps[:rows])
    if "klEstimator" in options:
        data["refLogprobs"] = float32(logprobs + normal(rows) * 0.5)
        if case.get("old") == "wild":
            gaps = torch.tensor([25.0, 3.0, 2.6, -0.1, -25.0, 1e4, -1e4, 0.7, 1.9, 19.5], dtype=torch.float64)
            data["refLogprobs"] = float32(logprobs + gaps[:rows])
    per_token = case.get("advantages") == "token"
    data["advantages"] = float32(normal(rows if per_token else sequences) * 1.3)
    if sequences > 1 and not per_token:
        data["advantages"][0] = -abs(data["advantages"][0])
    if "weights" in case:
        data["importanceWeights"] = float32(normal(rows if case["weights"] == "token" else sequences).exp())
    return data


def token_logprobs(data, options, logits=None):
    """Log-prob of the chosen token, log-sum-exp, entropy."""
    x = data["logits"] if logits is None else logits
    cap = options.get("logitSoftcap")
    z = (cap * torch.tanh(x / cap) if cap else x) / options.get("temperature", 1.0)
    log_p = torch.log_softmax(z, -1)
    ids = data["tokenIds"].clamp(min=0)
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0.0)).sum(-1)
    return log_p.gather(-1, ids[:, None])[:, 0], torch.logsumexp(z, -1), entropy


def counted_tokens(data):
    counted = data["tokenIds"] != IGNORE
    return counted & (data["responseMask"] != 0) if "responseMask" in data else counted


def sequence_of_token(data):
    lengths = data["cuSeqlens"].diff()
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def aggregation_weights(data, options):
    counted = counted_tokens(data).to(torch.float64)
    sequence = sequence_of_token(data)
    lengths = torch.zeros(len(data["cuSeqlens"]) - 1, dtype=torch.float64).index_add(0, sequence, counted)
    sequences = options.get("globalSequences", (lengths > 0).sum())
    mode = options.get("lossAggMode", "token-mean")
    if mode == "token-mean":
        return counted / options.get("globalTokens", counted.sum())
    if mode == "token-sum":
        return counted
    if mode == "seq-mean-token-sum":
        return counted / sequences
    if mode == "seq-mean-token-mean":
        return counted / sequences / lengths.clamp(min=1)[sequence]
    return counted / sequences / options["horizon"]


def policy_loss(data, options, logprobs, entropy=None):
    """The loss, and per token what the metrics are made of."""
    sequence = sequence_of_token(data)

    def per_token(values):
        return values[sequence] if len(values) == len(data["cuSeqlens"]) - 1 else values

    advantages = per_token(data["advantages"])
    old = data["oldLogprobs"] if "oldLogprobs" in data else logprobs.detach()
    bound = options.get("logRatioClamp", 20.0)
    log_ratio = torch.clamp(logprobs - old, -bound, bound)
    ratio = log_ratio.exp()
    low, high = 1 - options.get("clipRatioLow", 0.2), 1 + options.get("clipRatioHigh", 0.28)
    plain = -advantages * ratio
    clipped = -advantages * torch.clamp(ratio, low, high)
    loss = torch.max(plain, clipped)
    dual = -advantages * options.get("clipRatioC", 10.0)
    binds = (advantages < 0) & (loss > dual)
    loss = torch.where(advantages < 0, torch.min(loss, dual), loss)
    if "importanceWeights" in data:
        loss = loss * per_token(data["importanceWeights"])

    kl = torch.zeros_like(loss)
    if "refLogprobs" in data:
        q = torch.clamp(data["refLogprobs"] - logprobs, -20, 20)
        kl = {"k1": -q, "k2": q * q / 2, "k3": torch.clamp(q.exp() - q - 1, -10, 10)}[options["klEstimator"]]
        loss = loss + options["klCoef"] * kl
    if entropy is not None:
        loss = loss - options.get("entropyCoef", 0.0) * entropy
    counted = counted_tokens(data)
    total = (torch.where(counted, loss, torch.zeros_like(loss)) * aggregation_weights(data, options)).sum()

    away_from_kinks(data, options, counted, advantages, (logprobs - old).detach(), ratio.detach(), low, high)
    chosen = [values.detach()[counted] for values in (ratio, log_ratio, kl)]
    share = lambda condition: condition[counted].to(torch.float64).mean().item()  # noqa: E731
    metrics = {
        "clipFractionHigh": share((clipped > plain) & (advantages > 0)),
        "clipFractionLow": share((clipped > plain) & (advantages < 0)),
        "clipFractionDual": share(binds),
        "ratioMean": chosen[0].mean().item(),
        "ratioMax": chosen[0].max().item(),
        "approxKl": (chosen[0] - 1 - chosen[1]).mean().item(),
        "kl": chosen[2].mean().item(),
        "tokens": int(counted.sum()),
    }
    return total, metrics


def away_from_kinks(data, options, counted, advantages, difference, ratio, low, high):
    kinks = [ratio - low, ratio - high, ratio - options.get("clipRatioC", 10.0)]
    kinks.append(difference.abs() - options.get("logRatioClamp", 20.0))
    if "refLogprobs" in data:
        q = data["refLogprobs"] - data["logprobs"]
        kinks += [q.abs() - 20, q.clamp(max=20).exp() - q.clamp(max=20) - 1 - 10]
    for distance in kinks:
        assert (distance[counted].abs() > 1e-3).all(), distance
    assert (advantages[counted].abs() > 1e-3).all()


def outputs(data, options):
    generator = torch.Generator().manual_seed(99)
    rows = len(data["tokenIds"])
    counted = counted_tokens(data)
    zero = torch.zeros(rows, dtype=torch.float64)
    scale = options.get("gradScale", 1.0)

    # policyLoss: from the log-probs, which are float32 numbers; the op never sees ids, so they are in the mask.
    leaf = data["logprobs"].clone().requires_grad_()
    loss, metrics = policy_loss(data, options, leaf)
    loss.backward()
    policy = {"loss": loss.item(), "gradLogprobs": (leaf.grad * scale).tolist(), "metrics": metrics}

    # fusedPolicyLoss: from the logits.
    leaf = data["logits"].clone().requires_grad_()
    logprobs, lse, entropy = token_logprobs(data, options, leaf)
    loss, metrics = policy_loss(data, options, logprobs, entropy)
    metrics["entropy"] = entropy.detach()[counted].mean().item()
    loss.backward()
    fused = {"loss": loss.item(), "gradLogits": (leaf.grad * scale).flatten().tolist(), "metrics": metrics}
    forward = {
        name: torch.where(counted, values.detach(), zero).tolist()
        for name, values in (("logprobs", logprobs), ("lse", lse), ("entropy", entropy))
    }

    # tokenLogprobBackward: any gradient of both outputs.
    grad_logprobs, grad_entropy = (
        float32(torch.randn(rows, generator=generator, dtype=torch.float64)) for _ in range(2)
    )
    leaf = data["logits"].clone().requires_grad_()
    logprobs, _, entropy = token_logprobs(data, options, leaf)
    torch.where(counted, logprobs * grad_logprobs + entropy * grad_entropy, zero).sum().backward()
    backward = {
        "inputs": {"gradLogprobs": grad_logprobs.tolist(), "gradEntropy": grad_entropy.tolist()},
        "gradLogits": leaf.grad.flatten().tolist(),
    }
    return {"forward": forward, "policyLoss": policy, "fusedPolicyLoss": fused, "backward": backward}


def plain(value):
    """JSON has neither -Infinity nor Infinity: strings."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def main():
    parser = argparse.ArgumentParser(description="Losses and gradients by PyTorch's autograd.")
    parser.add_argument("path", help="the JSON file to write")
    path = parser.parse_args().path

    lines = []
    for case in CASES:
        options = case.get("options", {})
        data = make(case)
        entry = {
            "name": case["name"],
            "rows": case["rows"],
            "vocab": case["vocab"],
            "options": options,
            "inputs": {name: values.flatten().tolist() for name, values in data.items()},
            **outputs(data, options),
        }
        lines.append(json.dumps(plain(entry), separators=(",", ":")))
    header = {"torch": torch.__version__, "command": "python3 scripts/torch-fixtures.py test/fixtures/torch.json"}
    with open(path, "w", encoding="utf-8") as file:
        head = ",\n".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in header.items())
        file.write("{\n" + head + ',\n"cases":[\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()
