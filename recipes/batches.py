"""Batches of training sequences, made by worker processes: corpus text by domain, conversations, recall tasks."""
import multiprocessing
import os

import numpy as np

from tasks import BOS, TOKEN, Tasks, Text

DOMAINS = ("code", "prose", "structured")
KINDS = DOMAINS + ("chat", "pairs", "needles", "copies", "chat needles")
DOMAIN_SHARES = (0.48, 0.34, 0.18)


def open_text(data, split):
    return Text([os.path.join(data, f"{split}_{d}") for d in DOMAINS], DOMAIN_SHARES)


def make_batch(text, chat, tasks, rng, size, length, task_share, chat_share):
    """-> ids [size, length + 1] int32, loss weights [size, length] float32, kinds [size] (indices into KINDS)."""
    ids = np.empty((size, length + 1), TOKEN)
    weights = np.ones((size, length), np.float32)
    kinds = np.empty(size, np.int64)
    for row in range(size):
        draw = rng.random()
        if draw < task_share:
            kind = rng.choice(["pairs", "needles", "copies", "chat"], p=[0.25, 0.4, 0.1, 0.25])
            ids[row], weights[row] = tasks.make(length, kind)
            kinds[row] = KINDS.index("chat needles" if kind == "chat" else kind)
        elif draw < task_share + chat_share:
            ids[row], kinds[row] = chat.cut(rng, length + 1), 3
        else:
            kinds[row] = rng.choice(3, p=DOMAIN_SHARES)
            ids[row] = text.cut(rng, length + 1, int(kinds[row]))
        ids[row, 0] = BOS
    return ids, weights, kinds


def _work(queue, data, seed, *shape):
    from tokenizers import Tokenizer
    rng = np.random.default_rng(seed)
    text = open_text(data, "train")
    chat = Text([os.path.join(data, "train_chat")], [1])
    tasks = Tasks(Tokenizer.from_file(os.path.join(data, "tokenizer.json")), text, rng)
    while True:
        queue.put(make_batch(text, chat, tasks, rng, *shape))


class Batches:
    """Keeps a queue of batches full; start it before the GPU is used, since the workers are forked."""

    def __init__(self, data, seed, size, length, task_share, chat_share, workers):
        context = multiprocessing.get_context("fork")
        self.queue = context.Queue(maxsize=2 * workers)
        for worker in range(workers):
            context.Process(target=_work, args=(self.queue, data, (seed, worker), size, length, task_share, chat_share),
                            daemon=True).start()

    def next(self):
        """The next batch, token ids as int64."""
        ids, weights, kinds = self.queue.get()
        return ids.astype(np.int64), weights, kinds
