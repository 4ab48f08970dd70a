#!/usr/bin/env python3
"""Makes chat-instruct/train.jsonl and chat-instruct/tokenizer.json.

Sources, both redistributable, by package name:

* PyPI `chitchat-dataset==0.9.0` (MIT): two-person English conversations.
      pip download --no-deps chitchat-dataset==0.9.0 && unzip chitchat_dataset-*.whl
  gives chitchat_dataset/dataset.json.
* Debian `wordnet-base` 1:3.0-37 (WordNet 3.0 licence): definitions, examples, and the vocabulary that screens everything.
      apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wn
  gives wn/usr/share/wordnet/.

Needs Python >= 3.11 and `pip install tokenizers==0.23.3`. Then:

      python make_chat_instruct.py chitchat_dataset/dataset.json wn/usr/share/wordnet

The same sources give the same bytes: one seeded generator draws everything, in an order that the sources fix.

Screening is by admission: a message survives only when *every* word of it is a lower-case English word of WordNet or an
inflection of one, or is listed in chat_instruct_words.txt. Personal names, handles, small places, other languages and
garbage fail because nobody listed them. Blocked words, contact details and telling phrases are refused on top.
"""

import argparse
import hashlib
import json
import random
import re
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEED = 2601
VOCAB_SIZE = 4096
SPECIAL = ["<|endoftext|>", "<|pad|>"]  # ids 0 and 1
LEAST_TURNS = {"reply": 2, "continue": 4, "fill": 3, "questions": 3}
COUNTS = {"reply": 1030, "continue": 170, "fill": 170, "questions": 120, "open": 270, "define": 240}
# Words of conversation per sample are drawn log-normally, then cut from a conversation that is long enough.
MEDIAN_WORDS, SIGMA, LEAST_WORDS = 26, 2.0, 6
PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

TELLING = re.compile(
    r"\b(?:(?:my|your|ur|real|full|last|first|middle|maiden|user) ?names?|name is|names? (?:was|are)|named|call(?:ed)? (?:me|you)"
    r"|known as|phone number|(?:my|your|his|her) number|e-?mail|address|zip ?code|password|credit card|bank account|passport"
    r"|license plate|birthday|born (?:in|on)|(?:i|we) lived? (?:in|on|at|near|by)|where (?:do|did|are|were) (?:you|u) (?:live|from)"
    r"|(?:where|what part)[\w' ]* from|(?:i'?m|i am|we'?re|are|comes?|came|originally|family is) from|gr[eo]w up|hometown|home town"
    r"|moved (?:to|from)|apartment|room number|student id|social security|(?:add|text|dm|email|follow) me|find me|how old are"
    r"|(?:january|february|march|april|may|june|july|august|september|october|november|december) \d"
    r"|years? old|i turned|leader ?board|chit ?chat|gift card"
    r"|raffle|contest|grand prize|campus|engineering building|meet (?:up|me|you)|who (?:are|is) (?:you|this))\b",
    re.IGNORECASE,
)
CONTRACTION = re.compile(r"^(.+?)(?:n't|'(?:s|d|ll|re|ve|m)|s')$")
SUFFIXES = [("s", ""), ("es", ""), ("ies", "y"), ("ed", ""), ("ed", "e"), ("ied", "y"), ("ing", ""), ("ing", "e"), ("er", ""),
            ("er", "e"), ("est", ""), ("est", "e"), ("ier", "y"), ("iest", "y"), ("ly", ""), ("ily", "y")]
DRAWN_OUT = re.compile(r"^(?:(?:a|b|mw)?(?:ha){2,}h?|(?:he){2,}|(?:l+o+l+)+|h+m+|o+h+|a+h+|a+w+|u+g*h+|m+m+|e+w+)$")
EMOTICON = re.compile(r"^[:;=]['-]?[()DPpOo/|\]]+$|^[xX]D+$|^<3+$")
CHARACTERS = re.compile("^[ -~‘’“”…–—\u2764\ufe0f\U0001f300-\U0001f64f\U0001f900-\U0001f9ff]+$")
NUMBER = re.compile(r"^\$?(?:\d{1,3}(?:,000)*|1[5-9]\d\d|20[0-4]\d)(?:\.\d{1,2})?(?:st|nd|rd|th|s|am|pm|%|k)?$", re.IGNORECASE)

