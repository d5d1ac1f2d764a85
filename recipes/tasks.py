"""Synthetic recall: sequences whose marked tokens can be predicted only by finding something said far before.

Every maker returns token ids [T + 1] (int32) and the loss weight of each target [T] (float32). Four kinds: key-value
lists of random tokens with queries; needles (statements) in corpus text with questions at all distances; copies; and
conversations about a document with needles. Answers weigh more than text; random tokens that nobody can foresee weigh 0.
"""
import math

import numpy as np

BOS, EOS = 0, 1
TOKEN = np.int32                                  # ids in files and batches: released vocabularies pass 16 bits
ANSWER_WEIGHT = 4.0
FIRST_WORDS = """amber silver golden crimson violet hollow gentle rapid silent distant frozen bitter bright broken copper
dusty early eager faint fierce foggy hidden humble icy iron jolly lonely lucky marble misty modern narrow noble orange
pale plain polar proud purple quiet royal rusty sandy secret shady sharp shiny simple solar solid spare steady stormy
sunny tidy tiny urban vivid warm wild wooden young""".split()
SECOND_WORDS = """falcon harbor river engine garden lantern mountain window planet needle bridge castle desert dragon
ember forest glacier hammer island jacket kettle ladder meadow mirror number oyster packet pepper pigeon pillow pocket
puzzle rabbit rocket saddle signal spider statue summit table temple thunder ticket tiger tunnel turtle valley vessel
violin wagon walnut whistle winter wizard anchor basket bottle button camera candle carpet""".split()
# statement, question in running text (answered by " VALUE."), question to the assistant, its answer
TEMPLATES = [
    ("The secret code of {k} is {v}.", "The secret code of {k} is", "What is the secret code of {k}?", "The secret code of {k} is {v}."),
    ("Remember: the password for {k} is {v}.", "Recall: the password for {k} is", "Which password does {k} have?", "{v}"),
    ("Note that {k} has the number {v}.", "Question: which number does {k} have? Answer:", "Which number does {k} have?", "{v}"),
    ("The special value for {k}: {v}.", "The special value for {k}:", "Tell me the special value for {k}.", "The special value for {k}: {v}."),
    ("{k} = {v}.", "{k} =", "What is {k}?", "{k} = {v}."),
    ("# The key of {k} is {v}.", "# The key of {k} is", "I forgot the key of {k}. What is it?", "The key of {k} is {v}."),
]


class Text:
    """Token streams of documents to cut haystacks from: one (tokens, starts) pair per domain."""

    def __init__(self, prefixes, weights):
        self.streams = [(np.memmap(p + ".bin", TOKEN, "r"), np.fromfile(p + ".starts", np.int64)) for p in prefixes]
        self.weights = np.array(weights) / sum(weights)

    def cut(self, rng, length, domain=None):
        """`length` tokens from a random place, half of the time from the start of a document; begins with BOS."""
        tokens, starts = self.streams[rng.choice(len(self.streams), p=self.weights) if domain is None else domain]
        at = int(rng.integers(0, len(tokens) - length))
        if rng.random() < 0.5:
            start = int(starts[np.searchsorted(starts, at, "right") - 1])
            at = min(start, len(tokens) - length)
        out = np.array(tokens[at:at + length])
        out[0] = BOS
        return out


