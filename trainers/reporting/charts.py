"""Line charts as SVG, drawn without a script: colors follow the page, values show under the pointer."""

import dataclasses
import decimal
import itertools
import math

from trainers.reporting.markup import element

WIDTH, HEIGHT = 380, 236
LEFT, TOP, BOTTOM = 46, 12, 34
LETTER = 7  # about the width of one
MOST_POINTS, MOST_HOVERS = 300, 60
COLORS = 8
LABEL_DISTANCE = 12  # of one end of a line to the next, in the units of the picture


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        name: What it shows, for tooltips.
        label: What stands at its end, a few letters.
        xs: Epochs, increasing.
        ys: A value for each; one that is not finite leaves a gap.
        color: Index of a color of the page.
        best: Index of the point to mark, or None (default).
        dashes: How it is dashed: 0 (default, not at all), 1 or 2.
    """

    name: str
    label: str
    xs: list
    ys: list
    color: int = 0
    best: int = None
    dashes: int = 0

    @property
    def points(self):
        """The finite points, pairs."""
        return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if drawable(y)]


def drawable(value):
    """Whether a value has a place on an axis: finite, and not so large that its axis would overflow."""
    return math.isfinite(value) and abs(value) < 1e100


def number(value, digits=4, aligned=False):
    """A number as text, in as many digits as one reads.

    Args:
        value: An int or float.
        digits: How many digits count.
        aligned: Whether zeros at the end stay, as in a column of numbers. Default False.
    """
    if isinstance(value, int):
        text = f"{value:,}" if abs(value) < 10**15 else f"{decimal.Decimal(value):.{digits}g}"
        return text.replace("-", "−")
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = format(value, f"{'#' if aligned else ''},.{digits}g").removesuffix(".")
    if "e" in text and abs(value) < 1e15:
        text = f"{value:,.0f}" if abs(value) >= 1 else text
    return text.replace("-", "−")


def chart(identity, title, lines, percent=False, logarithmic=False, limits=()):
    """A line chart over epochs; None if no line has a finite point.

    Args:
        identity: Name of the chart that the page has once.
        title: What it shows, for those who cannot see it.
        lines: A list of `Line`.
        percent: Whether values are fractions, to be shown in percent. Default False.
        logarithmic: Whether the axis is logarithmic where values, all positive, differ by a factor over 3.
        limits: Values that the axis shows in any case, so that charts beside each other can be compared.

    Returns:
        An `svg` element.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return None
    shown = [y for _, y in points] + [*limits]
    lowest, highest = min(shown), max(shown)
    scale = Scale(lowest, highest, logarithmic and 0 < 3 * lowest < highest)
    right = WIDTH - 14 - LETTER * max(len(line.label) for line in lines)
    axis = EpochAxis(min(x for x, _ in points), max(x for x, _ in points), right)
    show = (lambda value: f"{number(100 * value)}%") if percent else number
    return element(
        "svg",
        element("title", title, id=f"{identity}-title"),
        element("desc", _described(lines, show), id=f"{identity}-desc"),
        _grid(scale, axis, percent),
        [_drawn(line, scale, axis) for line in lines],
        _labels(lines, scale, axis),
        _hovers(lines, scale, axis, show),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{identity}-title {identity}-desc",
        class_="chart",
    )


class Scale:
    """The vertical axis.

    Args:
        lowest: The lowest value to show.
        highest: The highest.
        logarithmic: Whether it is logarithmic.
    """

    def __init__(self, lowest, highest, logarithmic):
        self.logarithmic = logarithmic
        if logarithmic:
            self.ticks = _logarithmic_ticks(lowest, highest)
            margin = (highest / lowest) ** 0.06
            lowest, highest = lowest / margin, highest * margin
        else:
            if highest - lowest < 1e-4 * abs(highest):  # else all ticks would read the same
                lowest, highest = lowest - 0.05 * abs(highest), highest + 0.05 * abs(highest)
            margin = 0.06 * (highest - lowest) or 1.0
            floor = 0.0 if lowest >= 0.0 else -math.inf  # no axis below 0 for what never is
            lowest, highest = max(floor, lowest - margin), highest + margin
            self.ticks = linear_ticks(lowest, highest, 5)
        self.lowest, self.highest = self._measure(lowest), self._measure(highest)

    def _measure(self, value):
        return math.log(value) if self.logarithmic else value

    def place(self, value):
        """Distance of a value from the upper edge of the picture."""
        part = (self._measure(value) - self.lowest) / (self.highest - self.lowest)
        return HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP)


