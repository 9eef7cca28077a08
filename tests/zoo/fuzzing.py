"""What the tests with mutated files and random values share."""

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

QUICK = settings(max_examples=120, deadline=None, derandomize=True,
                 phases=[Phase.explicit, Phase.generate],
                 suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip

# Where (as a share of the file), and what stands there instead; and where the file ends.
MUTATIONS = st.tuples(
    st.lists(st.tuples(st.floats(0, 0.999999), st.binary(min_size=1, max_size=4)), max_size=4),
    st.one_of(st.just(1.0), st.floats(0, 1)),
)


def mutate(content, mutations):
    changes, end = mutations
    content = bytearray(content)
    for place, new in changes:
        start = int(place * len(content))
        content[start : start + len(new)] = new
    return bytes(content[: int(end * len(content))])


def nested(*leaves):
    """Values, and lists and dictionaries of them."""
    return st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-9, 99), st.text(max_size=5), *leaves),
        lambda inner: st.one_of(st.lists(inner, max_size=3),
                                st.dictionaries(st.text(max_size=5), inner, max_size=3)),
        max_leaves=5,
    )  # fmt: skip
