"""A worker that dies is named, however its parent comes to know of it."""

import os
import signal
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Batches

from pretrain.processes.loader import Loader

DATA = TensorDataset(torch.arange(8))


def seeds(worker):
    torch.manual_seed(7)


@pytest.mark.parametrize("of_another", [False, True])
def test_batches_are_those_of_torch(of_another):
    options = {"batch_size": 3, "num_workers": 2, "worker_init_fn": seeds, "generator": torch.Generator()}
    loader = Loader.of(DataLoader(DATA, **options)) if of_another else Loader(DATA, **options)
    assert [batch[0].tolist() for batch in loader] == [[0, 1, 2], [3, 4, 5], [6, 7]] and len(loader) == 3
    assert [batch[0].tolist() for batch in Loader(DATA, batch_size=4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_connection_that_is_reset_is_a_dead_worker(monkeypatch, error):
    """Its sockets close before its parent can wait for it: what torch then raises does not name it."""

    def next_data(batches):
        threading.Timer(0.3, os.kill, (batches._workers[0].pid, signal.SIGKILL)).start()  # until then it seems to live
        raise error

    monkeypatch.setattr(Batches, "_next_data", next_data)
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid \d+\) is killed by signal: Killed"):
        next(iter(Loader(DATA, num_workers=1)))
    assert time.monotonic() - begun < 4  # it waits for the signal only


def test_another_error_is_not_held_up(monkeypatch):
    def next_data(batches):
        raise ConnectionRefusedError("from somewhere else")

    monkeypatch.setattr(Batches, "_next_data", next_data)
    monkeypatch.setattr("pretrain.processes.loader.PATIENCE", 0.01)
    with pytest.raises(ConnectionRefusedError, match="somewhere else"):
        next(iter(Loader(DATA, num_workers=1)))


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(range(7))


def test_a_loader_of_an_endless_or_ended_stream_keeps_its_batches():
    loader = Loader.of(DataLoader(Numbers(), batch_size=3, drop_last=True, num_workers=1, collate_fn=list))
    assert list(loader) == [[0, 1, 2], [3, 4, 5]]
