"""Templates of the story grammar: the beats of a story in their order, each with its wordings.

Slots that stay the same through a story: {H} {C} {S} are hero, companion and helper, in full or by name ("Mia the
cat" or "Mia"), {h} {c} {s} always by name, {O} the coloured object ("red ball"), {o} the object, {colour} its
colour, {home} and {far} two places with their prepositions ("in the garden"), {Home} and {Far} the same places as
nouns ("the garden"), {weather} the weather ("rain"). Slots that vary from sentence to sentence: {adv} an adverb,
{glad} and {sad} a mood, {when} a time. A beat's share is the probability that a story has it.
"""

from typing import NamedTuple


class Beat(NamedTuple):
    """One step of the plot."""

    name: str
    share: float
    variants: tuple[str, ...]


BEATS: tuple[Beat, ...] = (
    Beat(
        "hero",
        1.0,
        (
            "Once upon a time {H} lived {home} with a friend.",
            "This is the story of {H} who lived {home}.",
            "Long ago {H} had a small house {home}.",
            "There once was a hero called {H} who lived {home}.",
            "Everybody {home} knew {H} and the little house.",
            "The bravest animal {home} was {H} with the long tail.",
            "A wise old bird tells this tale of {H} {home}.",
        ),
    ),
    Beat(
        "companion",
        1.0,
        (
            "The best friend of {H} was {C} from {Home}.",
            "{H} and {C} were best friends and played {home}.",
            "Every day {H} played with {C} {home}.",
            "{C} lived next to {H} and came every {when}.",
            "{H} loved to walk with {C} {home}.",
            "Nobody made {H} laugh as much as {C} {home}.",
            "{C} shared every secret with {H} {home}.",
        ),
    ),
    Beat(
        "habit",
        0.6,
        (
            "In the {when} {h} and {c} drank tea {home}.",
            "{h} and {c} sang songs together {home} every {when}.",
            "{h} told {c} many old stories {home}.",
            "In the {when} {h} and {c} looked at the clouds {home}.",
            "Before breakfast {h} and {c} swam or raced {home}.",
            "On Sunday {h} and {c} baked cookies with honey {home}.",
        ),
    ),
    Beat(
        "find",
        1.0,
        (
            "One {when} {H} found a {O} {home}.",
            "One {when} {H} saw a {O} lying {home}.",
            "Then {H} found a {O} between two stones {home}.",
            "One {when} a {O} lay {home} and {H} picked it up.",
            "One {when} {H} dug a hole {home} and found a {O}.",
            "One {when} something was shining {home} and {H} found a {O}.",
            "While picking flowers {home} {H} noticed a {O}.",
        ),
    ),
    Beat(
        "show",
        1.0,
        (
            "{H} {adv} showed the {O} to {C}.",
            "{H} ran to {C} with the {O} in a hurry.",
            "{H} called {C} to come and see the {O}.",
            "{H} took the {O} and carried it {adv} to {C}.",
            "{H} knocked at the window of {C} with the {O}.",
            "{H} whispered to {C} about the wonderful {O}.",
        ),
    ),
    Beat(
        "admire",
        1.0,
        (
            "{C} looked at the {O} and was very {glad}.",
            "{C} said that the {O} was the best {o} {home}.",
            "{C} touched the {O} and smiled at {H}.",
            "{C} told {H} that the {O} was beautiful.",
            "{C} had never seen such a {O} {home}.",
            "{C} clapped and wished for a {O} just like it.",
        ),
    ),
    Beat(
        "play",
        1.0,
        (
            "All day {H} and {C} played with the {O} {home}.",
            "{h} and {c} played with the {O} until the {when}.",
            "{H} gave the {O} to {C} and they danced {home}.",
            "{h} and {c} laughed and played {home} with the {O}.",
            "{h} and {c} jumped and climbed {home} with the {O}.",
            "For hours {H} and {C} took turns with the {O}.",
        ),
    ),
    Beat(
        "promise",
        0.6,
        (
            "{H} promised {C} to share the {O} for ever.",
            "{H} and {C} promised to look after the {O}.",
            "{H} told {C} that the {O} was for both of them.",
            "{H} wrote the names of {h} and {c} on the {O}.",
        ),
    ),
    Beat(
        "walk",
        1.0,
        (
            "In the {when} {H} and {C} walked from {Home} to {Far}.",
            "{H} took the {O} and walked with {C} to {Far}.",
            "The next {when} {h} and {c} carried the {O} to {Far}.",
            "{H} wanted to show the {O} to everybody {far}.",
            "With apples and cheese {h} and {c} travelled to {Far}.",
            "{C} packed a picnic and {H} brought the {O} to {Far}.",
        ),
    ),
    Beat(
        "weather",
        1.0,
        (
            "The {weather} came {adv} while {h} and {c} were {far}.",
            "The {weather} began and {H} hid the {O} {far}.",
            "There was {weather} {far} and {H} held the {O} {adv}.",
            "Then the {weather} came and {C} ran to {H}.",
            "Dark clouds brought {weather} and {H} covered the {O} {far}.",
        ),
    ),
    Beat(
        "shelter",
        0.6,
        (
            "{H} and {C} waited under a tree for the {weather} to end.",
            "{C} was {sad} because of the {weather} {far}.",
            "{H} and {C} sat close together {far} in the {weather}.",
            "{H} warmed the cold feet of {C} {far} in the {weather}.",
        ),
    ),
    Beat(
        "lose",
        1.0,
        (
            "In the {weather} {H} {adv} lost the {O} {far}.",
            "The {O} fell from the hands of {H} {far}.",
            "When the {weather} was over the {O} of {H} was gone.",
            "Then {H} fell {far} and lost the {O} in the {weather}.",
            "{H} slipped {far} and dropped the {O} in the {weather}.",
        ),
    ),
    Beat(
        "notice",
        1.0,
        (
            "{H} looked for the {O} and could not see it.",
            "{H} cried {adv} because the {O} was lost {far}.",
            "{H} told {C} that the {O} was gone.",
            "{h} said to {C} that the {O} was lost {far}.",
            "Tears ran down the face of {H} for the lost {O}.",
            "{H} turned both pockets out but the {O} was missing.",
        ),
    ),
    Beat(
        "comfort",
        1.0,
        (
            "{C} said that {h} and {c} would find the {O}.",
            "{C} held the hand of {H} and was not {sad}.",
            "{C} told {H} not to cry about the {O}.",
            "{C} gave {H} some bread and spoke {adv} of the {O}.",
            "{C} hugged {H} and hoped to find the {O} soon.",
        ),
    ),
    Beat(
        "search far",
        1.0,
        (
            "{H} and {C} looked for the {O} {far}.",
            "{h} looked {adv} {far} and {c} looked behind the stones.",
            "{C} looked under every tree {far} for the {O}.",
            "All {when} {H} and {C} searched {far} for the {O}.",
            "With a lantern {h} and {c} crawled through the grass {far}.",
            "{H} checked every bush {far} but there was no {O}.",
        ),
    ),
    Beat(
        "search home",
        0.7,
        (
            "Then {h} and {c} looked for the {O} {home}.",
            "{C} walked back to {Home} and the {O} was not there.",
            "{H} walked {adv} to {Home} and searched for the {O}.",
            "Even under the bed {home} {C} could not find the {O}.",
        ),
    ),
    Beat(
        "meet",
        1.0,
        (
            "In the {when} {H} and {C} met {S} {far}.",
            "{far_start} {H} and {C} saw {S} on a stone.",
            "Then {S} came {adv} to {H} and {C} {far}.",
            "{H} and {C} heard {S} singing {far}.",
            "A kind voice called and {H} met {S} {far}.",
        ),
    ),
    Beat(
        "ask",
        1.0,
        (
            "{H} asked {S} for help with the lost {O}.",
            "{H} asked {S} to look for the {O} {far}.",
            "{C} asked {S} where the {O} of {h} could be.",
            "{C} told {S} that {H} had lost the {O}.",
            "Please help us find the {O} said {h} to {S}.",
        ),
    ),
    Beat(
        "describe",
        0.7,
        (
            "{H} told {S} that the {o} was small and {colour}.",
            "{S} asked {H} if the {o} was big and {colour}.",
            "{S} asked {C} to tell the story of the {O}.",
            "{H} drew a picture of the {O} for {S}.",
        ),
    ),
    Beat(
        "answer",
        1.0,
        (
            "{S} had seen a {O} {far} in the {when}.",
            "{S} knew {Far} well and wanted to help {H}.",
            "{S} told {H} and {C} to follow {adv}.",
            "{S} said to {H} that the {O} was near.",
            "{S} thought for a minute and remembered the {O} {far}.",
        ),
    ),
    Beat(
        "follow",
        1.0,
        (
            "{H} and {C} followed {S} {adv} to an old tree.",
            "{S} walked first and {h} and {c} followed {far}.",
            "{S} took {H} and {C} to a deep hole {far}.",
            "{h} and {c} went with {S} over the stones {far}.",
            "{S} pointed to a path and {H} hurried along {far}.",
        ),
    ),
    Beat(
        "discover",
        1.0,
        (
            "There {S} {adv} saw the {O} of {H}.",
            "Under the leaves {S} found the {O} of {H}.",
            "{C} looked down and there was the {O} of {h}.",
            "There was the {O} and {S} gave it to {H}.",
            "{S} and {c} pulled the {O} of {H} out of the mud.",
            "Behind a rock {far} {S} discovered the {O} of {H}.",
        ),
    ),
    Beat(
        "joy",
        1.0,
        (
            "{H} held the {O} and was {glad} again.",
            "{H} and {C} danced {far} around the {O}.",
            "{H} smiled {adv} and showed the {O} to {C}.",
            "{C} was {glad} and {h} laughed about the {O}.",
            "{H} shouted with delight and kissed the {O}.",
        ),
    ),
    Beat(
        "thank",
        1.0,
        (
            "{H} thanked {S} {adv} for finding the {O}.",
            "{H} and {C} thanked {S} for the help.",
            "{H} thanked {S} and gave {s} a warm cake.",
            "{C} said thank you to {S} for the {O}.",
            "{H} bowed to {S} and offered a sweet pear for the {O}.",
        ),
    ),
    Beat(
        "invite",
        0.7,
        (
            "{H} asked {S} to come with {c} to {Home}.",
            "{C} wanted {S} to see the house of {H} {home}.",
            "{S} came along with {H} and {C} to {Home}.",
            "{C} begged {S} to visit {H} {home} for dinner.",
        ),
    ),
    Beat(
        "return",
        1.0,
        (
            "{H} and {C} walked from {Far} to {Home}.",
            "In the {when} {H} carried the {O} back to {Home}.",
            "{h} and {c} went {adv} home with the {O}.",
            "{H} and {C} came back to {Home} in the {when}.",
            "Singing and tired {H} and {C} reached {Home} with the {O}.",
        ),
    ),
    Beat(
        "keep",
        1.0,
        (
            "{H} put the {O} {adv} into the house {home}.",
            "{H} put the {O} on a table {home}.",
            "{H} washed the {O} and {C} dried it {home}.",
            "{H} and {C} hung the {O} on the door {home}.",
            "{H} built a shelf {home} for the {O}.",
        ),
    ),
    Beat(
        "party",
        0.7,
        (
            "{H} made soup for {C} and {S} {home}.",
            "{h} and {c} and {s} ate bread together {home}.",
            "{S} sang a song {home} for {H} and {C}.",
            "All the neighbours came {home} to hear {h} and {c} and {s}.",
        ),
    ),
    Beat(
        "night",
        0.7,
        (
            "In the night {h} slept {adv} beside the {O}.",
            "That night {H} dreamed of {C} and the {O}.",
            "The moon was over {Home} and {H} was {glad}.",
            "Stars were shining over {Home} and {h} dreamed of {s}.",
        ),
    ),
    Beat(
        "moral",
        1.0,
        (
            "From that day {H} never lost the {O} again.",
            "So {H} and {C} stayed best friends {home}.",
            "And so {H} kept the {O} {home} for ever.",
            "{H} and {C} never forgot {S} and the {O}.",
            "A good friend like {C} is better than any {O}.",
        ),
    ),
)

