import re
import xml.etree.ElementTree as ElementTree

import pytest

from selfflow.report.charts import COLOURS, draw
from selfflow.report.curves import Line, Panel, Point

SVG = "{http://www.w3.org/2000/svg}"
POINTS = [Point(x, 1.0 / x, 0.9 / x, 1.1 / x, 5) for x in (1.0, 2.0, 4.0)]
HREF = "{http://www.w3.org/1999/xlink}href"


def panel(*lines: Line, **fields) -> Panel:
    return Panel(**{"section": "s", "title": "t", "x": "step", "lines": list(lines)} | fields)


def parse(panel: Panel, colours: dict[str, int]) -> ElementTree.Element:
    return ElementTree.fromstring(draw(panel, colours))


def labels(svg: ElementTree.Element) -> list[str]:
    return [text.text for text in svg.iter(f"{SVG}text")]


def bands(svg: ElementTree.Element) -> int:
    return sum("fill-opacity" in element.get("style", "") for element in svg.iter())


def test_equal_panels_give_equal_charts():
    one = panel(Line("a", "", POINTS))
    assert draw(one, {"a": 0}) == draw(one, {"a": 0}) != draw(one, {"a": 1})


def test_colours_are_those_of_the_page():
    svg = draw(panel(Line("a", "", POINTS), Line("b", "", POINTS), level=0.5), {"a": 3, "b": COLOURS + 1})
    assert set(re.findall(r"var\(--\w+\)", svg)) == {"var(--c3)", "var(--c1)", "var(--dim)", "var(--rule)"}
    assert not re.findall(r":\s*#\w+", svg)


def test_nothing_in_a_chart_applies_to_the_page_or_to_another_chart():
    svgs = [parse(panel(Line("a", "", POINTS), title=title), {"a": 0}) for title in ("one", "two")]
    ids = []
    for svg in svgs:
        own = {element.get("id") for element in svg.iter() if element.get("id")}
        references = {element.get(HREF)[1:] for element in svg.iter() if element.get(HREF)}
        references |= set(re.findall(r"url\(#(\w+)\)", ElementTree.tostring(svg, "unicode")))
        assert references and references == own
        assert not list(svg.iter(f"{SVG}style")) and not list(svg.iter(f"{SVG}metadata"))
        ids.append(own)
    assert not ids[0] & ids[1]


@pytest.mark.parametrize("arm", ['"><script>alert(1)</script>', "$x^2$", "a & b <c>", "#c0ff0", 'curve-0">\' id="x_1"'])
def test_the_label_of_a_line_is_text(arm):
    svg = parse(panel(Line(arm, "teacher", POINTS)), {arm: 0})
    titles = [title.text for title in svg.iter(f"{SVG}title")]
    assert titles == [f"{arm}, teacher: 0.25 at 4, n = 5"]
    assert not list(svg.iter(f"{SVG}script"))


def test_losses_are_on_a_logarithmic_axis_unless_one_is_not_positive():
    wide = [Point(x, 10.0**-x, 9.0, 11.0, 1) for x in (0.0, 1.0, 2.0)]
    assert {"0.01", "0.1", "1"} <= set(labels(parse(panel(Line("a", "", wide), log=True), {"a": 0})))
    wide.append(Point(3.0, -1.0, None, None, 1))
    assert "0.01" not in labels(parse(panel(Line("a", "", wide), log=True), {"a": 0}))


def test_blocks_are_whole_numbers():
    blocks = [Point(x, 0.5, None, None, 1) for x in (1, 2, 3)]
    assert labels(parse(panel(Line("a", "", blocks), x="block"), {"a": 0}))[:3] == ["1", "2", "3"]


def test_two_seeds_have_no_band_and_that_of_three_does_not_set_the_range():
    def chart(n: int) -> ElementTree.Element:
        return parse(panel(Line("a", "", [Point(x, 0.5 + x / 100, -9.0, 9.0, n) for x in (1.0, 2.0)])), {"a": 0})

    assert (bands(chart(2)), bands(chart(3)), bands(chart(5))) == (0, 1, 1)
    assert "0.51" in labels(chart(3)) and "0.51" not in labels(chart(5))


@pytest.mark.parametrize("points", [[], [Point(0.0, 0.0, None, None, 1)], [Point(1.0, 5.0, 5.0, 5.0, 3)]])
def test_a_panel_with_few_points_is_drawn(points):
    svg = parse(panel(Line("a", "", points), log=True), {"a": 0})
    assert len(list(svg.iter(f"{SVG}title"))) == len(points)
