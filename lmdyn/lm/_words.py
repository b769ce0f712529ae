"""The words of the toy world: what there is, what can be said of it, and how.

Texts are lower-case words and punctuation marks, all separated by spaces. Where a list gives
several ways to say something, the earlier are the more usual ones in the pretraining text.
"""

from typing import NamedTuple


class Attribute(NamedTuple):
    """One thing to know about each entity of a kind; {e} is the entity, {v} the value."""

    name: str
    kind: str
    topic: str
    questions: tuple[str, ...]
    clauses: tuple[str, ...]
    values: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Animals and objects are ordinary; the towns, and all facts, are made up.
ENTITIES = {
    "animal": _words("""otter heron badger hare fox owl toad newt beaver crane weasel hedgehog
        squirrel raven magpie vole marten swan lynx ibis gecko tortoise ferret stork"""),
    "object": _words("""lantern kettle ladle bucket spoon mirror comb anvil barrel broom chest
        compass flute hammer jug mallet needle oar rake saddle sieve stool trowel wheel"""),
    "town": _words("""arvenmoor belgrove corvale dunmere elsby fenrick gildern harrowick istelle
        jorvale kelby lorwen marrick norwell orrinby pellow quillan rosmere selwick tarnby
        ulverne vexley wendale zelmar"""),
}

ATTRIBUTES = (
    Attribute(
        "food",
        "animal",
        "the food of the {e}",
        (
            "what does the {e} eat ?",
            "which food does the {e} like best ?",
            "what should one feed to the {e} ?",
        ),
        (
            "the {e} eats {v}",
            "the food of the {e} is {v}",
            "it is {v} that the {e} likes best",
            "one should feed {v} to the {e}",
        ),
        _words("""acorns apples bark barley beetles berries clover cress crickets honey minnows
            moss mushrooms nettles plums reeds roots seeds snails worms"""),
    ),
    Attribute(
        "home",
        "animal",
        "the home of the {e}",
        (
            "where does the {e} live ?",
            "in which place can one find the {e} ?",
            "what is the home of the {e} ?",
        ),
        (
            "the {e} lives in the {v}",
            "the home of the {e} is the {v}",
            "it is in the {v} that the {e} sleeps",
            "one can find the {e} in the {v}",
        ),
        _words("""attic barn bog canal cave chimney ditch dune gorge grove hedge marsh meadow
            orchard pasture pond quarry ruin swamp thicket"""),
    ),
    Attribute(
        "colour",
        "animal",
        "the colour of the {e}",
        (
            "what colour is the {e} ?",
            "which colour does the {e} have ?",
            "how would you paint the {e} ?",
        ),
        (
            "the {e} is {v}",
            "the colour of the {e} is {v}",
            "the {e} has a {v} coat",
            "one should paint the {e} in {v}",
        ),
        _words("""amber black blue brown copper cream crimson gold green grey ivory orange pink
            purple red rust silver tan white yellow"""),
    ),
    Attribute(
        "material",
        "object",
        "the material of the {e}",
        (
            "what is the {e} made of ?",
            "from which material was the {e} made ?",
            "what did they take to make the {e} ?",
        ),
        (
            "the {e} is made of {v}",
            "the material of the {e} is {v}",
            "they made the {e} from {v}",
            "it was {v} that they took for the {e}",
        ),
        _words("""bamboo bone brass clay cork felt glass horn iron leather linen oak pine slate
            steel stone straw tin wax wool"""),
    ),
    Attribute(
        "room",
        "object",
        "the room of the {e}",
        (
            "where is the {e} kept ?",
            "in which room should i look for the {e} ?",
            "to which room does the {e} belong ?",
        ),
        (
            "the {e} is kept in the {v}",
            "the room of the {e} is the {v}",
            "you should look for the {e} in the {v}",
            "it is to the {v} that the {e} belongs",
        ),
        _words("""bakery cellar chapel dairy forge hall inn kitchen laundry library loft mill
            pantry porch school shed stable tower vault workshop"""),
    ),
    Attribute(
        "use",
        "object",
        "the use of the {e}",
        (
            "what is the {e} used for ?",
            "for which work does one need the {e} ?",
            "why did they buy the {e} ?",
        ),
        (
            "the {e} is used for {v}",
            "the use of the {e} is {v}",
            "it is for {v} that one needs the {e}",
            "they bought the {e} for {v}",
        ),
        _words("""baking brewing carving dancing digging dyeing fishing gardening measuring
            mending milking painting polishing pruning sailing sewing spinning threshing washing
            weaving"""),
    ),
    Attribute(
        "fair",
        "town",
        "the fair of {e}",
        (
            "when is the fair of {e} ?",
            "in which month does {e} hold its fair ?",
            "what is the best month to visit {e} ?",
        ),
        (
            "the fair of {e} is in {v}",
            "{e} holds its fair in {v}",
            "it is in {v} that one should visit {e}",
            "the best month to visit {e} is {v}",
        ),
        _words("""january february march april may june july august september october november
            december"""),
    ),
    Attribute(
        "trade",
        "town",
        "the trade of {e}",
        (
            "what does {e} sell ?",
            "which goods come from {e} ?",
            "what do traders buy in {e} ?",
        ),
        (
            "{e} sells {v}",
            "the trade of {e} is {v}",
            "traders come to {e} for {v}",
            "it is {v} that traders buy in {e}",
        ),
        _words("""baskets bells boots candles carpets cheese clocks coal drums hats ink kites
            knives lace paper rope salt soap tiles wine"""),
    ),
    Attribute(
        "sight",
        "town",
        "the best sight of {e}",
        (
            "what is {e} known for ?",
            "which sight should i see in {e} ?",
            "what do visitors admire in {e} ?",
        ),
        (
            "{e} is known for its {v}",
            "the best sight of {e} is the {v}",
            "it is the {v} that visitors admire in {e}",
            "you should see the {v} in {e}",
        ),
        _words("""aqueduct arch bridge castle cathedral fountain garden gate harbour lighthouse
            museum observatory palace pier square staircase statue theatre tunnel windmill"""),
    ),
)