class Tasks:
    def __init__(self, tokenizer, text, rng):
        self.text, self.rng = text, rng
        self.encode = lambda s: tokenizer.encode(s, add_special_tokens=False).ids
        pieces = [tokenizer.id_to_token(n) or "" for n in range(tokenizer.get_vocab_size())]
        self.ends_line = np.array([p.endswith("Ċ") for p in pieces])
        self.plain = np.array([n for n, p in enumerate(pieces) if n > 2 and "｜" not in p and p[:1] != "<"])
        self.newline, self.blank = self.encode("\n"), self.encode("\n\n")
        marks = ("<｜User｜>", "<｜Assistant｜>", "</think>")
        self.user, self.assistant, self.no_think = (tokenizer.token_to_id(t) for t in marks)

    # ------------------------------------------------------------------------------------------ keys and values

    def log_uniform(self, low, high):
        return int(round(math.exp(self.rng.uniform(math.log(low), math.log(max(high, low))))))

    def key(self):
        r, kind = self.rng, self.rng.integers(5)
        a, b = r.choice(FIRST_WORDS), r.choice(SECOND_WORDS)
        if kind == 0:
            return f"{a} {b}"
        if kind == 1:
            return f"{a}-{b}"
        if kind == 2:
            return f"{b} {r.integers(10, 9999)}"
        if kind == 3:
            return "".join(r.choice(list("abcdefghijklmnoprstuvwxyz"), int(r.integers(4, 8))))
        return f"{b}_{a}"

    def value(self):
        r, kind = self.rng, self.rng.integers(6)
        if kind <= 2:
            return "".join(map(str, r.integers(0, 10, int(r.integers(3, 9)))))
        if kind == 3:
            return " ".join([r.choice(FIRST_WORDS), r.choice(SECOND_WORDS)])
        if kind == 4:
            return "".join(r.choice(list("0123456789abcdef"), int(r.integers(4, 9))))
        return r.choice(SECOND_WORDS) + "-" + "".join(map(str, r.integers(0, 10, 3)))

    def needle(self):
        """A template with its key and value filled in: statement, question, request, reply, value."""
        template = TEMPLATES[self.rng.integers(len(TEMPLATES))]
        k, v = self.key(), self.value()
        return [part.format(k=k, v=v) for part in template] + [v]

    # ------------------------------------------------------------------------------------------------- makers

    def make(self, T, kind=None):
        kind = kind or self.rng.choice(["pairs", "needles", "copies", "chat"], p=[0.3, 0.35, 0.1, 0.25])
        parts = getattr(self, kind)(T)
        ids = np.concatenate([np.asarray(p, TOKEN) for p, _ in parts])[:T + 1]
        weights = np.concatenate([np.broadcast_to(np.float32(w), len(p)) for p, w in parts])[1:T + 1]
        return ids, weights

    def pairs(self, T):
        parts, length = [([BOS], 0.0)], 1
        while length <= T:
            span = min(T + 1 - length, self.log_uniform(64, T))
            kl, vl = int(self.rng.integers(1, 4)), int(self.rng.integers(1, 5))
            row = kl + vl + 2
            rows = max(2, span // row)
            made = max(1, min(rows - 1, self.log_uniform(1, max(1, rows * 0.6))))
            asked = max(1, min(rows - made, self.log_uniform(max(1, made // 3), 3 * made + 4)))
            pool = self.plain if self.rng.random() < 0.6 else self.rng.choice(self.plain, int(self.rng.integers(12, 200)))
            keys = np.unique(self.rng.choice(pool, (made, kl)), axis=0)
            self.rng.shuffle(keys)
            made = len(keys)
            table = np.empty((made, row), TOKEN)
            table[:, :kl], table[:, kl] = keys, self.encode(str(self.rng.choice([":", "=", " ->", " is"])))[0]
            table[:, kl + 1:-1] = self.rng.choice(pool, (made, vl))
            table[:, -1] = self.encode(str(self.rng.choice(["\n", ";", ",", "."])))[0]
            parts.append((table.ravel(), 0.0))
            gap = span - (made + asked) * row
            if gap > 0:
                parts.append((self.text.cut(self.rng, gap), 0.3))
            weights = np.zeros((asked, row), np.float32)
            weights[:, kl + 1:-1] = 1.0
            parts.append((table[self.rng.integers(0, made, asked)].ravel(), weights.ravel()))
            length += (made + asked) * row + max(gap, 0)
        return parts

    def line_ends(self, ids):
        """Places in ids where a line begins; always contains some place after the first token."""
        places = np.flatnonzero(self.ends_line[ids]) + 1
        return places if len(places) > 3 else np.arange(1, len(ids))

    @staticmethod
    def interleave(hay, events, weight):
        """hay with (place, ids, weights) events put in, as parts."""
        parts, at = [], 0
        for place, ids, weights in sorted(events, key=lambda e: e[0]):
            parts.append((hay[at:place], weight))
            parts.append((ids, weights))
            at = place
        return parts + [(hay[at:], weight)]

    def needles(self, T):
        hay = self.text.cut(self.rng, T + 1)
        places = self.line_ends(hay)
        events, room = [], 0.35 * T
        for _ in range(self.log_uniform(1, T / 60)):
            statement, question, _, _, v = self.needle()
            at = int(self.rng.choice(places))
            said = self.encode(statement) + self.newline
            events.append((at, said, 0.0))
            room -= len(said)
            for _ in range(int(self.rng.integers(1, 4))):
                later = places[places > at]
                if not len(later):
                    break
                where = int(later[-1 - min(len(later) - 1, self.rng.integers(4))] if self.rng.random() < 0.2 else self.rng.choice(later))
                head, answer = self.encode(question), self.encode(f" {v}.")
                events.append((where + 0.5, head + answer + self.newline, [0.0] * len(head) + [ANSWER_WEIGHT] * len(answer) + [0.0]))
                room -= len(head) + len(answer) + 1
            if room < 0:
                break
        shrunk = [(int(p), i, w) for p, i, w in sorted(events, key=lambda e: e[0])]
        return self.interleave(hay, shrunk, 1.0)

    def copies(self, T):
        hay = self.text.cut(self.rng, T + 1)
        places = self.line_ends(hay)
        events, room = [], 0.5 * T
        while room > 0 and len(events) < 40:
            length = self.log_uniform(12, 400)
            random_tokens = self.rng.random() < 0.4
            part = self.rng.choice(self.plain, length) if random_tokens else self.text.cut(self.rng, length + 1)[1:]
            first, second = sorted(self.rng.choice(places, 2))
            weights = np.ones(length, np.float32)
            weights[:4] = 0.0
            events.append((int(first), part, 0.0 if random_tokens else 1.0))
            events.append((int(second), part, weights))
            room -= 2 * length
        return self.interleave(hay, events, 1.0)

    def chat(self, T):
        parts, length = [], 0
        while length <= T:
            size = self.log_uniform(100, max(120, T + 1 - length - 200))
            hay = self.text.cut(self.rng, size)[1:]
            places = self.line_ends(hay)
            needles = [self.needle() for _ in range(self.log_uniform(1, max(1, size / 60)))]
            events = [(int(self.rng.choice(places)), self.encode(n[0]) + self.newline, 0.0) for n in needles]
            conversation = [([BOS, self.user], 0.0)] + self.interleave(hay, events, 0.5) + [(self.blank, 0.0)]
            for n in range(self.log_uniform(1, 2 * len(needles) + 1)):
                _, _, request, reply, _ = needles[self.rng.integers(len(needles))]
                answer = self.encode(reply) + [EOS]
                conversation.append((([self.user] if n else []) + self.encode(request) + [self.assistant, self.no_think], 0.0))
                conversation.append((answer, ANSWER_WEIGHT))
            parts += conversation
            length += sum(len(p) for p, _ in conversation)
        return parts

    # ------------------------------------------------------------------------------------------------- test

    def probe(self, T, depth, style, distractors=0):
        """One needle question of exactly T tokens, the answer included -> ids [T] and the number of answer tokens.

        style: "text" (the question continues the text) or "chat". depth: 0 puts the needle first, 1 right before the
        question. distractors: further needles with other keys, anywhere.
        """
        statement, question, request, reply, v = self.needle()
        if style == "text":
            tail = self.newline + self.encode(question)
            answer = self.encode(f" {v}")
        else:
            before, _, _ = reply.partition(v)
            tail = self.blank + self.encode(request) + [self.assistant, self.no_think] + (self.encode(before.rstrip()) if before else [])
            answer = self.encode((" " if before else "") + v)
        start = [BOS] + ([self.user] if style == "chat" else [])
        others = [self.encode(self.needle()[0]) + self.newline for _ in range(distractors)]
        said = self.encode(statement) + self.newline
        size = T - len(start) - len(tail) - len(answer) - len(said) - sum(map(len, others))
        hay = self.text.cut(self.rng, size + 1)[1:]
        places = np.concatenate(([0], self.line_ends(hay)))
        places = places[places <= size]
        at = int(places[np.argmin(np.abs(places - depth * size))]) if depth < 1 else size
        events = [(at, said, 0.0)] + [(int(self.rng.choice(places)), o, 0.0) for o in others]
        body = np.concatenate([np.asarray(p, np.int64) for p, _ in self.interleave(hay, events, 0.0)])
        return np.concatenate((start, body, tail, answer)).astype(np.int64), len(answer)
