"""Chunks: fixed contents, each once over all processes, whatever was done before."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import distributed

from bigain.data.chunks import chunk_loader
from bigain.data.dataset import ImageDataset
from bigain.data.module import ImageData
from bigain.data.prompts import ClassPrompts
from bigain.errors import DataError, SettingError
from tests.trainers import QUIET


class Seen(LightningModule):
    """Remembers the chunks that reach it."""

    def __init__(self, finished=()):
        super().__init__()
        self.finished_chunks, self.seen, self.ended = finished, [], False

    def test_step(self, batch, batch_idx):
        self.seen.append((batch["chunk"], batch["index"].tolist()))

    def on_test_epoch_end(self):
        self.ended = True


def as_rank(monkeypatch, rank, world):
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(distributed, "get_world_size", lambda: world)


@pytest.mark.parametrize("workers", [0, 2])
def test_chunks_have_fixed_items_and_done_ones_are_left_out(shades, workers):
    images = ImageDataset.open(shades(10), 8)
    whole = {chunk["chunk"]: chunk for chunk in chunk_loader(images, 4, workers=workers)}
    assert [whole[k]["index"].tolist() for k in whole] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert whole[2]["image"].shape == (2, 3, 8, 8)
    assert whole[2]["image"][:, 0, 0, 0].tolist() == [8, 9]
    assert whole[2]["labels"].tolist() == [[2], [0]]
    assert whole[2]["image"].dtype == torch.uint8
    rest = list(chunk_loader(images, 4, done={0, 2}, workers=workers))
    assert [chunk["chunk"] for chunk in rest] == [1]
    assert torch.equal(rest[0]["image"], whole[1]["image"])


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("done", [(), (1,)])
def test_each_chunk_comes_once_over_all_processes(shades, monkeypatch, world, done):
    images, found = ImageDataset.open(shades(10), 8), []
    for rank in range(world):
        as_rank(monkeypatch, rank, world)
        found += [(chunk["chunk"], chunk["index"].tolist()) for chunk in chunk_loader(images, 3, done)]
    expected = [(0, [0, 1, 2]), (1, [3, 4, 5]), (2, [6, 7, 8]), (3, [9])]
    assert sorted(found) == [chunk for chunk in expected if chunk[0] not in done]


def test_a_size_below_one_is_refused(folder):
    for size in (0, -3):
        with pytest.raises(SettingError, match="chunk is the number of"):
            chunk_loader(ImageDataset.open(folder, 8), size)
        with pytest.raises(SettingError, match="chunk"):
            ImageData(chunk=size)


def test_a_trainer_sees_what_its_task_has_not_finished(folder):
    task = Seen(finished={1})
    Trainer(**QUIET).test(task, datamodule=ImageData(test=folder, image_size=8, chunk=1), verbose=False)
    assert task.seen == [(0, [0]), (2, [2]), (3, [3])]


def test_a_trainer_reaches_the_end_where_all_is_finished(folder):
    """Lightning skips a loop of no batches, and with it the publication of the result."""
    task = Seen(finished={0, 1})
    Trainer(**QUIET).test(task, datamodule=ImageData(test=folder, image_size=8, chunk=2), verbose=False)
    assert task.seen == []
    assert task.ended


class SeenByEach(Seen):
    """Writes down what it saw, in a file of its process."""

    def __init__(self, folder, finished):
        super().__init__(finished)
        self.folder = folder

    def on_test_epoch_end(self):
        (self.folder / str(self.global_rank)).write_text(repr(self.seen))


def test_two_processes_of_a_trainer_share_the_chunks_and_nothing_is_padded(shades, tmp_path, forking):
    """Nine images are five chunks; rank 0 has finished its 0 and 2, and ends long before rank 1."""
    data = ImageData(test=shades(9), image_size=8, classes=("class 0", "class 1", "class 2"), chunk=2)
    trainer = Trainer(**QUIET, strategy="ddp_fork", devices=2)
    trainer.test(SeenByEach(tmp_path, {0, 2}), datamodule=data, verbose=False)
    assert (tmp_path / "0").read_text() == repr([(4, [8])])
    assert (tmp_path / "1").read_text() == repr([(1, [2, 3]), (3, [6, 7])])


def test_prompts_are_classes_in_turn_with_seeds_of_their_own():
    prompts = ClassPrompts(7, ("cat", "dog", "cow"), first_seed=100, chunk=4)
    assert prompts.class_prompts == ("a photo of a cat", "a photo of a dog", "a photo of a cow")
    first, second = prompts.test_dataloader()
    assert first["chunk"] == 0
    assert second["index"].tolist() == [4, 5, 6]
    assert second["label"].tolist() == [1, 2, 0]
    assert second["seed"].tolist() == [104, 105, 106]
    assert ClassPrompts().class_prompts[3] == "a photo of a cat"


@pytest.mark.parametrize("settings", [{"count": 1}, {"classes": ()}, {"chunk": 0}, {"prompt": "a photo"}])
def test_impossible_prompts_are_refused(settings):
    with pytest.raises(SettingError, match=r"ClassPrompts got|A prompt names the class"):
        ClassPrompts(**settings)


def test_training_has_batches_of_one_label_from_memory(folder):
    data = ImageData(train=folder, test=folder, image_size=8, classes=("cat", "dog"), chunk=3)
    data.setup("fit")
    (batch,) = data.train_dataloader()  # the fourth image is dropped
    assert batch["image"].shape == (3, 3, 8, 8)
    assert [batch["label"].shape for batch in data.val_dataloader()] == [(3,), (1,)]
    with pytest.raises(DataError, match="fit needs images to train on"):
        ImageData(test=folder).setup("fit")
