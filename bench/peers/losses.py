"""The policy loss with the defaults of fusedPolicyLoss, in PyTorch operations."""

import torch


def chosen(logits, ids):
    """log_softmax and gather: log-probs of the tokens."""
    return torch.log_softmax(logits, -1).gather(1, ids[:, None])[:, 0]


def policy_loss(logprobs, old, advantages, rows):
    """Clip 0.8 .. 1.28, dual clip 10, mean over tokens."""
    ratio = torch.exp(torch.clamp(logprobs - old, -20, 20))
    worse = torch.maximum(-advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.28))
    terms = torch.where(advantages < 0, torch.minimum(worse, -advantages * 10), worse)
    return terms.sum() / rows
