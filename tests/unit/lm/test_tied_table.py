"""A table that is embedding and head: one gradient for both uses, the same that autograd sums."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from helpers.small_models import FAMILIES, packed, small_lm
from helpers.utterances import LAYOUT
from sheen.codec.layout import Softmax
from sheen.lm.loss import TiedTable
from sheen.lm.model import SpeechLM


def tied_model(softmax: Softmax, padding_idx: int | None = None) -> SpeechLM:
    config = deepcopy(FAMILIES["qwen3"])
    config.pad_token_id = padding_idx
    return SpeechLM(small_lm(config).train(), LAYOUT, softmax)


def gradients(model: SpeechLM, rows: int) -> dict[str, Tensor]:
    model.zero_grad()
    for _ in range(rows):
        model(packed()).loss.sum().backward()
    return {name: part.grad.clone() for name, part in model.named_parameters()}


@pytest.mark.parametrize("softmax", ["masked", "full"])
@pytest.mark.parametrize("padding_idx", [None, int(packed().input_ids[0, 2])])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_gradient_is_what_autograd_sums(
    softmax: Softmax, padding_idx: int | None, rows: int
) -> None:
    """Of a token that is padding to the base, which learns nothing where it is looked up, too."""
    model = tied_model(softmax, padding_idx)
    expected, loss = gradients(model, rows), model(packed()).loss
    model.prepare_training()
    found = gradients(model, rows)
    assert type(model.inputs_and_head(packed().input_ids)[1].grad_fn).__name__ == "_HeadBackward"
    assert torch.equal(model(packed()).loss, loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_frozen_layers_leave_the_gradient_whole() -> None:
    """As with adapters, where the table learns and the body does not."""
    model = tied_model("masked")
    for name, part in model.named_parameters():
        part.requires_grad_("embed_tokens" in name)
    model(packed()).loss.sum().backward()
    expected = model.head.grad
    assert expected is not None
    model.zero_grad()
    model.prepare_training()
    model(packed()).loss.sum().backward()
    torch.testing.assert_close(model.head.grad, expected, rtol=1e-5, atol=1e-5)


def scale_what_is_looked_up(model: SpeechLM) -> None:
    embedding = model.lm.get_input_embeddings()
    embedding.register_forward_hook(lambda module, inputs, output: 2 * output)


def make_another_class(model: SpeechLM) -> None:
    class Scaled(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return 2 * super().forward(ids)

    table = Scaled(*model.head.shape)
    table.weight = model.lm.get_input_embeddings().weight
    model.lm.set_input_embeddings(table)


def untie(model: SpeechLM) -> None:
    embedding = model.lm.get_input_embeddings()
    embedding.weight = nn.Parameter(embedding.weight.detach().clone())


@pytest.mark.parametrize("change", [scale_what_is_looked_up, make_another_class, untie])
def test_other_tables_are_left_to_autograd(change: Callable[[SpeechLM], None]) -> None:
    model = tied_model("masked")
    change(model)
    model.prepare_training()
    inputs, head = model.inputs_and_head(packed().input_ids)
    assert list(inputs) == ["input_ids"]
    assert head is model.head


def test_without_gradients_nothing_is_shared() -> None:
    model = tied_model("masked")
    model.prepare_training()
    with torch.no_grad():
        assert model.inputs_and_head(packed().input_ids)[1] is model.head


def test_rows_without_a_head_are_an_error() -> None:
    """Else their gradient would be lost."""
    table = TiedTable(nn.Embedding(4, 2))
    with pytest.raises(RuntimeError, match="or never used"):
        table.look_up(torch.tensor([1])).sum().backward()
    head = table.head()
    with pytest.raises(RuntimeError, match="was it made first"):
        (table.look_up(torch.tensor([1])) @ head.T).sum().backward()
