import torch
from torch import nn

from bigain.profiling.operations import Operations, count_pass, on_meta, operations_of


def test_a_multiply_add_counts_as_two_and_modules_by_their_path():
    model = on_meta(nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 7, bias=False)))
    counter = count_pass(lambda rows: model(torch.empty(rows, 3, device="meta")), 4, "")
    assert counter.get_total_flops() == 2 * 4 * (3 * 5 + 5 * 7)
    assert operations_of(counter, model, ("0",)) == 2 * 4 * 3 * 5


def test_shares_of_operations():
    counted = Operations(200.0, 150.0, 100.0)
    assert (counted.saved, counted.share) == (0.25, 0.5)