class EpochAxis:
    """The horizontal axis, with whole epochs marked.

    Args:
        first: The first epoch.
        last: The last one.
        right: Where the axis ends, from the left edge of the picture.
    """

    def __init__(self, first, last, right):
        self.first, self.last = (first, last) if last > first else (first - 1, last + 1)
        self.right = right
        step = max(1, math.ceil(_nice((self.last - self.first) / 9)))
        begin = math.ceil(first / step) * step
        self.ticks = [begin + step * index for index in range(int((last - begin) // step) + 1)] or [first]

    def place(self, epoch):
        """Distance of an epoch from the left edge of the picture."""
        return LEFT + (epoch - self.first) / (self.last - self.first) * (self.right - LEFT)


def _nice(step):
    """The next of 1, 2, 5, 10, 20, ... that is not below."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def linear_ticks(lowest, highest, most):
    """Round values in an interval, about as many as `most`."""
    step = _nice((highest - lowest) / most)
    first = math.ceil(lowest / step)
    return [float(f"{index * step:.12g}") for index in range(first, math.floor(highest / step) + 1)]


def _logarithmic_ticks(lowest, highest):
    """Round values in an interval of several factors: few of them where it is wide."""
    for factors in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
        ticks = [factor * 10.0**power for power in decades for factor in factors]
        ticks = [tick for tick in ticks if lowest <= tick <= highest]
        if len(ticks) <= 7:
            break
    return ticks[:: -(-len(ticks) // 7)] if ticks else [lowest, highest]


def _grid(scale, axis, percent):
    parts = []
    for tick in scale.ticks:
        y = f"{scale.place(tick):.1f}"
        parts.append(element("line", x1=LEFT, x2=axis.right, y1=y, y2=y, class_="grid"))
        text = f"{number(100 * tick)}%" if percent else _short(tick)
        parts.append(element("text", text, x=LEFT - 7, y=f"{scale.place(tick) + 4:.1f}", class_="tick end"))
    for tick in axis.ticks:
        x = f"{axis.place(tick):.1f}"
        parts.append(element("text", f"{tick:g}", x=x, y=HEIGHT - BOTTOM + 15, class_="tick middle"))
    parts.append(
        element("text", "epoch", x=(LEFT + axis.right) / 2, y=HEIGHT - 5, class_="tick middle quiet")
    )
    return element("g", parts, aria_hidden="true")


def _short(value):
    """A value of the axis: thousands and more in short."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            size = 1e3 if letter == "k" else size
            return f"{number(value / size)}{letter}"
    return number(value)


def thinned(count, most, kept=()):
    """Indices of at most about `most` of `count` things, evenly, the last one and those `kept` among them."""
    chosen = set(range(0, count, max(1, -(-count // most)))) | {count - 1} | set(kept)
    return sorted(index for index in chosen if 0 <= index < count)


def _drawn(line, scale, axis):
    """The line, in a piece for each stretch without gaps, and a dot where such a stretch has one point."""
    shown = thinned(len(line.xs), MOST_POINTS, () if line.best is None else (line.best,))
    pieces, parts = [[]], []
    for index in shown:
        if drawable(line.ys[index]):
            pieces[-1].append((axis.place(line.xs[index]), scale.place(line.ys[index])))
        elif pieces[-1]:
            pieces.append([])
    for piece in pieces:
        if len(piece) > 1:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in piece)
            parts.append(element("path", d=path, class_="line"))
        elif piece:
            parts.append(element("circle", cx=f"{piece[0][0]:.1f}", cy=f"{piece[0][1]:.1f}", r=2.5))
    if line.best is not None:
        x, y = axis.place(line.xs[line.best]), scale.place(line.ys[line.best])
        parts.append(element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=4, class_="best"))
    return element("g", parts, class_=f"c{line.color % COLORS} d{line.dashes}")


def _labels(lines, scale, axis):
    """Names at the ends of the lines, moved apart where they would cover each other."""
    ends = [(scale.place(line.points[-1][1]), line) for line in lines if line.points and line.label]
    ends.sort(key=lambda end: end[0])
    places = []
    for y, _ in ends:
        places.append(max(y, places[-1] + LABEL_DISTANCE) if places else y)
    over = max(0.0, places[-1] - (HEIGHT - BOTTOM)) if places else 0.0
    for index in reversed(range(len(places))):  # back up, from the lowest one
        places[index] -= over
        gap = places[index] - LABEL_DISTANCE - places[index - 1] if index else 0.0
        over = max(0.0, -gap)
    return [
        element(
            "text",
            line.label,
            x=f"{axis.place(line.points[-1][0]) + 7:.1f}",
            y=f"{y + 4:.1f}",
            class_=f"name c{line.color % COLORS}",
        )
        for y, (_, line) in zip(places, ends, strict=True)
    ]


def _hovers(lines, scale, axis, show):
    """For each epoch a stripe with its values, of which the one under the pointer shows."""
    values = {}
    for line in lines:
        for x, y in zip(line.xs, line.ys, strict=True):
            values.setdefault(x, []).append((line, y))
    epochs = sorted(values)
    epochs = [epochs[index] for index in thinned(len(epochs), MOST_HOVERS)]
    edges = [(axis.place(one) + axis.place(other)) / 2 for one, other in itertools.pairwise(epochs)]
    edges = [LEFT - 4, *edges, axis.right + 4]
    parts = []
    for epoch, left, right in zip(epochs, edges, edges[1:], strict=False):
        text = [f"epoch {epoch:g}", *(f"{line.name}: {show(y)}" for line, y in values[epoch])]
        x = f"{axis.place(epoch):.1f}"
        dots = [
            element("circle", cx=x, cy=f"{scale.place(y):.1f}", r=3, class_=f"c{line.color % COLORS}")
            for line, y in values[epoch]
            if drawable(y)
        ]
        box = {"x": f"{left:.1f}", "y": TOP, "width": f"{right - left:.1f}", "height": HEIGHT - TOP - BOTTOM}
        ruler = element("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM)
        title = element("title", "\n".join(text))
        parts.append(element("g", title, element("rect", **box), ruler, dots, class_="at"))
    return parts


def _described(lines, show):
    """The chart in words: where each line begins and ends."""
    parts = []
    for line in lines:
        if line.points:
            (first, begin), (last, end) = line.points[0], line.points[-1]
            text = f"{line.name}: {show(begin)} in epoch {first:g}, {show(end)} in epoch {last:g}"
            if line.best is not None:
                text += f", best {show(line.ys[line.best])} in epoch {line.xs[line.best]:g}"
            parts.append(text)
    return "; ".join(parts) + "."
