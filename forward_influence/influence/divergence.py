"""KL divergence and its companions, from two blocks of logits, accurate where the two hardly differ.

The sum `sum_v p (log p - log q)` cancels: most of its terms are large, its value is small. With `w = z_q - log p + c`,
where `z_q` are the raw logits of q and `c` makes the mean of `w` under p (nearly) zero,

    g = sum_v p (expm1(w) - w) >= 0        r = -sum_v p w  (the rounding left over from c)
    KL(p || q) = r + log1p(g - r)          log q(v) - log p(v) = w(v) - log1p(g - r)

needs one exponential per word, no separate normalisation of q, and every term of `g` is non-negative. What depends on
p alone is computed once per block for all the q that are compared with it.

Some models give words that do not exist a logit of minus infinity. Where both p and q do, the word adds nothing; where
q alone does, the divergence is infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from forward_influence.utils.numerics import rows_in_cache, slices

#: Below this log-probability float32 loses mass (exp underflows at -87), so that rows go the long way in float64.
_LOWEST = -80.0


@dataclass(frozen=True)
class Shift:
    """What changed between two blocks of next-token distributions, per position.

    Attributes:
        kl: KL(p || q) in nats, (rows,).
        nll_delta: log p(target) - log q(target) in nats, (rows,); NaN where there is no target.
        top1_changed: whether q's most likely token differs from p's, (rows,) bool. Where q ties its maximum with p's
            choice, nothing changed.
    """

    kl: Tensor
    nll_delta: Tensor
    top1_changed: Tensor


class Reference:
    """The distributions p of a block of positions, ready to be compared with any number of q.

    Work goes a few rows at a time, so that a row is still in the processor's cache when it is read again.

    Args:
        logits: (rows, vocabulary), float32 or float64; overwritten.
        targets: (rows,) token ids that really came next; negative where there is none.
        p: (rows or more, vocabulary) memory for the probabilities; made where not given.
    """

    def __init__(self, logits: Tensor, targets: Tensor, p: Tensor | None = None) -> None:
        self.log_p, self.targets = logits, targets
        self.p = torch.empty_like(logits) if p is None else p[: len(logits)]
        self._compiled = _compiled_sums() if _compiling.get() else None
        # compiled, each number is read once, so that rows need not stay in the cache
        self._step = rows_in_cache(logits) if self._compiled is None else max(1, len(logits))
        self._work = torch.empty_like(logits[: rows_in_cache(logits)])
        tops, sums, least, impossible = [], [], [], []
        for rows in slices(len(logits), rows_in_cache(logits)):
            part, p_part = logits[rows], self.p[rows]
            work = self._work[: len(part)]
            torch.softmax(part, -1, out=p_part)
            part.copy_(torch.log_softmax(part, -1, out=work))
            low = part.amin(-1)
            missing = torch.isneginf(part) if bool(torch.isneginf(low).any()) else None
            if missing is not None:
                low = _fill(part, missing)
            tops.append(_argmax(part))
            sums.append(torch.mul(p_part, part, out=work).sum(-1))
            least.append(low)
            impossible.append(missing)
        #: (rows, vocabulary): where p's logits are -inf; `log_p` is finite there and stands for nothing.
        self._impossible = _joined(impossible, logits)
        self.top1 = torch.cat(tops)[:, None]
        self._negative_entropy = torch.cat(sums)
        self._lossy = torch.cat(least) < _LOWEST if logits.dtype == torch.float32 else None
        self._any_lossy = self._lossy is not None and bool(self._lossy.any())

    def nll(self) -> Tensor:
        """-log p(target) in nats, (rows,); NaN where there is no target."""
        return -self._log_p_at_targets(slice(None))

    def _log_p_at_targets(self, rows: slice) -> Tensor:
        targets = self.targets[rows]
        found = _at_targets(self.log_p[rows], targets)
        if self._impossible is None:
            return found
        gone = self._impossible[rows].gather(-1, targets.clamp_min(0)[:, None])[:, 0]
        return found.masked_fill(gone & (targets >= 0), float("-inf"))

    def compare(self, logits: Tensor) -> Shift:
        """KL, NLL shift and top-1 change of q, given by `logits` (rows, vocabulary), which are overwritten.

        `logits` may be fewer than the reference's rows: they are then its first.
        """
        parts = [self._compare(rows, logits[rows]) for rows in slices(len(logits), self._step)]
        kl, nll_delta, top1_changed = (torch.cat(values) for values in zip(*parts, strict=True))
        return Shift(kl.to(logits.dtype), nll_delta.to(logits.dtype), top1_changed)

    def _compare(self, rows: slice, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """KL and NLL shift in float64, and top-1 change, of a few rows."""
        log_p, targets = self.log_p[rows], self.targets[rows]
        at_targets = _at_targets(logits, targets)
        original = logits.clone() if self._any_lossy or self._impossible is not None else None
        others = None  # rows in which other words are impossible than for p
        if self._impossible is not None:
            missing = torch.isneginf(logits)
            others = (missing != self._impossible[rows]).any(-1)
            _fill(logits, missing)
        if self._compiled is None:
            (top_of_q, at_top_of_p, centre, g, r), original = self._sums(rows, logits, original)
        else:
            original = logits if original is None else original  # w has memory of its own
            given = (logits, log_p, self.p[rows], self._negative_entropy[rows], self.top1[rows])
            top_of_q, at_top_of_p, centre, g, r = self._compiled(*given)
        log_normaliser = torch.log1p(g.double() - r.double())
        kl = (r.double() + log_normaliser).clamp_min(0)
        w_at_targets = at_targets - self._log_p_at_targets(rows) + centre
        nll_delta = log_normaliser - w_at_targets.double()
        redo = ~torch.isfinite(kl)
        if self._any_lossy and self._lossy is not None:
            redo |= self._lossy[rows]
        if others is not None:
            redo |= others
        if bool(redo.any()):
            again = redo.nonzero()[:, 0]
            # w stands where the logits were
            z = original if original is not None else logits + log_p - centre[:, None]
            kl[again], nll_delta[again] = self._compare_in_float64(again + rows.start, z[again])
        return kl, nll_delta, top_of_q > at_top_of_p

    def _sums(
        self, rows: slice, logits: Tensor, original: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """`_sums_of` in memory that is taken once; `logits` become w, of which infinite ones could not be had back."""
        log_p, p = self.log_p[rows], self.p[rows]
        work = self._work[: len(logits)]
        top_of_q, at_top_of_p = logits.amax(-1), logits.gather(-1, self.top1[rows])[:, 0]
        centre = self._negative_entropy[rows] - torch.mul(p, logits, out=work).sum(-1)
        if original is None and not bool(torch.isfinite(centre).all()):
            original = logits.clone()
        w = logits.sub_(log_p).add_(centre[:, None])
        g = torch.expm1(w, out=work).sub_(w).mul_(p).sum(-1)
        return (top_of_q, at_top_of_p, centre, g, -torch.mul(p, w, out=work).sum(-1)), original

    def _compare_in_float64(self, rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The same for rows whose probabilities leave float32's range: plain, in float64."""
        log_p, log_q = self.log_p[rows].double(), logits.double().log_softmax(-1)
        if self._impossible is not None:
            log_p = log_p.masked_fill(self._impossible[rows], float("-inf"))
        log_p = log_p.log_softmax(-1)
        p, delta = log_p.exp(), log_p - log_q
        far = p * delta + (log_q.exp() - p)
        near = p * (delta + torch.expm1(-delta))
        terms = torch.where(p > 0, torch.where(delta.abs() < 1, near, far), log_q.exp())
        targets = self.targets[rows]
        nll_delta = delta.gather(-1, targets.clamp_min(0)[:, None])[:, 0]
        return terms.sum(-1).clamp_min(0), nll_delta.masked_fill(targets < 0, float("nan"))


