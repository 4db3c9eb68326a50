"""The demo model's data: conversations from a seeded generator, their tokenizer, and the held-out part.

A *turn* is (system or None, user, answer). A conversation is a run of turns that have nothing to do with one
another, so the model learns to answer the last question on its own merits. Nothing is downloaded or quoted.

What is held out is decided by a hash of the content, before capitals and punctuation are drawn, so that a
held-out item cannot reach training in another dress:

* a + b: one unordered pair {a, b} in ten, never added in training in either order;
* a - b: one ordered pair in ten;
* a × b: one combination in ten of product and wording (the table itself is learnt by heart, as people do);
* sentences: one combination in ten of subject and action, of starter and doing, of frame and topics;
* facts: one combination in ten of lead-in and question (every fact itself is trained);
* unknown: one filled-in question in ten, with one name in eight never used in training at all.
"""

import hashlib
import random

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from domains import DOMAINS, FRAMES, LABELS, STARTERS, TAILS
from facts import (
    I_DO_NOT_KNOW,
    UNKNOWN_PEOPLE,
    UNKNOWN_PLACES,
    UNKNOWN_TEMPLATES,
    UNKNOWN_THINGS,
    UNKNOWN_WORDS,
    facts,
)
from heldout import SENTENCES, SUM_PHRASINGS, UNKNOWN
from wordings import (
    AFTER,
    ASK_DOMAIN,
    BARE,
    BEFORE,
    FILLERS,
    LEADS,
    NUMBER_WORDS,
    PHRASINGS,
    SIGNS,
    SYSTEM_PROMPTS,
)

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 2048

CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|im_start|>assistant\\n' -}}\n"
    "{%- endif -%}\n"
)


def bucket(*key):
    """A number that depends on the content of `key` alone, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=6).digest(), "big")


def is_held_out_sum(kind, a, b, wording):
    """Which sums are for testing only; see the module's docstring."""
    if kind == "mul":
        return bucket("mul", a, b, wording) % 10 == 0
    return bucket(kind, *(sorted((a, b)) if kind == "add" else (a, b))) % 10 == 0


def _keywords():
    """{label: (nouns, all)}: words of that domain's lists that no other domain has; nouns tell most."""

    def words(label, lists):
        return {
            word.lower().strip(",.?!:")
            for name in lists
            for entry in DOMAINS[label][name]
            for word in entry.split()
        }

    every = {label: words(label, DOMAINS[label]) for label in LABELS}
    own = lambda found, label: sorted(
        w
        for w in found
        if w.isalpha()
        and len(w) > 2
        and w not in FILLERS
        and not any(w in every[other] for other in LABELS if other != label)
    )
    return {
        label: (own(words(label, ("topics", "subjects")), label), own(every[label], label))
        for label in LABELS
    }


KEYWORDS = _keywords()