CHARACTERS: tuple[tuple[str, str], ...] = (
    ("Mia", "cat"),
    ("Tom", "dog"),
    ("Ben", "bear"),
    ("Lily", "fox"),
    ("Max", "mouse"),
    ("Zoe", "hen"),
    ("Sam", "frog"),
    ("Ruby", "rabbit"),
    ("Leo", "lion"),
    ("Nora", "duck"),
    ("Finn", "goat"),
    ("Clara", "cow"),
    ("Hugo", "horse"),
    ("Poppy", "pig"),
    ("Oscar", "owl"),
    ("Anna", "sheep"),
)
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "golden", "purple")
OBJECTS = (
    "ball",
    "kite",
    "drum",
    "lamp",
    "hat",
    "cup",
    "key",
    "bell",
    "boat",
    "box",
    "book",
    "ring",
    "scarf",
    "basket",
)
PLACES: tuple[tuple[str, str], ...] = (
    ("in", "garden"),
    ("by", "river"),
    ("on", "hill"),
    ("near", "mill"),
    ("in", "forest"),
    ("at", "farm"),
    ("by", "lake"),
    ("in", "village"),
    ("under", "bridge"),
    ("near", "castle"),
    ("in", "meadow"),
    ("on", "beach"),
)
WEATHER = ("rain", "wind", "snow", "storm", "fog", "thunder")
ADVERBS = ("slowly", "quickly", "quietly", "gently", "softly", "calmly", "carefully", "suddenly")
GLAD = ("happy", "glad", "proud", "excited", "cheerful", "merry")
SAD = ("sad", "afraid", "worried", "cold", "tired")
TIMES = ("morning", "evening", "afternoon", "summer", "winter", "autumn")
