"""Devices of one process: a thread each, of which one runs at a time, with random generators of its own."""

import collections
import threading

import torch

from pretrain.learning.stage_parallel.share import Share


class Turns:
    """One thread runs at a time; another one takes over when it waits for a message."""

    def __init__(self):
        self.condition, self.holder, self.failed = threading.Condition(), None, False

    def wait_for(self, queue):
        """The next message of a queue; meanwhile other threads run, and draw from their own generators."""
        state = torch.get_rng_state()
        with self.condition:
            self.holder = None
            self.condition.notify_all()
            ready = self.condition.wait_for(lambda: self.failed or self.holder is None and queue, timeout=60)
            assert ready and not self.failed, "no message"
            self.holder = threading.current_thread()
        torch.set_rng_state(state)
        return queue.popleft()

    def run(self, function):
        with self.condition:
            self.condition.wait_for(lambda: self.holder is None or self.failed)
            self.holder = threading.current_thread()
        try:
            function()
        except BaseException:
            self.failed = True
            raise
        finally:
            with self.condition:
                self.holder = None
                self.condition.notify_all()


class QueuePorts:
    """Ports to neighbours in the same process; counts what is sent."""

    def __init__(self, turns, up_in, up_out, down_in, down_out):
        self.turns, self.sent = turns, collections.Counter()
        self.up_in, self.up_out, self.down_in, self.down_out = up_in, up_out, down_in, down_out
        self.posted, self.received = 0, []  # gradients

    def send_activation(self, h, random):
        self.sent["activation"] += 1
        self.up_out.append((h.clone(), random))

    def receive_activation(self):
        return self.turns.wait_for(self.up_in)

    def send_gradient(self, gradient):
        self.sent["gradient"] += 1
        self.down_out.append(gradient.clone())

    def receive_gradient(self):
        """As a network does: a message belongs to the call at which its receipt began."""
        number, self.posted = self.posted, self.posted + 1

        def wait():
            while len(self.received) <= number:
                self.received.append(self.turns.wait_for(self.down_in))
            return self.received[number]

        return wait


def run_devices(learners, work, late=False):
    """Call ``work(share, ports)`` for each device, a learner each; the ports, after all have ended."""
    turns, count = Turns(), len(learners)
    up, down = ([collections.deque() for _ in range(count + 1)] for _ in range(2))
    ports = [QueuePorts(turns, up[d], up[d + 1], down[d + 1], down[d]) for d in range(count)]
    errors = []

    def device(d):
        def of_device():
            torch.manual_seed(100 + d)
            work(Share(learners[d], d, late), ports[d])

        try:
            turns.run(of_device)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=device, args=(d,)) for d in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return ports