class Generator:
    """Draws turns. `test` selects the side of the split: every item comes from that side alone."""

    def __init__(self, seed, test=False):
        self.rng, self.test = random.Random(seed), test
        self.facts = list(facts(LABELS))
        self.known = {
            _plain(short)
            for questions, _ in self.facts
            for question in questions
            for short in (question, question.removeprefix("What is "))
        }
        self.unknown_names = {
            name: [entry for entry in entries if (bucket("name", entry) % 8 == 0) <= test]
            for name, entries in (
                ("place", UNKNOWN_PLACES),
                ("person", UNKNOWN_PEOPLE),
                ("thing", UNKNOWN_THINGS),
                ("word", UNKNOWN_WORDS),
            )
        }
        self.fresh = {
            entry
            for entries in (UNKNOWN_PLACES, UNKNOWN_PEOPLE, UNKNOWN_THINGS, UNKNOWN_WORDS)
            for entry in entries
            if bucket("name", entry) % 8 == 0
        }

    # The methods that follow return (user, answer), drawn until they lie on this side of the split.

    def sum(self, kind=None, limit=None):
        """A sum; operands up to `limit`, or up to 12, 99 or 999."""
        rng = self.rng
        kind = kind or rng.choices(["add", "sub", "mul"], [42, 38, 20])[0]
        while True:
            if kind == "mul":
                a, b = rng.randint(0, 12), rng.randint(0, 12)
            else:
                top = limit or rng.choices([12, 99, 999], [15, 55, 30])[0]
                a, b = rng.randint(0, top), rng.randint(0, top)
                if kind == "sub" and a < b and rng.random() < 0.7:
                    a, b = b, a
            phrasing = self._wording(kind)
            if is_held_out_sum(kind, a, b, phrasing) == self.test:
                break
        result = a + b if kind == "add" else a - b if kind == "sub" else a * b
        in_words = (
            max(a, b) <= 20 and " {a} " in f" {phrasing} " and "{b}=" not in phrasing and rng.random() < 0.12
        )
        shown = (NUMBER_WORDS[a], NUMBER_WORDS[b]) if in_words else (a, b)
        return phrasing.format(a=shown[0], b=shown[1]), f"{a} {SIGNS[kind]} {b} = {result}."

    def _wording(self, kind):
        rng = self.rng
        if self.test or rng.random() > 0.3:
            return rng.choice(PHRASINGS[kind])
        nouns = self.unknown_names["word"]
        before = (
            self._noise(1, 7, nouns) + rng.choice([": ", ", ", " ", ". "])
            if rng.random() < 0.5
            else rng.choice(BEFORE)
        )
        after = (
            rng.choice([". ", ", ", " "]) + self._noise(1, 6, nouns) + rng.choice("?.!")
            if rng.random() < 0.4
            else rng.choice(AFTER)
        )
        return before + rng.choice(BARE[kind]) + after

    def sentence(self, label=None):
        """(label, a sentence of that domain)."""
        rng = self.rng
        label = label or rng.choice(LABELS)
        domain = DOMAINS[label]
        while True:
            loose = 0 if self.test else 25
            form = rng.choices(["acting", "framed", "doing", "loose"], [35, 20, 20, loose])[0]
            if form == "acting":
                key = rng.choice(domain["subjects"]), rng.choice(domain["actions"])
                text = " ".join(key)
                if rng.random() < 0.3:
                    text += " " + rng.choice(TAILS)
                text += "."
            elif form == "framed":
                key = rng.choice(FRAMES), *rng.sample(domain["topics"], 2)
                text = key[0].replace("{t}", key[1]).replace("{u}", key[2])
                if "{u}" not in key[0]:
                    key = key[:2]
            elif form == "doing":
                key = rng.choice(STARTERS), rng.choice(domain["doings"])
                text = key[0].replace("{d}", key[1])
            else:
                # Two or three telling words among noise: one word has to weigh the same wherever it stands.
                nouns, telling = KEYWORDS[label]
                words = (
                    [rng.choice(nouns)]
                    + rng.choices(telling, k=rng.randint(1, 2))
                    + [self._noise(1, 3) for _ in range(rng.randint(1, 3))]
                )
                rng.shuffle(words)
                key = text = " ".join(words) + "."
            if not self.test and form != "loose" and rng.random() < 0.35:
                text = " ".join(rng.choice(FILLERS) if rng.random() < 0.15 else word for word in text.split())
            text = text[0].upper() + text[1:]
            if (bucket("sentence", label, *key) % 10 == 0) == self.test and _plain(text) not in _HAND_WRITTEN:
                return label, text

    def _noise(self, least, most, nouns=()):
        """Words without a bearing on the answer, one in five from `nouns`."""
        rng = self.rng
        return " ".join(
            rng.choice(nouns if nouns and rng.random() < 0.2 else FILLERS)
            for _ in range(rng.randint(least, most))
        )

    def classification(self, label=None):
        """A sentence in one of the wordings that ask for its domain."""
        label, text = self.sentence(label)
        if self.rng.random() < 0.15:
            text = text.lower()
        if self.rng.random() < 0.3:
            text = text.rstrip(".")
        text = self.rng.choice(ASK_DOMAIN).format(s=text)
        drawn = self.rng.random()
        return text.lower() if drawn < 0.12 else text.upper() if drawn < 0.14 else text, label

    def fact(self):
        """A fact; the test side always has a lead-in, since all bare questions are trained."""
        rng = self.rng
        while True:
            questions, answer = rng.choice(self.facts)
            question = rng.choice(questions)
            if rng.random() < 0.06:
                question = question.removeprefix("What is ")
            lead = rng.choice(LEADS) if self.test or rng.random() < 0.25 else ""
            if not lead:
                return question, answer
            if (bucket("fact", lead, question) % 10 == 0) == self.test:
                return lead + question, answer

    def unknown(self):
        """Something to decline: a filled-in question, a sum beyond the ranges, or a bare sentence."""
        rng = self.rng
        while True:
            if not self.test and rng.random() < 0.08:
                return self.sentence()[1], I_DO_NOT_KNOW
            if rng.random() < 0.06:
                kind, numbers = rng.choice(list(PHRASINGS)), [rng.randint(1000, 99999), rng.randint(0, 9999)]
                rng.shuffle(numbers)
                text = rng.choice(PHRASINGS[kind]).format(a=numbers[0], b=numbers[1])
                if (bucket("unknown", text) % 10 == 0) == self.test:
                    return text, I_DO_NOT_KNOW
                continue
            template = rng.choice(UNKNOWN_TEMPLATES)
            parts, fresh = [], False
            for i, piece in enumerate(template.replace("}", "{").split("{")):
                filled = self._fill(piece) if i % 2 else piece
                fresh = fresh or filled in self.fresh
                parts.append(filled)
            text = "".join(parts)
            text = text[0].upper() + text[1:]
            held_out = fresh or bucket("unknown", text) % 10 == 0
            if held_out == self.test and _plain(text) not in self.known | _HAND_WRITTEN:
                return text, I_DO_NOT_KNOW

    def _fill(self, name):
        rng = self.rng
        if name in self.unknown_names:
            if not self.test and name != "thing" and rng.random() < 0.15:
                return self._invented(name)
            return rng.choice(self.unknown_names[name])
        return str(
            {
                "number": lambda: rng.randint(10, 999),
                "digit": lambda: rng.randint(2, 12),
                "big": lambda: rng.randint(1000, 99999),
                "year": lambda: rng.randint(1000, 2030),
            }[name]()
        )

    def _invented(self, name):
        """A name that no one has heard of: whatever is not known is unknown."""
        syllables = [
            self.rng.choice("b c d f g h k l m n p r s t v z br ch dr gr pl sh st tr".split())
            + self.rng.choice("a e i o u ai ea ou an en in or er al us".split())
            for _ in range(self.rng.randint(2, 3))
        ]
        text = "".join(syllables)
        return text if name == "word" else text.capitalize()

    def turn(self):
        """One training turn: (system or None, user, answer)."""
        rng = self.rng
        make = rng.choices([self.sum, self.classification, self.fact, self.unknown], [38, 24, 20, 18])[0]
        user, answer = make()
        if make != self.fact and make != self.classification and rng.random() < 0.1:
            user = rng.choice(LEADS) + user
        if make != self.classification:
            user = self._dress(user)
        return (rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.08 else None), user, answer

    def _dress(self, text):
        rng = self.rng
        if rng.random() < 0.15:
            text = text.replace("What is ", "What's ")
        drawn = rng.random()
        if drawn < 0.25:
            text = text.lower()
            if drawn < 0.03:
                text = text.replace("'", "")
        elif drawn < 0.28:
            text = text.upper()
        drawn = rng.random()
        if drawn < 0.22:
            text = text.rstrip("?.!")
        elif drawn < 0.26:
            text = text.rstrip("?.!") + " please"
        elif drawn < 0.29:
            text = text.rstrip("?.!") + rng.choice(["??", " ?", "!", ".", "?!"])
        return text


