"""Golden numbers for the ops, in float64 numpy, from the formulas of FAPO, GRPO, verl and TRL.

    python3 scripts/golden.py test/fixtures/fapo_golden.json            writes the file
    python3 scripts/golden.py --check test/fixtures/fapo_golden.json    compares it with what would be written

Every gradient in it is checked here against central differences. numpy 1.24 gives the committed file byte for byte;
another numpy may differ in the last bit of an exp, so --check accepts a relative difference of 1e-12.
"""

import argparse
import json
import math
import sys

import numpy as np

# ---- rewards

CORRECT, FLAWED, WRONG = (1, 0), (1, 1), (0, 0)


def fapo_reward(correct, flawed, penalty=1.0):
    return (1.0 if correct else -1.0) - (penalty if correct and flawed else 0.0)


def overlong(length, max_length, buffer, factor=1.0):
    return min(-(length - (max_length - buffer)) / buffer * factor, 0.0)


def genrm_reward(predicted, truth, steps):
    """FAPO, eq. 7, as its code has it; None stands for an answer that cannot be parsed."""
    if predicted is None or not (predicted == -1 or 0 <= predicted < steps):
        return -1.0
    if truth == -1:
        return 1.0 if predicted == -1 else -1.0
    if predicted == -1:
        return -1.0
    return 1.0 - abs(predicted - truth) / steps


def golden_rewards():
    pairs = [(-1, -1), (-1, 3), (3, -1), (3, 3), (3, 5), (5, 3), (0, 6), (3, 7), (3, -2), (-1, None), (3, None)]
    return {
        "genrm_n7": [{"gt": t, "pred": p, "reward": genrm_reward(p, t, 7)} for t, p in pairs],
        "overlong_8192_4096": [
            {"L": n, "pen": overlong(n, 8192, 4096)} for n in (1, 4095, 4096, 4097, 6144, 8191, 8192)
        ],
        "overlong_20480_4096": [{"L": n, "pen": overlong(n, 20480, 4096)} for n in (16384, 16385, 18432, 20480)],
    }


# ---- advantages

GROUPS = {
    "warmup_2C2F4W": [CORRECT] * 2 + [FLAWED] * 2 + [WRONG] * 4,
    "shift_3C2F3W": [CORRECT] * 3 + [FLAWED] * 2 + [WRONG] * 3,
    "refine_5C2F1W": [CORRECT] * 5 + [FLAWED] * 2 + [WRONG],
    "noneg_6C2F": [CORRECT] * 6 + [FLAWED] * 2,
    "noC_3F5W": [FLAWED] * 3 + [WRONG] * 5,
    "allC": [CORRECT] * 8,
    "allF": [FLAWED] * 8,
    "allW": [WRONG] * 8,
    "singleton_C": [CORRECT],
    "singleton_W": [WRONG],
    "singleton_F": [FLAWED],
}
CONVENTIONS = ["paper", "verl", "trl", "mlx", "openrlhf", "drgrpo", "rloo"]
PENALTIES = (0.0, 2 / 3, 1.0, 4 / 3)


def advantages(rewards, convention):
    rewards = np.asarray(rewards, float)
    n = len(rewards)
    mean = rewards.mean()
    centred = rewards - mean
    singleton = n == 1
    if convention == "paper":  # population deviation, no epsilon, 0/0 = 0
        std = rewards.std()
        return centred / std if std > 0 else np.zeros(n)
    if convention == "verl":  # a singleton has mean 0 and deviation 1
        return rewards / (1 + 1e-6) if singleton else centred / (rewards.std(ddof=1) + 1e-6)
    if convention == "trl":
        return np.zeros(1) if singleton else centred / (rewards.std(ddof=1) + 1e-4)
    if convention == "mlx":
        return centred / (rewards.std() + 1e-4)
    if convention == "openrlhf":  # needs n > 1
        return np.full(1, np.nan) if singleton else centred / (rewards.std(ddof=1) + 1e-9)
    if convention == "drgrpo":  # no deviation; a singleton keeps its reward, as in verl
        return rewards.copy() if singleton else centred
    if convention == "rloo":  # the mean of the others is the baseline
        return rewards.copy() if singleton else centred * n / (n - 1)
    raise ValueError(convention)


