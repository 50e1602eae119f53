"""Names of sites."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeinterp.errors import ConfigError
from saeinterp.ids import layer_of, parse_site, site_name


@given(st.sampled_from(["layers.9", "layers.0.mlp", "transformer.h.3"]), st.none() | st.integers(0, 500))
def test_sites_round_trip(hookpoint: str, slot: int | None) -> None:
    assert parse_site(site_name(hookpoint, slot)) == (hookpoint, slot)


def test_a_site_names_its_block() -> None:
    assert [layer_of(name) for name in ("layers.9@1", "model.layers.12@0", "h.3@17", "layers.4")] == [9, 12, 3, 4]


@pytest.mark.parametrize("text", ["", "@1", "layers.9@", "layers.9@x", "layers.9@1@2"])
def test_other_text_is_no_site(text: str) -> None:
    with pytest.raises(ConfigError, match="not a site"):
        parse_site(text)
