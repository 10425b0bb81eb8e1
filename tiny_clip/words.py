"""The words the tiny CLIP is taught, and the facts about a picture that they name.

A picture's truth is a row of `FACTS`, one small integer each, an index into the table of that fact;
`UNSAID` where the fact does not apply or has no word.
"""

FACTS = ("group", "name", "case", "ink", "ground", "texture", "medium")
GROUP, NAME, CASE, INK, GROUND, TEXTURE, MEDIUM = range(len(FACTS))
UNSAID = -1

GROUPS = ("digit", "letter", "sign", "shape", "pattern")
DIGIT, LETTER, SIGN, SHAPE, PATTERN = range(len(GROUPS))

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
SIGNS = {
    "question mark": "?",
    "exclamation mark": "!",
    "plus sign": "+",
    "equals sign": "=",
    "ampersand": "&",
    "at sign": "@",
    "percent sign": "%",
    "dollar sign": "$",
    "hash sign": "#",
    "asterisk": "*",
}
SHAPES = (
    "circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart", "hexagon",
    "pentagon", "rectangle", "ellipse", "crescent", "arrow", "frame", "semicircle",
)  # fmt: skip
NAMES = (*DIGITS, *LETTERS, *SIGNS, *SHAPES)
_FIRST_SIGN = len(DIGITS) + len(LETTERS)
NAMES_OF = {
    DIGIT: range(len(DIGITS)),
    LETTER: range(len(DIGITS), _FIRST_SIGN),
    SIGN: range(_FIRST_SIGN, _FIRST_SIGN + len(SIGNS)),
    SHAPE: range(_FIRST_SIGN + len(SIGNS), len(NAMES)),
}

CASES = (("capital", "uppercase"), ("small", "lowercase"))
CAPITAL, SMALL = range(len(CASES))

COLORS = {
    "black": (0.03, 0.03, 0.03),
    "white": (0.97, 0.97, 0.97),
    "grey": (0.5, 0.5, 0.5),
    "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.65, 0.15),
    "blue": (0.1, 0.2, 0.85),
    "yellow": (0.95, 0.9, 0.1),
    "orange": (0.97, 0.55, 0.05),
    "purple": (0.5, 0.1, 0.65),
    "pink": (0.97, 0.6, 0.75),
    "brown": (0.42, 0.24, 0.08),
    "cyan": (0.1, 0.85, 0.9),
}
COLOR_NAMES = tuple(COLORS)

TEXTURES = (
    ("plain", "solid"),
    ("striped", "lined"),
    ("checkered", "chequered"),
    ("dotted", "spotted"),
    ("gradient", "shaded"),
    ("noisy", "grainy"),
    ("wavy", "zigzag"),
    ("gridded", "meshed"),
)
PLAIN, STRIPED, CHECKERED, DOTTED, GRADIENT, NOISY, WAVY, GRIDDED = range(len(TEXTURES))

MEDIA = (("handwritten", "hand-drawn"), ("printed", "typed"))
HANDWRITTEN, PRINTED = range(len(MEDIA))