def golden_advantages():
    golden = {}
    for name, classes in GROUPS.items():
        for penalty in PENALTIES:
            rewards = [fapo_reward(correct, flawed, penalty) for correct, flawed in classes]
            entry = {
                "rewards": rewards,
                "mean": float(np.mean(rewards)),
                "std0": float(np.std(rewards)),
                "std1": float(np.std(rewards, ddof=1)) if len(rewards) > 1 else None,
            }
            for convention in CONVENTIONS:
                entry[convention] = advantages(rewards, convention).tolist()
            golden[f"{name}|lam={penalty:.6f}"] = entry
    return {"advantages": golden}


# ---- log-probs

LOGITS = np.array(
    [
        [2.0, -1.0, 0.5, 0.0, 3.0],
        [0.1, 0.2, 0.3, 0.4, 0.5],
        [-50.0, 10.0, 10.0, -3.0, 4.0],
        [1000.0, 999.0, 998.0, 0.0, -1000.0],
    ]
)
LABELS = np.array([4, 0, 3, 1])


def log_softmax(logits, labels, temperature=1.0, softcap=None):
    """Log-prob of each label, entropy, log-sum-exp, probabilities."""
    z = softcap * np.tanh(logits / softcap) if softcap else logits
    z = z / temperature
    top = z.max(-1, keepdims=True)
    exps = np.exp(z - top)
    total = exps.sum(-1, keepdims=True)
    lse = (top + np.log(total))[:, 0]
    probs = exps / total
    entropy = lse - (probs * z).sum(-1)
    return z[np.arange(len(z)), labels] - lse, entropy, lse, probs


def one_hot(labels, vocab):
    return np.eye(vocab)[labels]


def golden_logprobs():
    golden = {}
    for temperature in (1.0, 0.7, 1.2):
        logp, entropy, lse, probs = log_softmax(LOGITS, LABELS, temperature)
        golden[f"logp_T{temperature}"] = {
            "logits": LOGITS.tolist(),
            "labels": LABELS.tolist(),
            "logp": logp.tolist(),
            "entropy": entropy.tolist(),
            "lse": lse.tolist(),
            "sum_pi_sq": (probs**2).sum(-1).tolist(),
        }
    capped = log_softmax(LOGITS[:3], LABELS[:3], softcap=30.0)[0]
    golden["logp_softcap30"] = {"logp": capped.tolist()}

    upstream = np.array([0.5, -1.0, 2.0, 1.0])
    for temperature in (1.0, 0.7):
        probs = log_softmax(LOGITS, LABELS, temperature)[3]
        gradient = upstream[:, None] * (one_hot(LABELS, 5) - probs) / temperature
        # The last row is too steep for differences.
        numeric = central_differences(
            lambda z: (log_softmax(z, LABELS, temperature)[0] * upstream).sum(), LOGITS, step=1e-6
        )
        assert np.abs(numeric - gradient)[:3].max() < 1e-6
        golden[f"dlogits_T{temperature}"] = {"upstream": upstream.tolist(), "dlogits": gradient.tolist()}
    return golden


def central_differences(loss, at, step):
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        above, below = at.copy(), at.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (loss(above) - loss(below)) / (2 * step)
    return gradient


# ---- policy loss

OLD = np.array([[-1.0, -2.0, -0.5, -3.0], [-1.5, -0.2, -4.0, -1.0], [-2.0, -1.0, -1.0, -1.0]])
LOGP = OLD + np.array([[0.0, 0.30, -0.40, 0.10], [0.20, -0.30, 2.5, 0.0], [0.05, 0.0, 0.0, 0.0]])
REF = np.array([[-1.1, -1.7, -1.0, -3.2], [-1.2, -0.4, -2.0, -1.0], [-2.0, -1.0, -1.0, -1.0]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], float)
ADVANTAGES = np.array([1.5, -0.5, 2.0])
CLIP_LOW, CLIP_HIGH, LOG_RATIO_CLAMP = 0.2, 0.28, 20.0


