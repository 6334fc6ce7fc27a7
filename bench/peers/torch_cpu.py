"""PyTorch on the CPU, as trainers call it."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin between calls would take cores from the others

import numpy
import torch
import torch.nn.functional as F
from losses import chosen, policy_loss
from protocol import Contender, serve

numpy_types = {"float32": numpy.float32, "bfloat16": numpy.int16, "float16": numpy.float16}
# Results in 16 bits are rounded to them; float32 ones were 1.5e-4 off at a vocabulary of 151,936, by their sum in float32.
log_tolerance = {"float32": [1e-3, 1e-4], "bfloat16": [2**-7, 2**-7], "float16": [2**-9, 2**-9]}
grad_tolerance = {"float32": [1e-10, 2e-3], "bfloat16": [1e-6, 5e-2], "float16": [2**-10, 5e-2]}


def load(problem):
    rows, vocab, dtype, files = (problem[key] for key in ("rows", "vocab", "dtype", "files"))
    logits = torch.from_numpy(numpy.fromfile(files["logits"], dtype=numpy_types[dtype]).reshape(rows, vocab))
    if dtype == "bfloat16":
        logits = logits.view(torch.bfloat16)
    ids = torch.from_numpy(numpy.fromfile(files["tokenIds"], dtype=numpy.int32).astype(numpy.int64))
    terms = [torch.from_numpy(numpy.fromfile(files[key], dtype=numpy.float32)) for key in files if key not in ("logits", "tokenIds")]
    return logits, ids, terms


def open_problem(problem):
    torch.set_num_threads(problem["threads"])
    dtype, rows = problem["dtype"], problem["rows"]
    logits, ids, terms = load(problem)
    upcasts = [(" of .float()", lambda x: x.float(), "float32")] if dtype != "float32" else []
    ways = [("", lambda x: x, dtype), *upcasts]

    if problem["kind"] == "tokenLogprob":
        contenders = []
        for suffix, widen, result in ways:
            ways_to_logprobs = {
                f"log_softmax{suffix} + gather": lambda widen=widen: chosen(widen(logits), ids),
                f"cross_entropy{suffix}": lambda widen=widen: -F.cross_entropy(widen(logits), ids, reduction="none"),
            }
            for name, compute in ways_to_logprobs.items():
                results = lambda compute=compute: {"logprobs": compute().float().numpy()}
                tolerance = {"logprobs": log_tolerance[result]}
                contenders.append(Contender(name, rows, torch.no_grad()(compute), torch.no_grad()(results), tolerance))
        return contenders, []

    old, advantages = terms
    logits.requires_grad_()

    def restore():
        logits.grad = None

    contenders = []
    for suffix, widen, result in ways:

        def backward(widen=widen):
            logprobs = chosen(widen(logits), ids).float()
            (policy_loss(logprobs, old, advantages, rows) * problem["gradScale"]).backward()
            return logprobs

        def results(backward=backward):
            logprobs = backward().detach().numpy()
            return {"logprobs": logprobs, "gradLogits": logits.grad[:4].float().numpy()}

        tolerance = {"logprobs": log_tolerance[result], "gradLogits": grad_tolerance[dtype]}
        contenders.append(Contender(f"autograd, log_softmax{suffix}", rows, backward, results, tolerance, restore))
    return contenders, []


serve(f"PyTorch {torch.__version__}", open_problem)