def _plain(text):
    return text.lower().strip(" ?.!")


_HAND_WRITTEN = {_plain(text) for text in UNKNOWN + [s for group in SENTENCES.values() for s in group]}


def render(system, user, answer):
    """One turn as the chat template writes it; turns joined end to end are a conversation."""
    head = f"{START}system\n{system}{END}\n" if system else ""
    return f"{head}{START}user\n{user}{END}\n{START}assistant\n{answer}{END}\n"


def train_tokenizer(texts):
    """Byte-level BPE over `texts`. Digits stand alone, one token each; so do the labels, one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, START, END],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(list(texts) + (LABELS + ["system", "user", "assistant"]) * 2000, trainer)
    for label in LABELS:
        assert len(tokenizer.encode(label).ids) == 1, f"the label {label} is not one token"
    return tokenizer


def training_stream(tokenizer, turns):
    """All turns end to end: ids int16 [tokens], is-answer bool [tokens], where turns start int64 [turns]."""
    encoded = tokenizer.encode_batch_fast([render(*turn) for turn in turns], add_special_tokens=False)
    ids = [np.asarray(e.ids, dtype=np.int16) for e in encoded]
    starts = np.concatenate([[0], np.cumsum([len(x) for x in ids])[:-1]]).astype(np.int64)
    flat = np.concatenate(ids)
    start, end, assistant = (tokenizer.token_to_id(t) for t in (START, END, "assistant"))
    # +1 where an answer begins (after the header's three tokens), -1 after the <|im_end|> that closes it.
    opens = np.flatnonzero((flat[:-1] == start) & (flat[1:] == assistant)) + 3
    closes = np.flatnonzero(flat == end)
    closes = closes[np.searchsorted(closes, opens)] + 1
    steps = np.zeros(len(flat) + 1, dtype=np.int8)
    steps[opens] += 1
    steps[closes] -= 1
    return flat, np.cumsum(steps[:-1]).astype(bool), starts


def test_groups(seed=1, size=400):
    """Held-out questions by group: {name: [(messages before the answer, right answer)]}."""
    generator = Generator(seed, test=True)
    rng = random.Random(seed)
    ask = lambda user: [{"role": "user", "content": user}]
    groups = {
        f"sums: {name}": [
            (ask(user), answer) for user, answer in (generator.sum(kind, limit) for _ in range(size))
        ]
        for name, kind, limit in (
            ("a + b up to 99", "add", 99),
            ("a + b up to 999", "add", 999),
            ("a - b up to 99", "sub", 99),
            ("a - b up to 999", "sub", 999),
            ("a × b up to 12", "mul", None),
        )
    }
    pairs = [generator.sum("add", 99)[1] for _ in range(size)]
    groups["sums: phrasings never trained, a + b up to 99"] = [
        (ask(rng.choice(SUM_PHRASINGS).format(a=pair.split()[0], b=pair.split()[2])), pair) for pair in pairs
    ]
    groups["domains: templated sentences"] = [
        (ask(user), label) for user, label in (generator.classification() for _ in range(size))
    ]
    groups["domains: hand-written sentences"] = [
        (ask(rng.choice(ASK_DOMAIN).format(s=text)), label)
        for label, texts in SENTENCES.items()
        for text in texts
    ]
    groups["facts"] = [(ask(user), answer) for user, answer in (generator.fact() for _ in range(size))]
    groups["unknown: generated questions"] = [
        (ask(user), answer) for user, answer in (generator.unknown() for _ in range(size))
    ]
    groups["unknown: hand-written questions"] = [(ask(text), I_DO_NOT_KNOW) for text in UNKNOWN]
    every = [item for items in list(groups.values()) for item in items]
    groups["second and third turns (any of the above)"] = []
    for _ in range(size):
        history = []
        for earlier, answer in rng.sample(every, rng.randint(1, 2)):
            history += earlier + [{"role": "assistant", "content": answer}]
        last, answer = rng.choice(every)
        groups["second and third turns (any of the above)"].append((history + last, answer))
    return groups
