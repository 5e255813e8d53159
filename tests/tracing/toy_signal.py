"""A signal of one's own and a rule that reads it, in one file: what it takes, and nothing elsewhere.

`recurrence:K` counts how often each token's id stood among the K tokens before it. `key_size` is a number per entry.
"""

from __future__ import annotations

import torch

from forward_influence.selectors import selector
from forward_influence.tracing.signals import Cost, Recording, Signal, TokenRecording, TokenSignal, register
from forward_influence.tracing.signals.base import entries


class Recurrence(TokenSignal):
    name = "recurrence"
    about = "how often a token's id stood among the K tokens before it"
    default = 16

    def recording(self, number, setting):
        return RecurrenceRecording(self.key(number), number, setting)

    def cost(self, sizes, context, chunk, number):
        return Cost(kept=8 * context, recording=8 * number)


class RecurrenceRecording(TokenRecording):
    def __init__(self, key, number, setting):
        super().__init__(key, setting)
        self._number, self._before = number, []

    def passed(self, tokens, hidden):
        counts = []
        for token in tokens.tolist():
            counts.append(self._before.count(token))
            self._before = [*self._before, token][-self._number :]
        self.add(torch.tensor(counts, device=tokens.device))


class KeySize(Signal):
    name = "key_size"
    about = "length of each key as the recorder saw it, (L, H, n)"

    def recording(self, number, setting):
        return KeySizeRecording(setting.layers)

    def cost(self, sizes, context, chunk, number):
        return Cost(kept=entries(sizes, context) * sizes.wide)


class KeySizeRecording(Recording):
    def __init__(self, layers):
        self._layers, self._sizes = layers, {}

    def attention(self, attended):
        new = attended.key[:, -attended.query.shape[1] :].norm(dim=-1)
        before = self._sizes.get(attended.layer, new[:, :0])
        self._sizes[attended.layer] = torch.cat([before, new], dim=-1)

    def evict(self, layer, index, holes):
        kept = self._sizes[layer].gather(1, index)
        self._sizes[layer] = kept if holes is None else kept.masked_fill(holes, 0)

    def value(self, part):
        heads = list(part.group.heads)
        sizes = (self._sizes[self._layers[row]][heads] for row in part.group.rows)
        return torch.stack([size[:, size.shape[1] - part.n :] for size in sizes])


register(Recurrence())
register(KeySize())

#: What the rule read: positions, tokens, recurrence, key sizes, and the sizes of the keys that are held.
SEEN = []


@selector("recurrent", needs={"recurrence:8", "key_size"})
def recurrent(trace):
    """Tokens that stood there a moment ago, and their larger keys."""
    count, size = trace.signal("recurrence:8"), trace.signal("key_size")
    held = torch.stack([trace.keys(i).norm(dim=-1) for i in range(len(trace.layers))])
    SEEN.append((trace.positions, trace.tokens, count, size, held))
    return count + size / size.max()
