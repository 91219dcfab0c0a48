import torch
from torch import nn

from bigain.profiling.operations import Operations, count_pass, on_meta, operations_of


def test_a_multiply_add_counts_as_two_and_modules_by_their_path():
    model = on_meta(nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 7, bias=False)))
    counter = count_pass(lambda rows: model(torch.empty(rows, 3, device="meta")), 4, "")
    assert counter.get_total_flops() == 2 * 4 * (3 * 5 + 5 * 7)
    assert operations_of(counter, model, ("0",)) == 2 * 4 * 3 * 5


def test_a_copy_on_the_meta_device_keeps_ties_and_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].bias = model[1].bias
    model.register_buffer("counter", torch.zeros(2), persistent=False)
    shadow = on_meta(model)
    assert all(tensor.is_meta for tensor in [*shadow.parameters(), *shadow.buffers()])
    assert shadow[0].bias is shadow[1].bias
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_shares_of_operations():
    counted = Operations(200.0, 150.0, 100.0)
    assert (counted.saved, counted.share) == (0.25, 0.5)
