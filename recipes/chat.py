"""Conversations in the DeepSeek-V4 layout made from the corpus, so that the chat format is not foreign to the model."""
import os
import re

FUNCTION = re.compile(r'(?:^|\n)def (\w+)(\([^)]*\)[^:\n]*):\n    """(.+?)"""\n((?:    [^\n]*\n|\n)+)', re.S)
UNDERLINED = re.compile(r"\n([A-Z][^\n]{4,60})\n([=\-~^#*])\2{4,}\n(.{200,})", re.S)
MARKDOWN = re.compile(r"\n#{1,4} ([A-Z][^\n]{4,60})\n(.{200,})", re.S)


def turn(question, answer):
    return f"<｜User｜>{question}<｜Assistant｜></think>{answer}<｜end▁of▁sentence｜>"


def cut(text, size):
    """At most `size` characters, ending at a paragraph or line where possible."""
    if len(text) <= size:
        return text.rstrip()
    end = max(text.rfind("\n\n", 0, size), text.rfind("\n", 0, size) if text.rfind("\n\n", 0, size) < size // 3 else 0)
    return text[:end if end > 0 else size].rstrip()


def function_turn(text, rng):
    found = list(FUNCTION.finditer(text))
    if not found:
        return None
    name, arguments, about, body = rng.choice(found).groups()
    about = re.sub(r"\s+", " ", about).strip()
    if len(about) > 600 or len(body) > 2500:
        return None
    question = rng.choice(["Write a Python function `{0}`. {1}", "Write `{0}` in Python: {1}", "{1}\n\nImplement it as `{0}`."])
    return turn(question.format(name + arguments.split(")")[0] + ")", about),
                f'def {name}{arguments}:\n    """{about}"""\n{body.rstrip()}')


def section_turn(text, rng):
    found = UNDERLINED.search(text, rng.randrange(max(1, len(text) // 2))) or MARKDOWN.search(text)
    if not found:
        return None
    title, body = found.group(1), found.groups()[-1]
    question = rng.choice(["Explain: {}", "Write the section \"{}\".", "What does the manual say about \"{}\"?", "{}"])
    return turn(question.format(title.strip()), cut(body.lstrip(), 1500))


def continue_turns(text, rng):
    size, at = rng.choice([200, 400, 800, 1600]), rng.randrange(max(1, len(text) - 800))
    at = text.find("\n", at) + 1
    first = cut(text[at:], size)
    rest = text[at + len(first):]
    if len(first) < 60 or len(rest) < 60:
        return None
    second = cut(rest, size)
    out = turn(rng.choice(["Continue this text:\n\n", "Go on from here:\n\n", "Continue:\n\n"]) + first, second.strip("\n"))
    rest = rest[len(second):]
    if rng.random() < 0.3 and len(rest) > 100:
        out += turn(rng.choice(["Continue.", "Go on.", "More, please."]), cut(rest, size).strip("\n"))
    return out


def repeat_turn(text, rng):
    at = text.find("\n", rng.randrange(max(1, len(text) - 400))) + 1
    part = cut(text[at:at + 1200], rng.choice([80, 200, 500, 1000])).strip()
    if len(part) < 40:
        return None
    return turn(rng.choice(["Repeat this text exactly:\n\n", "Copy:\n\n", "Say this again:\n\n"]) + part, part)


def conversations(documents, rng, count, split="train"):
    """documents: (split, domain) -> [(path, text)]; returns `count` (path, text) pairs made from that split."""
    makers = [(function_turn, "code", 0.3), (section_turn, "prose", 0.3), (continue_turns, None, 0.28), (repeat_turn, None, 0.12)]
    pools = {domain: items for (part, domain), items in documents.items() if part == split and items}
    if "code" in pools:
        pools["code"] = [item for item in pools["code"] if os.path.splitext(item[0])[1] == ".py"] or pools["code"]
    out = []
    for _ in range(count * 6):
        if len(out) >= count:
            break
        maker, domain, _ = rng.choices(makers, [weight for _, _, weight in makers])[0]
        path, text = rng.choice(pools[domain or rng.choice(sorted(pools))])
        at = rng.randrange(max(1, len(text) - 12_000))
        made = maker(text[at:at + 12_000], rng)
        if made:
            system = rng.choice(["", "", "", "You are a helpful assistant.", "You write code and documentation."])
            out.append((path, "<｜begin▁of▁sentence｜>" + system + made))
    return out