def policy_loss(
    logp,
    old,
    adv,
    mask,
    dual_clip=None,
    delta=None,
    ref=None,
    kl=None,
    kl_coef=0.0,
    aggregation="token-mean",
    global_tokens=None,
    level="token",
):
    """Loss, its gradient with respect to logp, and per token: loss, ratio, KL. Rows are responses."""
    adv = adv[:, None] * np.ones_like(logp)
    log_ratio = np.where(mask > 0, logp - old, 0.0)
    if level == "token":
        ratio = np.exp(np.clip(log_ratio, -LOG_RATIO_CLAMP, LOG_RATIO_CLAMP))
        inside = (np.abs(log_ratio) <= LOG_RATIO_CLAMP) * 1.0
    else:  # GSPO: the geometric mean over the response
        mean = (log_ratio * mask).sum(-1, keepdims=True) / np.maximum(mask.sum(-1, keepdims=True), 1)
        ratio = np.exp(np.minimum(mean, 10.0)) * np.ones_like(logp)
        inside = np.ones_like(logp)

    capped = ratio if delta is None else np.minimum(ratio, delta)
    plain = -adv * capped
    clipped = -adv * np.clip(ratio, 1 - CLIP_LOW, 1 + CLIP_HIGH)
    loss = np.maximum(plain, clipped)
    gradient = np.where(plain >= clipped, -adv * ratio, 0.0)  # equal inside the interval; the clipped branch is flat
    if delta is not None:
        gradient = np.where(ratio <= delta, gradient, 0.0)
    if dual_clip is not None:
        bound = -adv * dual_clip
        binds = (adv < 0) & (loss > bound)
        loss = np.where(binds, bound, loss)
        gradient = np.where(binds, 0.0, gradient)
    gradient = gradient * inside

    kl_value = None
    if kl is not None:
        q = np.where(mask > 0, ref - logp, 0.0)
        kl_value, kl_gradient = {
            "k1": lambda: (-q, np.ones_like(q)),
            "k2": lambda: (0.5 * q * q, -q),
            "k3": lambda: (np.exp(q) - q - 1, 1 - np.exp(q)),
            "k3+": lambda: (np.exp(q) - q - 1, -q),  # the value of k3, the gradient of k2
        }[kl]()
        loss = loss + kl_coef * kl_value
        gradient = gradient + kl_coef * kl_gradient

    rows, width = mask.shape
    lengths = mask.sum(-1, keepdims=True)
    sequences = (mask.sum(-1) > 0).sum()
    weight = {
        "token-mean": lambda: mask / (global_tokens or mask.sum()),
        "seq-mean-token-sum": lambda: mask / sequences,
        "seq-mean-token-mean": lambda: mask / np.maximum(lengths, 1e-8) / sequences,
        "seq-mean-token-sum-norm": lambda: mask / sequences / width,
        "grpo": lambda: mask / np.maximum(lengths, 1) / rows,  # TRL: empty rows are counted
        "dr_grpo": lambda: mask / (rows * width),
    }[aggregation]()

    def counted(values):
        return np.where(mask > 0, values, 0.0)

    clip_fraction = ((clipped > plain) * mask).sum() / mask.sum()
    return {
        "loss": float(counted(loss * weight).sum()),
        "dlogp": counted(gradient * weight),
        "per_token": counted(loss),
        "ratio": counted(ratio),
        "clipfrac": float(clip_fraction),
        "kl": None if kl_value is None else counted(kl_value),
    }


def golden_policy_loss():
    modes = {
        "fapo_default_tokenmean_c10": {"dual_clip": 10.0},
        "c3_tokenmean": {"dual_clip": 3.0},
        "nodual_tokenmean": {},
    }
    for mode in ("seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm", "grpo", "dr_grpo"):
        modes[f"c10_{mode}"] = {"dual_clip": 10.0, "aggregation": mode}
    modes["c10_tokenmean_global20"] = {"dual_clip": 10.0, "global_tokens": 20.0}
    for kl in ("k1", "k2", "k3", "k3+"):
        modes[f"c10_beta0.1_{kl}"] = {"dual_clip": 10.0, "ref": REF, "kl": kl, "kl_coef": 0.1}
    modes["delta4_tokenmean"] = {"delta": 4.0}
    modes["gspo_seqmean"] = {"level": "sequence", "aggregation": "seq-mean-token-mean"}

    golden = {}
    for name, options in modes.items():
        result = policy_loss(LOGP, OLD, ADVANTAGES, MASK, **options)
        # Straight-through gradients (GSPO per token, k3+) are no derivatives of their loss.
        if name not in ("gspo_seqmean", "c10_beta0.1_k3+"):
            numeric = central_differences(
                lambda logp: policy_loss(logp, OLD, ADVANTAGES, MASK, **options)["loss"], LOGP, step=1e-6
            )
            assert np.abs(numeric - result["dlogp"]).max() < 1e-8, name
        golden[name] = {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in result.items()
            if value is not None
        }
    inputs = {
        "old": OLD.tolist(),
        "logp": LOGP.tolist(),
        "A": ADVANTAGES.tolist(),
        "mask": MASK.tolist(),
        "ref": REF.tolist(),
        "eps_low": CLIP_LOW,
        "eps_high": CLIP_HIGH,
    }
    return {"policy_loss_inputs": inputs, "policy_loss": golden}


