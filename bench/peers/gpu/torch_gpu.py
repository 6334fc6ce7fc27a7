"""PyTorch on a GPU, eager and compiled, and the Triton kernels of Liger and flash-attention, which it takes from paths:

    FAPO_LIGER=<checkout of Liger-Kernel>/src FAPO_FLASH_ATTENTION=<checkout of flash-attention>

Written for torch 2.11 and triton 3.6 from the sources of the peers. It has not been run yet.
"""

import importlib.util
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import numpy
import torch
import torch.nn.functional as F
from losses import chosen, policy_loss
from protocol import Contender, serve

device = torch.device("cuda", int(os.environ.get("FAPO_PEER_DEVICE", "0")))
numpy_types = {"float32": numpy.float32, "bfloat16": numpy.int16, "float16": numpy.float16}
log_tolerance = {"float32": [1e-3, 1e-4], "bfloat16": [2**-7, 2**-7], "float16": [2**-9, 2**-9]}
grad_tolerance = {"float32": [1e-10, 2e-3], "bfloat16": [1e-6, 5e-2], "float16": [2**-10, 5e-2]}


def events(call):
    """Milliseconds between two events; `cpu` is what the host waited, so that hidden synchronisations show."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    elapsed = start.elapsed_time(end)
    return {"wall": elapsed, "cpu": elapsed}


def peak_extra_bytes(call):
    """Of torch's allocator, beyond what was allocated before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def module_of(path):
    """A file as a module: the package around it may import extensions that are not built."""
    spec = importlib.util.spec_from_file_location("peer_" + os.path.basename(path)[:-3], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def liger():
    """Liger's GRPO loss and its selective log-softmax, or a reason why not."""
    path = os.environ.get("FAPO_LIGER")
    if path is None:
        return None, "Liger: FAPO_LIGER is not set"
    sys.path.insert(0, path)
    try:
        from liger_kernel.ops.grpo_loss import fused_selective_log_softmax
        from liger_kernel.transformers.grpo_loss import triton_grpo_loss
    except Exception as error:
        return None, f"Liger: {error}"
    return (triton_grpo_loss, fused_selective_log_softmax), None


def flash_cross_entropy():
    """flash-attention's Triton cross entropy, or a reason why not."""
    path = os.environ.get("FAPO_FLASH_ATTENTION")
    if path is None:
        return None, "flash-attention: FAPO_FLASH_ATTENTION is not set"
    try:
        return module_of(os.path.join(path, "flash_attn/ops/triton/cross_entropy.py")).cross_entropy_loss, None
    except Exception as error:
        return None, f"flash-attention: {error}"


def load(problem):
    rows, vocab, dtype, files = (problem[key] for key in ("rows", "vocab", "dtype", "files"))
    logits = torch.from_numpy(numpy.fromfile(files["logits"], dtype=numpy_types[dtype]).reshape(rows, vocab))
    if dtype == "bfloat16":
        logits = logits.view(torch.bfloat16)
    ids = torch.from_numpy(numpy.fromfile(files["tokenIds"], dtype=numpy.int32).astype(numpy.int64))
    names = [name for name in ("oldLogprobs", "advantages") if name in files]
    terms = [torch.from_numpy(numpy.fromfile(files[name], dtype=numpy.float32)) for name in names]
    return logits.to(device), ids.to(device), [term.to(device) for term in terms]


compiled_chosen = torch.compile(lambda logits, ids: chosen(logits.float(), ids), dynamic=False)


@torch.no_grad()
def open_logprobs(problem):
    logits, ids, _ = load(problem)
    dtype, rows = problem["dtype"], problem["rows"]
    ways = {
        "log_softmax + gather": (lambda: chosen(logits, ids), dtype),
        "torch.compile, log_softmax of .float() + gather": (lambda: compiled_chosen(logits, ids), "float32"),
        "cross_entropy": (lambda: -F.cross_entropy(logits, ids, reduction="none"), dtype),
    }
    left_out = []
    cross_entropy, why = flash_cross_entropy()
    if cross_entropy:
        ways["flash-attention cross_entropy_loss"] = (lambda: -cross_entropy(logits, ids)[0], "float32")
    else:
        left_out.append(why)
    kernels, why = liger()
    if kernels:
        # One sequence, and a last position that it does not look at.
        longer = torch.cat([logits, logits[-1:]])[None]
        ways["Liger fused_selective_log_softmax"] = (
            lambda: kernels[1](longer, ids[None], temperature=1.0)[0],
            "float32",
        )
    else:
        left_out.append(why)
    contenders = []
    for name, (compute, result) in ways.items():
        results = lambda compute=compute: {"logprobs": compute().float().cpu().numpy()}
        tolerance = {"logprobs": log_tolerance[result]}
        contenders.append(Contender(name, rows, torch.no_grad()(compute), torch.no_grad()(results), tolerance))
    return contenders, left_out


def open_loss(problem):
    logits, ids, (old, advantages) = load(problem)
    dtype, rows, scale = (problem[key] for key in ("dtype", "rows", "gradScale"))
    pristine = logits.clone()
    logits.requires_grad_()

    def loss(x):
        return policy_loss(chosen(x.float(), ids), old, advantages, rows) * scale

    compiled = torch.compile(loss, dynamic=False)

    def restore():
        logits.grad = None

    def step(compute):
        compute(logits).backward()

    def results(compute):
        restore()
        step(compute)
        logprobs = chosen(logits.detach()[:rows].float(), ids)
        return {"logprobs": logprobs.cpu().numpy(), "gradLogits": logits.grad[:4].float().cpu().numpy()}

    tolerance = {"logprobs": log_tolerance["float32"], "gradLogits": grad_tolerance[dtype]}
    contenders = [
        Contender(name, rows, lambda c=compute: step(c), lambda c=compute: results(c), tolerance, restore)
        for name, compute in {"autograd": loss, "torch.compile": compiled}.items()
    ]

    kernels, why = liger()
    if kernels is None:
        return contenders, [why]
    # One advantage per response, and a last position that it does not look at: [responses, length + 1, vocab].
    length = min(rows, 64)
    if rows % length != 0:
        return contenders, [f"Liger: {rows} rows are no whole responses of {length} tokens"]
    responses, vocab = rows // length, logits.shape[1]
    padded = torch.zeros(responses, length + 1, vocab, dtype=logits.dtype, device=device, requires_grad=True)
    per_response = [old.view(responses, length), None, ids.view(responses, length), advantages[::length].contiguous()]

    def refill():
        with torch.no_grad():
            padded[:, :length] = pristine.view(responses, length, vocab)
        padded.grad = None

    def liger_step():
        options = {"temperature": 1.0, "beta": 0.0, "eps_low": 0.2, "eps_high": 0.28, "loss_type": "dapo"}
        result = kernels[0](padded, *per_response, inplace=True, reduce=True, **options)
        (result[0] * scale).backward()

    def liger_results():
        refill()
        liger_step()
        logprobs = chosen(pristine.float(), ids)
        return {"logprobs": logprobs.cpu().numpy(), "gradLogits": padded.grad[0, :4].float().cpu().numpy()}

    contenders.append(Contender("Liger triton_grpo_loss", rows, liger_step, liger_results, tolerance, refill))
    return contenders, []


def open_problem(problem):
    return open_logprobs(problem) if problem["kind"] == "tokenLogprob" else open_loss(problem)


name = f"PyTorch {torch.__version__} on {torch.cuda.get_device_name(device)}"
serve(name, open_problem, sample=events, memory=peak_extra_bytes)