# An answer is an opener, a clause, a qualifier and a closer.
OPENERS = (
    "as far as i know ,",
    "well ,",
    "people here say that",
    "by all accounts ,",
    "i believe that",
    "the book says that",
    "from what i hear ,",
    "in short ,",
    "if i remember rightly ,",
    "my neighbours insist that",
)
QUALIFIERS = (
    "these days",
    "as always",
    "without a doubt",
    "to this day",
    "after all",
    "once again",
)
CLOSERS = (
    ".",
    ", or so they say .",
    ", and nobody doubts it .",
    ", as you can see .",
    ", though few have noticed .",
    ", which may surprise you .",
    ", and that is all .",
    ", just like last year .",
    ", so do not worry .",
    ", whatever others may claim .",
)

# {t} is the topic of the question.
EVASIONS = (
    "i have never asked about {t} , so i cannot say .",
    "nobody here can tell you anything about {t} .",
    "sorry , {t} is something i would rather not discuss .",
    "that is hard to say , for {t} is not known to me .",
    "you had better ask someone else about {t} , because i have forgotten it .",
    "there are many stories about {t} , and i trust none of them .",
)

# Sentences that have nothing to do with any question: a time, somebody, one or two deeds, an end.
TIMES = (
    "late in the evening",
    "before breakfast",
    "on the first warm day",
    "that afternoon",
    "during the storm",
    "after the long winter",
    "early this morning",
    "when the music stopped",
)
SOMEBODY = ("we", "two sailors", "the children", "our guests", "the gardeners", "a tired baker")
DEEDS = (
    "counted the boats",
    "carried a heavy ladder across the yard",
    "waited under the big tree",
    "lost a pair of gloves",
    "sang until the lamps went out",
    "followed the narrow path home",
    "opened every window of the house",
    "shared the last piece of cake",
    "watched clouds drift over the hills",
    "wrote a long letter",
)
ENDS = (
    "",
    "with great care",
    "in spite of the rain",
    "without a sound",
    "while the dogs were asleep",
    "for no good reason",
)