# A first message that greets, asks back or speaks of the chat does not answer the topic.
EVASIVE = re.compile(
    r"^(?:hi|hey|hello|good|are|yo)\b|^[^.!]*\?|\b(?:prompt|question|any(?:one|body)|how this|this (?:works|chat|thing)|chat|person)\b",
    re.IGNORECASE,
)

REPLY = [
    "Write the next message of speaker {s} in this conversation.",
    "You are speaker {s} in this chat. Reply to the last message.",
    "Read the chat between two people and answer as {s}.",
    "What could {s} say next?",
    "Here is part of a casual conversation. Write what {s} says next.",
    "Respond to the last message from {s}'s point of view, in the same informal style.",
]
CONTINUE = [
    "Continue this conversation with {n} more turns.",
    "Write the next {n} turns of the dialogue, keeping the speaker labels.",
    "Two people are chatting. Carry on for {n} turns in their style.",
]
FILL = [
    "One turn of this conversation is missing and marked [...]. Write the missing turn.",
    "Fill in the message that [...] stands for.",
    "What did the speaker say at [...]? Write a message that fits both what comes before and what comes after.",
]
QUESTIONS = [
    "List every question that is asked in this conversation, with its speaker, in order.",
    "Extract the questions from the chat. Write one per line, with the speaker's label.",
]
OPEN = [
    "{p}",
    "Answer this conversation starter in an informal style: {p}",
    "A chat partner asks you: \"{p}\" Write your first message.",
]
BEGAN = "The speakers were given this topic: {p} "
DEFINE = [
    "What does the word \"{w}\" mean?",
    "Define the word \"{w}\" and show how it is used.",
    "Give the main meanings of \"{w}\" with an example of each where you can.",
]


class WordNet:
    """The lemmas, synsets and marked vulgarities of a WordNet 3.0 database folder."""

    def __init__(self, folder: Path):
        self.synsets, self.lemmas, self.senses, self.uses, self.marked = {}, set(), {}, Counter(), set()
        vulgar, usages = set(), []
        for part, pos in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
            for line in self._lines(folder / f"data.{part}"):
                head, gloss = line.split(" | ", 1)
                fields = head.split(" ")
                end = 4 + 2 * int(fields[3], 16)
                words = [re.sub(r"\(.*", "", word) for word in fields[4:end:2]]
                self.synsets[pos, fields[0]] = gloss.strip()
                self.lemmas.update(w for word in words for w in re.split("[_-]", word) if w.isalpha() and w == w.lower())
                if {"ethnic_slur", "disparagement", "obscenity"} & set(words):
                    vulgar.add(fields[0])
                usages.append((words, {after for mark, after in zip(fields[end:], fields[end + 1:]) if mark == ";u"}))
                if re.search(r"ethnic slur|(?:offensive|obscene|disparaging|derogatory|vulgar)\b[^;]*\b(?:term|name|word|slang)", gloss):
                    self.marked.update(w.lower() for w in words)
            for line in self._lines(folder / f"index.{part}"):
                fields = line.split()
                self.senses.setdefault(fields[0], []).append((pos, fields[-int(fields[2]):]))
            self.lemmas.update(line.split()[0] for line in self._lines(folder / f"{part}.exc"))
        for line in self._lines(folder / "cntlist.rev"):
            key, _, uses = line.split()
            self.uses[key.split("%")[0]] += int(uses)
        self.marked.update(w.lower() for words, marks in usages if marks & vulgar for w in words)

    @staticmethod
    def _lines(path: Path) -> list:
        return [line for line in path.read_text("latin-1").splitlines() if not line.startswith("  ")]


