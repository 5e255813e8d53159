"""Names that tasks draw from. Each is a common word, so that a small tokenizer knows it."""

from __future__ import annotations

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words(
    """
    amber ancient brave bright bronze calm clever copper coral crimson crystal curious distant dusty eager early
    electric emerald fancy frozen gentle giant golden grand green happy hidden humble icy ivory jolly lazy little
    lonely loud lucky marble merry mighty misty modest noble northern olive orange pale patient plain polished
    proud purple quick quiet rapid rare royal rusty sandy scarlet secret shiny silent silver simple sleepy smooth
    snowy solid steady stormy sunny swift tall tender tidy tiny velvet violet warm western white wild windy wise
    wooden
    """
)
NOUNS = _words(
    """
    anchor apple arrow badger balloon banner basket beacon bear bell bottle bridge button cabin candle canyon
    castle cedar cherry clock cloud comet compass cottage cricket desert dolphin dragon drum eagle falcon feather
    fiddle forest fountain fox garden glacier guitar hammer harbor hawk hill horse island jacket jungle kettle
    kite ladder lantern lemon lion lizard maple meadow mirror monkey mountain needle orchard otter owl panther
    parrot pebble pencil piano pillow pirate planet pony puzzle rabbit raven ribbon river robin rocket saddle
    salmon shadow shovel spider stream teapot temple tiger tower trumpet tunnel turtle valley violin wagon walnut
    whale willow window
    """
)
PEOPLE = _words(
    """
    Adam Alice Amy Anna Arthur Barbara Ben Betty Carl Carol Cathy Charles Clara Daniel David Diana Edward Ellen
    Emma Eric Frank Fred George Grace Hannah Harry Helen Henry Irene Jack James Jane Jason Joan John Judy Julia
    Karen Kate Kevin Laura Leo Linda Lucy Maria Mark Martin Mary Michael Nancy Nick Nora Oliver Oscar Paul Peter
    Philip Rachel Robert Rose Ruth Sam Sarah Simon Sophie Steve Susan Thomas Tim Tom Victor Walter William
    """
)
CITIES = _words(
    """
    Athens Berlin Boston Cairo Chicago Dallas Delhi Denver Dublin Geneva Houston Jakarta Lima Lisbon London Madrid
    Manila Miami Milan Moscow Mumbai Nairobi Naples Oslo Paris Prague Rome Seattle Seoul Sydney Tokyo Toronto
    Vienna Warsaw
    """
)
JOBS = _words(
    """
    actor baker banker barber carpenter chef clerk dancer dentist doctor driver farmer fisherman gardener judge
    lawyer librarian mechanic miner musician nurse painter pilot plumber poet police reporter sailor singer
    soldier tailor teacher waiter writer
    """
)
ANIMALS = _words(
    """
    bee camel cat chicken cow crab deer dog donkey duck eagle fish fox frog goat goose hamster horse lizard monkey
    mouse owl parrot pig pony rabbit sheep snail snake spider swan tiger turtle wolf
    """
)
FOODS = _words(
    """
    bacon bread butter cake candy carrot cheese chicken chocolate coffee corn cream egg garlic ginger honey juice
    milk mushroom noodle onion pasta peach pepper pizza potato rice salad sandwich soup sugar tea tomato
    """
)


def key_names(rng: random.Random, number: int) -> list[str]:
    """That many different adjective-noun pairs; no two share a noun as long as there are enough."""
    nouns = rng.sample(NOUNS, min(number, len(NOUNS)))
    while len(nouns) < number:
        nouns.append(rng.choice(NOUNS))
    keys: list[str] = []
    for noun in nouns:
        key = f"{rng.choice(ADJECTIVES)} {noun}"
        while key in keys:
            key = f"{rng.choice(ADJECTIVES)} {noun}"
        keys.append(key)
    return keys


def numbers(rng: random.Random, number: int, digits: int) -> list[str]:
    """That many different numbers of `digits` digits, no leading zero."""
    found: list[str] = []
    while len(found) < number:
        value = str(rng.randrange(10 ** (digits - 1), 10**digits))
        if value not in found:
            found.append(value)
    return found