def _fill(logits: Tensor, missing: Tensor) -> Tensor:
    """Put each row's lowest finite value where words are missing; that value, (rows,)."""
    low = logits.masked_fill(missing, float("inf")).amin(-1)
    logits.copy_(torch.where(missing, low[:, None], logits))
    return low


def _joined(parts: list[Tensor | None], like: Tensor) -> Tensor | None:
    """Masks of consecutive rows as one, (rows, vocabulary); None where nothing is masked."""
    if all(part is None for part in parts):
        return None
    masks = torch.zeros(like.shape, dtype=torch.bool, device=like.device)
    for rows, part in zip(slices(len(like), rows_in_cache(like)), parts, strict=True):
        if part is not None:
            masks[rows] = part
    return masks


def _sums_of(
    logits: Tensor, log_p: Tensor, p: Tensor, negative_entropy: Tensor, top1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Per row: the largest logit, the one at p's choice, c, g and r."""
    centre = negative_entropy - (p * logits).sum(-1)
    w = logits - log_p + centre[:, None]
    g = ((torch.expm1(w) - w) * p).sum(-1)
    return logits.amax(-1), logits.gather(-1, top1)[:, 0], centre, g, -(p * w).sum(-1)


_compiling: ContextVar[bool] = ContextVar("compiling", default=False)


@contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Whether the divergence runs compiled inside: once it is, each block of logits is read once instead of six times.

    Compiling takes most of a minute, once per process. Results differ by rounding.
    """
    token = _compiling.set(wanted)
    try:
        yield
    finally:
        _compiling.reset(token)


@cache
def _compiled_sums() -> Callable[..., tuple[Tensor, ...]]:
    return torch.compile(_sums_of, dynamic=True)


def _argmax(values: Tensor) -> Tensor:
    """(rows,) int64. On a processor numpy's, which is vectorised and several times faster than torch's."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argmax(-1))
    return values.argmax(-1)


def _at_targets(values: Tensor, targets: Tensor) -> Tensor:
    picked = values.gather(-1, targets.clamp_min(0)[:, None])[:, 0]
    return picked.masked_fill(targets < 0, float("nan"))