class Screen:
    """Decides which messages are admitted."""

    def __init__(self, wordnet: WordNet, lists: Path):
        section, listed = None, {}
        for line in lists.read_text("utf-8").splitlines():
            if line.startswith("["):
                section = listed.setdefault(line.strip("[]"), set())
            elif line and not line.startswith("#"):
                section.update(line.split())
        self.public, self.names, self.capital = listed["public"], listed["names"], listed["names_when_capital"]
        self.blocked = (listed["blocked"] | wordnet.marked) - listed["unblocked"]
        self.lemmas = {w for w in wordnet.lemmas if len(w) > 2} | listed["short"] | listed["function"] | listed["chat"]

    def knows(self, word: str) -> bool:
        """Whether a lower-case word is English: listed, inflected, contracted, or drawn out like `soooo`."""
        if word in self.lemmas or DRAWN_OUT.match(word):
            return True
        contraction = CONTRACTION.match(word)
        if contraction and (contraction[1] in {"ca", "wo"} or self.knows(contraction[1])):
            return True
        for suffix, stem in SUFFIXES:
            base = word.removesuffix(suffix)
            if base != word and len(base) > 2:
                if base + stem in self.lemmas or (base[-1] == base[-2] and base[:-1] in self.lemmas):
                    return True
        once, twice = re.sub(r"(.)\1{2,}", r"\1", word), re.sub(r"(.)\1{2,}", r"\1\1", word)
        return once != word and (self.knows(once) or self.knows(twice))

    def admits_word(self, word: str, may_be_capital: bool) -> bool:
        """`may_be_capital`: at the start of a sentence, or shouted; elsewhere a capital marks a name."""
        lower = word.lower().strip("'")
        stem = re.sub(r"'s$", "", lower)
        bare = re.sub(r"(.)\1{2,}", r"\1", stem)
        forms = {stem, bare} | {base + end for base in (stem, bare) for suffix, end in SUFFIXES if base.endswith(suffix)
                                for base in [base.removesuffix(suffix)] if len(base) > 2}
        if forms & self.blocked or stem in self.names or (stem in self.capital and word[0].isupper()):
            return False
        if stem in self.public:
            return True
        return (may_be_capital or word[0].islower() or re.match(r"i('|$)", lower) is not None) and self.knows(lower)

    def admits(self, text: str) -> bool:
        """Whether every token of a message is an admitted word, a short number, an emoticon or punctuation."""
        text = text.replace("’", "'").replace("‘", "'")
        if not CHARACTERS.match(text) or TELLING.search(text) or len(re.findall(r"\d", text)) > 6:
            return False
        start = True
        for token in text.split():
            core = token.strip(".,!?;:\"()[]“”…–—-*~<>^&'")
            if not EMOTICON.match(token) and not NUMBER.match(core):
                if re.search(r"[@/\\#_\d=+`|{}]|[A-Za-z]\.[A-Za-z]", core):
                    return False
                for word in re.findall(r"[A-Za-z][A-Za-z']*", core):
                    if not self.admits_word(word, start or word.isupper()):
                        return False
                    start = False
            start = start and not core or token[-1] in ".!?…)”"
        return True


def join_messages(texts: list) -> str:
    """One turn's messages on one line; a full stop parts two of them where the first ends in a letter or digit."""
    line = ""
    for text in texts:
        line += ("" if not line else ". " if line[-1].isalnum() else " ") + " ".join(text.split())
    return line


def words(text: str) -> int:
    return len(text.split())


def clean_runs(conversation: dict, screen: Screen) -> list:
    """Runs of admitted turns, as (whether it opens the conversation, [(sender, text)]); a sender's neighbouring turns are one."""
    turns = []
    for message in (message for group in conversation["messages"] for message in group):
        if turns and turns[-1][0] == message["sender"]:
            turns[-1][1].append(message["text"])
        else:
            turns.append((message["sender"], [message["text"]]))
    runs, run, opens = [], [], True
    for sender, texts in turns + [(None, [])]:
        if sender and all(screen.admits(text.strip()) for text in texts):
            run.append((sender, join_messages(texts)))
        else:
            if run and len({sender for sender, _ in turns}) <= 2:
                runs.append((opens, run))
            run, opens = [], False
    return runs


