"""Guided attention: a term of the training loss by which some heads look along the text.

A model that starts at random may go on for long without its text: the audio before it says most of
a token, and the loss falls all the same. The term is the negative logarithm of the attention that
HEADS heads of one layer give to the text about where speech would be if it went through it evenly.
It follows Tachibana et al. 2017, who penalize attention away from that diagonal; as a likelihood it
also draws attention from audio to text. It is for the beginning: speech is not even.

Owns the term. Refuses bases whose layers have no number or hand nothing on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sheen.lm.batching import Segments

HEADS = 2
WIDTH = 0.15
"""Standard deviation of the expected place in the text, as a share of its length."""
DEPTH = 3
"""The layer at a third of the base's: where CosyVoice 2 was found to align (arXiv 2509.19852)."""


class Guide:
    """The term of one forward pass over one packed row; `loss` is set by that pass.

    prompts: tokens of each utterance's prompt; an utterance of nothing else is padding.
    """

    def __init__(self, lm: PreTrainedModel, prompts: Sequence[int]) -> None:
        self.layer = int(lm.config.get_text_config().num_hidden_layers) // DEPTH
        self._family = lm.config.model_type
        self._prompts = tuple(prompts)
        self._loss: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        """The term in nats: the mean over heads, the sum over the positions that predict audio."""
        if self._loss is None:
            raise ValueError(
                f"guided attention: the base {self._family!r} does not show its attention; train "
                "without --guided-attention"
            )
        return self._loss

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def observe(
        self, query: Tensor, key: Tensor, segments: Segments, scaling: float | None
    ) -> None:
        """Compute the term; `query` `[1, heads, T, d]`, `key` with as many heads or fewer."""
        heads = min(HEADS, query.shape[1])
        shared = query.shape[1] // key.shape[1]
        with torch.autocast(query.device.type, enabled=False):
            queries = query[0, :heads].float() * (scaling or query.shape[-1] ** -0.5)
            # Not by a list of indices, whose copy to the device would make the step wait.
            keys = torch.stack([key[0, head // shared] for head in range(heads)]).float()
            losses = [
                _off_the_text(q, k, prompt)
                for q, k, prompt in zip(
                    queries.split(segments.lengths, 1),
                    keys.split(segments.lengths, 1),
                    self._prompts,
                    strict=True,
                )
                if prompt < q.shape[1]
            ]
            # The last term gives a gradient to a row of padding alone.
            self._loss = torch.stack([*losses, 0.0 * queries.sum()]).sum()


def _off_the_text(queries: Tensor, keys: Tensor, prompt: int) -> Tensor:
    """The term of one utterance; queries and keys are `[heads, n, d]`."""
    asking = queries[:, prompt - 1 : -1]  # <audio_start> predicts the first code
    scores = asking @ keys.transpose(1, 2)
    count, length = scores.shape[1:]
    later = torch.ones(count, length, dtype=torch.bool, device=scores.device).triu(prompt)
    spoken = torch.linspace(0, 1, count, device=scores.device)[:, None]
    written = torch.linspace(0, 1, prompt, device=scores.device)
    band = -((spoken - written) / WIDTH).square() / 2
    on_text = (scores[..., :prompt] + band).logsumexp(-1)
    everywhere = scores.masked_fill(later, -torch.inf).logsumexp(-1)
    return (everywhere - on_text).mean(0).sum()
