"""Random JSON schemas of the keywords that llguidance follows, and of some that it does not, for hypothesis."""

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "name", "名字", "two words", "x_1", "", 'a "quoted" one', "line\nend", "é", "\\"])
PATTERNS = st.sampled_from(
    ["^[a-z]+$", "^\\d{3}-\\d{4}$", "^(yes|no)$", "^[A-F0-9]{2,4}$", "b", "^$", "^.{1,5}$", "^\\w*@\\w+\\.com$"]
)
FORMATS = st.sampled_from(["date", "time", "date-time", "ipv4", "ipv6", "uuid", "email", "uri", "hostname", "duration"])
WHOLE = st.integers(-(10**6), 10**6)
NUMBERS = WHOLE | st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
SIZES = st.integers(0, 4)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def some(**keywords):
    """Some of the keywords."""
    return st.fixed_dictionaries({}, optional=keywords)


def ordered(schema, low, high):
    """Bounds the right way round."""
    if low in schema and high in schema and schema[low] > schema[high]:
        schema[low], schema[high] = schema[high], schema[low]
    return schema


def strings():
    sized = some(minLength=SIZES, maxLength=st.integers(0, 9)).map(lambda s: ordered(s, "minLength", "maxLength"))
    return st.one_of(sized, some(pattern=PATTERNS), some(format=FORMATS)).map(lambda s: {"type": "string", **s})


def numbers():
    inner = some(minimum=NUMBERS, maximum=NUMBERS).map(lambda s: ordered(s, "minimum", "maximum"))
    return st.tuples(st.sampled_from(["integer", "number"]), inner | some(exclusiveMinimum=WHOLE)).map(
        lambda pair: {"type": pair[0], **pair[1]}
    ) | st.builds(lambda n: {"type": "integer", "multipleOf": n}, st.integers(1, 20))


def arrays(inner):
    sized = some(items=inner, prefixItems=st.lists(inner, min_size=1, max_size=3), minItems=SIZES, maxItems=SIZES)
    return sized.map(lambda s: {"type": "array", **ordered(s, "minItems", "maxItems")})


@st.composite
def objects(draw, inner):
    properties = draw(st.dictionaries(NAMES, inner, max_size=4))
    schema = {"type": "object", "properties": properties}
    if properties:
        schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
    schema |= draw(some(additionalProperties=st.booleans() | inner))
    if draw(st.integers(0, 9)) == 0:
        schema["patternProperties"] = {"^s_": draw(inner)}
    return schema


def combined(inner):
    several = st.lists(inner, min_size=1, max_size=3)
    return (
        st.builds(lambda s: {"anyOf": s}, several)
        | st.builds(lambda s: {"oneOf": s}, several)
        | st.builds(lambda s: {"allOf": s}, st.lists(inner, min_size=1, max_size=2))
    )


LEAVES = (
    strings()
    | numbers()
    | st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": ["string", "null"]}, {}, True])
    | st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=4))
    | st.builds(lambda value: {"const": value}, VALUES)
    | st.sampled_from([{"$ref": "#/$defs/one"}, {"$ref": "#/$defs/two"}, {"$ref": "#"}])
    | st.sampled_from([{"not": {"type": "null"}}, {"type": "array", "uniqueItems": True}])
)
INNER = st.recursive(LEAVES, lambda inner: arrays(inner) | objects(inner) | combined(inner), max_leaves=6)


@st.composite
def schemas(draw):
    """A schema, with two definitions that it, and they, may name."""
    schema = dict(draw(objects(INNER) | arrays(INNER) | combined(INNER) | strings() | numbers()))
    schema["$defs"] = {"one": draw(INNER), "two": draw(INNER)}
    return schema
