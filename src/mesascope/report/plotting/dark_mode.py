"""Colours of figures on a dark page. Figures are specified in light colours; the script of the page replaces them."""

from collections.abc import Mapping
from types import MappingProxyType

LIGHT_BACKGROUND, DARK_BACKGROUND = "#fdfcf9", "#16191d"  # of the page, as in page.css
DARK_COLOURS: Mapping[str, str] = MappingProxyType(  # light colour: dark colour; each dark colour occurs once
    {
        # text, axes, grid and hover labels
        "#22272e": "#e6e3dc",
        "#e9e6df": "#2b3036",
        "#b9b5ab": "#5c6269",
        "#cfcbc0": "#4a5057",
        "#8a8f98": "#8d939c",
        "#ffffff": "#23282e",
        "rgba(255,255,255,0.85)": "rgba(29,33,38,0.85)",
        "rgba(0,0,0,0)": DARK_BACKGROUND,
        # the model, its seeds, baselines and other series
        "#737881": "#9aa0a9",
        "#0b5394": "#6fb1ee",
        "#b3541e": "#de8552",
        "#2f7d6d": "#57b3a0",
        "#8c5a94": "#bd8cc6",
        "#a98a1c": "#c9a93a",
        "#5b8db8": "#86aecf",
        "#c27a86": "#d9939f",
        "#5f6b3a": "#9aa86b",
        "#6d6d6d": "#a8a8a8",
        "#c8641b": "#ee8a3f",
        "#4191c9": "#9fd0f5",
        "#bd5a73": "#e07f98",
        "#6594c1": "#4f7fae",
        # controls
        "#8f6b4e": "#b8937a",
        "#b08d2e": "#c4a34a",
        "#5f8a6b": "#82b08f",
        "#8d6f96": "#b39abc",
        "#a8717a": "#cf9aa3",
        "#83874f": "#adb17a",
        "#64868f": "#8bb0b9",
        "#7a73a0": "#a8a1d0",
        # points of scatter plots
        "#d07810": "#f09a3e",
        "#2f8f5b": "#4fbd81",
        "#b8324a": "#e8647a",
        "#7a5aa6": "#a98bd6",
        "#8a6a3b": "#bd9a66",
        "#d16ba5": "#e58fc0",
        "#6f7680": "#949ba6",
        "#90921a": "#b9bc3a",
        "#2399aa": "#45bccd",
        "#7593ab": "#c3d3e0",
        # sequential and diverging scales: the middle or the low end is the background, strong values are bright
        "#f5f4ee": "#1f2429",
        "#d3dfe8": "#2a3f54",
        "#9dbcd4": "#38658f",
        "#5b8fb9": "#5b8fb9",
        "#245f94": "#93c0e6",
        "#0b2f57": "#e6f2fd",
        "#8c3b0c": "#ffb784",
        "#cf7f43": "#c9793d",
        "#edc9a6": "#6e4526",
        "#f6f5f1": "#22272d",
        "#b4cfe2": "#2b4a66",
        "#0b3d6e": "#b5dcff",
        # tints behind tokens
        "#fdfcf8": "#1b1e22",
        "#fbe9c9": "#3d2f1c",
        "#f6cf95": "#5c431f",
        "#eeb069": "#754e1f",
        "#e39150": "#8b5020",
        "#eaa06a": "#8d4f1e",
        "#f5d3b4": "#533a26",
        "#fbfaf6": "#1d2024",
        "#c8dcec": "#263b4d",
        "#8fbadd": "#2f5c85",
        # roles of heads
        "#cfe0ee": "#27425c",
        "#e4e2dc": "#3a3e43",
        "#f6dcc0": "#5a3f22",
    }
)