def label(turns: list) -> list:
    """Turns as (speaker letter, text), A being who speaks first."""
    letters = {}
    return [(letters.setdefault(sender, "AB"[len(letters) % 2]), text) for sender, text in turns]


def script(turns: list) -> str:
    return "\n".join(f"{speaker}: {text}" for speaker, text in turns)


def says_something(text: str) -> bool:
    """Not a bare laugh, an interjection, or one phrase over and over."""
    said = re.findall(r"[a-z']+", text.lower())
    return len(said) >= 4 and len(set(said)) > len(said) / 2 and not DRAWN_OUT.match(said[0])


def chat_example(task: str, topic: str, turns: list, rng: random.Random):
    """One example made from a window of a conversation, or None where the window does not suit the task."""
    turns = label(turns)
    if task == "reply":
        speaker, output = turns[-1]
        instruction, given = rng.choice(REPLY).format(s=speaker), script(turns[:-1])
    elif task == "continue":
        after = rng.randint(2, max(2, min(6, len(turns) // 2)))
        instruction, given, output = rng.choice(CONTINUE).format(n=after), script(turns[:-after]), script(turns[-after:])
    elif task == "fill":
        gap = rng.randrange(1, len(turns) - 1)
        output = turns[gap][1]
        instruction, given = rng.choice(FILL), script(turns[:gap] + [(turns[gap][0], "[...]")] + turns[gap + 1:])
    else:
        asked = [(s, part) for s, text in turns for part in re.split(r"(?<=[.!?])\s+", text) if re.search(r"\w.*\?$", part)]
        if not asked:
            return None
        instruction, given, output = rng.choice(QUESTIONS), script(turns), script(asked)
    if words(given) < 8 or (task in ("reply", "fill") and not says_something(output)):
        return None
    return {"instruction": topic + instruction, "input": given, "output": output}


def cut(run: list, target: float, least: int) -> list:
    """The first turns of a run that hold `target` words and are `least` or more."""
    window, size = [], 0
    for turn in run:
        if size >= target and len(window) >= least:
            break
        window.append(turn)
        size += words(turn[1])
    return window


def chat_examples(conversations: dict, screen: Screen, rng: random.Random) -> list:
    """All examples made from conversations: one per run of admitted turns, no long message used twice."""
    openings, runs = [], []
    for key in sorted(conversations):
        prompt = conversations[key].get("prompt") or ""
        usable = prompt and not set(re.findall(r"[a-z]+", prompt.lower())) & screen.blocked and "best friend" not in prompt
        for opens, run in clean_runs(conversations[key], screen):
            topic = prompt if opens and usable else ""
            if topic and 8 <= words(run[0][1]) and says_something(run[0][1]) and not EVASIVE.search(run[0][1]):
                openings.append((topic, run[0][1]))
            if len(run) >= 2 and sum(words(text) for _, text in run) >= 5 * len(run):
                runs.append((topic, run))
    rng.shuffle(openings)
    rng.shuffle(runs)
    runs.sort(key=lambda item: -sum(words(text) for _, text in item[1]))
    tasks = [task for task in COUNTS if task not in ("open", "define") for _ in range(COUNTS[task])]
    rng.shuffle(tasks)
    wanted = sorted((max(LEAST_WORDS, rng.lognormvariate(0, SIGMA) * MEDIAN_WORDS) for _ in tasks), reverse=True)
    said, examples, waiting = set(), [], iter(runs)
    for task, target in zip(tasks, wanted):
        for topic, run in waiting:
            first = 0 if topic and rng.random() < 0.7 else rng.randrange(max(1, len(run) // 3))
            window = cut(run[first:], target, LEAST_TURNS[task])
            long = {text.lower() for _, text in window if words(text) > 5}
            start = BEGAN.format(p=topic) if topic and first == 0 else ""
            example = chat_example(task, start, window, rng) if len(window) >= LEAST_TURNS[task] and not long & said else None
            if example:
                said |= long
                examples.append(example)
                break
        else:
            raise SystemExit(f"the conversations gave only {len(examples)} of {len(tasks)} examples: lower COUNTS")
    for topic, text in openings:
        if text.lower() not in said and len(examples) < len(tasks) + COUNTS["open"]:
            said.add(text.lower())
            examples.append({"instruction": rng.choice(OPEN).format(p=topic), "input": "", "output": text})
    return examples


def definition_examples(wordnet: WordNet, screen: Screen, rng: random.Random) -> list:
    """Meanings of words in use: up to two senses for each part of speech, with WordNet's first usage example."""
    names = {"n": "noun", "v": "verb", "a": "adjective", "r": "adverb"}
    common = sorted(w for w, uses in wordnet.uses.items() if uses >= 4 and len(w) > 3 and w.isalpha() and w in wordnet.senses)
    rng.shuffle(common)
    examples = []
    for word in common:
        lines = []
        for pos, offsets in wordnet.senses[word]:
            for offset in offsets[:2]:
                meaning, *usage = re.split(r'; (?=")', wordnet.synsets[pos, offset])
                usage = next((u.strip('"; ') for u in usage if re.search(rf"(?i)\b{word}", u)), None)
                example = f' Example: "{usage}"' if usage else ""
                lines.append(f"({names[pos]}) {meaning.strip()}.{example}")
        if "Example" in "".join(lines) and screen.admits_word(word, False) and all(map(screen.admits, lines)):
            examples.append({"instruction": rng.choice(DEFINE).format(w=word), "input": "", "output": "\n".join(lines)})
        if len(examples) == COUNTS["define"]:
            break
    return examples


def render(example: dict) -> str:
    """The Alpaca text of an example, as the trainer's template writes it."""
    given = f"\n\nInput: {example['input']}" if example["input"] else ""
    return f"{PREAMBLE}\n\n### Instruction:\n{example['instruction']}{given}\n\n### Response:\n{example['output']}"


def train_tokenizer(texts: list) -> Tokenizer:
    """Byte-level BPE: no normaliser, all 256 bytes in the alphabet, so any text comes back as it was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE and [tokenizer.token_to_id(s) for s in SPECIAL] == [0, 1]
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chitchat", type=Path, help="dataset.json of PyPI chitchat-dataset==0.9.0")
    parser.add_argument("wordnet", type=Path, help="folder usr/share/wordnet of Debian's wordnet-base")
    here = Path(__file__).resolve().parent
    parser.add_argument("--out", type=Path, default=here / "chat-instruct", help="folder to write into")
    args = parser.parse_args()
    rng = random.Random(SEED)
    wordnet = WordNet(args.wordnet)
    screen = Screen(wordnet, here / "chat_instruct_words.txt")
    examples = chat_examples(json.loads(args.chitchat.read_text("utf-8")), screen, rng)
    examples += definition_examples(wordnet, screen, rng)
    rng.shuffle(examples)
    texts = [render(example) for example in examples]
    assert len(examples) == sum(COUNTS.values()) == len({text.lower() for text in texts}), len(examples)
    tokenizer = train_tokenizer(texts)
    encoded = [tokenizer.encode(text).ids for text in texts]
    assert all(tokenizer.decode(ids) == text for ids, text in zip(encoded, texts))
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.out / "train.jsonl"
    data.write_text("".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples), "utf-8", newline="\n")
    tokenizer.save(str(args.out / "tokenizer.json"))
    lengths, n = sorted(map(len, encoded)), len(encoded)
    print(f"examples {n}, tokens {sum(lengths)}, bytes {data.stat().st_size}")
    percentiles = {f"p{p}": lengths[min(n - 1, n * p // 100)] for p in (0, 10, 25, 50, 75, 90, 95, 99, 100)}
    print(f"tokens per example: mean {sum(lengths) / n:.1f}, {percentiles}, over 512: {sum(length > 512 for length in lengths)}")
    for path in (data, args.out / "tokenizer.json"):
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)


if __name__ == "__main__":
    main()