# ---- one prompt from logits to the gradient of the logits, one token per response


def golden_end_to_end():
    logits = np.array([[1.0, 0.0, -1.0], [0.5, 0.5, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    labels = np.array([0, 2, 1, 1])
    rewards = [fapo_reward(*verdict) for verdict in (CORRECT, FLAWED, WRONG, WRONG)]
    adv = advantages(rewards, "verl")
    logp, _, _, probs = log_softmax(logits, labels)
    old = logp - np.array([0.0, 0.1, -0.3, 0.4])
    result = policy_loss(logp[:, None], old[:, None], adv, np.ones((4, 1)), dual_clip=10.0)
    return {
        "end_to_end": {
            "logits": logits.tolist(),
            "labels": labels.tolist(),
            "old": old.tolist(),
            "rewards": rewards,
            "adv": adv.tolist(),
            "logp": logp.tolist(),
            "ratio": result["ratio"][:, 0].tolist(),
            "loss": result["loss"],
            "dlogp": result["dlogp"][:, 0].tolist(),
            "dlogits": (result["dlogp"] * (one_hot(labels, 3) - probs)).tolist(),
        }
    }


# ---- importance weights from the log-probs of the sampler


def golden_corrections():
    log_ratio = np.array([[0.1, 1.0, -0.5, 0.0], [-1.2, 0.4, 0.0, 0.0]])
    mask = np.array([[1.0, 1, 1, 0], [1, 1, 1, 1]])
    weight = np.exp(log_ratio) * mask
    total = (log_ratio * mask).sum(-1)
    return {
        "is_correction": {
            "log_ratio": log_ratio.tolist(),
            "mask": mask.tolist(),
            "token_raw": weight.tolist(),
            "tis2": np.minimum(weight, 2.0).tolist(),
            "icepop_05_2": np.where((weight >= 0.5) & (weight <= 2), weight, 0.0).tolist(),
            "seq_prod": np.exp(total).tolist(),
            "geo": np.exp(total / mask.sum(-1)).tolist(),
            "k3": ((np.exp(log_ratio) - log_ratio - 1) * mask).tolist(),
        }
    }


def golden():
    return {
        **golden_rewards(),
        **golden_advantages(),
        **golden_logprobs(),
        **golden_policy_loss(),
        **golden_end_to_end(),
        **golden_corrections(),
    }


def compact(value):
    """One line per section, and per entry of the long sections."""
    lines = []
    for name, section in value.items():
        if name in ("advantages", "policy_loss"):
            entries = [f"{json.dumps(key)}:{one_line(entry)}" for key, entry in section.items()]
            lines.append(f"{json.dumps(name)}:{{\n" + ",\n".join(entries) + "\n}")
        else:
            lines.append(f"{json.dumps(name)}:{one_line(section)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def one_line(value):
    return json.dumps(without_nan(value), separators=(",", ":"))


def without_nan(value):
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def same(left, right):
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, (int, float)):
        return math.isclose(left, right, rel_tol=1e-12, abs_tol=1e-15)
    return left == right


def main():
    parser = argparse.ArgumentParser(description="Golden numbers for the ops.")
    parser.add_argument("path", help="the JSON file")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    text = compact(golden())
    if not arguments.check:
        with open(arguments.path, "w", encoding="utf-8") as file:
            file.write(text)
        return
    with open(arguments.path, encoding="utf-8") as file:
        committed = file.read()
    if committed == text:
        print("the same, byte for byte")
    elif same(json.loads(text), json.loads(committed)):
        print("the same within 1e-12")
    else:
        sys.exit(f"{arguments.path} is not what this script writes")


if __name__ == "__main__":
    main()
