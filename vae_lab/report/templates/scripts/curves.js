// Curves of training: means over seeds with the seeds' band, or each run.

const OVER = { epoch: "epoch", examples: "examples seen", seconds: "seconds" };
const DASHES = ["solid", "dot", "dash", "dashdot"];
const MODES = [
  ["setting", "mean over seeds, and their range"],
  ["run", "each run"],
  ["color", "mean of all of a colour, and their range"],
];

/** The points of a run's curve that are there. */
function curveOf(run, metric, over) {
  const [xs, ys] = [run.curves?.[over], run.curves?.values?.[metric]];
  if (!xs || !ys) return { x: [], y: [] };
  const there = ys.map((y, i) => i).filter((i) => isNumber(ys[i]) && isNumber(xs[i]));
  return { x: there.map((i) => xs[i]), y: there.map((i) => ys[i]) };
}

/** A curve's value at x, between two of its points; null outside of them. */
function interpolator({ x, y }) {
  let i = 0; // asked with growing x
  return (at) => {
    if (!x.length || at < x[0] || at > x.at(-1)) return null;
    while (i < x.length - 2 && x[i + 1] < at) i += 1;
    if (x.length === 1 || x[i] === at) return y[i];
    return y[i] + ((y[i + 1] - y[i]) * (at - x[i])) / (x[i + 1] - x[i]);
  };
}

/** The mean of curves, and the least and the greatest, at all points that one of them has. */
function together(curves) {
  if (curves.length === 1) return { ...curves[0], low: null, high: null, n: 1 };
  const x = [...new Set(curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
  const functions = curves.map(interpolator);
  const rows = x.map((at) => functions.map((f) => f(at)).filter(isNumber));
  return {
    x,
    n: curves.length,
    y: rows.map((row) => summarise(row).mean),
    low: rows.map((row) => Math.min(...row)),
    high: rows.map((row) => Math.max(...row)),
  };
}

function drawCurves(element) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves?.values ?? {})))];
  if (!names.length) return empty(element, "No run has a history.");
  const order = ["val/elbo", "val/kl", "val/rec", "train/elbo", "train/kl", "train/rec"];
  const rank = (name) => (order.includes(name) ? order.indexOf(name) : order.length);
  const metric = offer(
    "curves-metric",
    names
      .toSorted((a, b) => rank(a) - rank(b) || compare(a, b))
      .map((key) => [key, metricOf.has(key) ? label(key) : key]),
    "val/elbo",
  );
  const overs = Object.entries(OVER).filter(([key]) => runs.some((run) => run.curves?.[key]?.some(isNumber)));
  const over = offer("curves-x", overs);
  const color = offer(
    "curves-color",
    axes.map(({ key }) => [key, key]),
    defaults?.color,
    usualAxes()[0],
  );
  const mode = offer("curves-lines", MODES);

  const items = current()
    .map((run) => ({ run, curve: curveOf(run, metric, over) }))
    .filter(({ curve }) => curve.x.length);
  byId("curves-says").textContent =
    mode === "run"
      ? ""
      : "Between a run’s points its curve is interpolated; the band is from the least to the greatest of the runs.";
  if (!items.length) return empty(element, "No run here has logged this.");
  const colours = colouring(
    items.map(({ run }) => run),
    axisOf.has(color) ? color : null,
  );
  const keyOf = { setting: ({ run }) => settingOf(run), run: ({ run }) => run.id, color: ({ run }) => colours.of(run) }[
    mode
  ];
  const lines = [...groupBy(items, keyOf).values()].map((group) => ({
    runs: group.map(({ run }) => run),
    colour: colours.of(group[0].run),
    ...together(group.map(({ curve }) => curve)),
  }));
  const any = items.some(({ run }) => state.selected.has(run.id));
  const traces = [];
  const texts = new Map(colours.groups.map((group) => [group.colour, group.text]));
  const place = new Map([...texts.keys()].map((colour, i) => [colour, i]));
  lines.sort((a, b) => (place.get(a.colour) ?? 0) - (place.get(b.colour) ?? 0));
  for (const [colour, group] of groupBy(lines, (line) => line.colour)) {
    const banded = group.filter((line) => line.low);
    if (banded.length) traces.push(bandTrace(banded, colour, any));
    traces.push(lineTrace(group, colour, texts.get(colour), any, mode));
  }
  const marked = items.filter(({ run }) => state.selected.has(run.id));
  for (const [i, { run, curve }] of marked.entries()) {
    traces.push({
      type: "scatter",
      mode: "lines",
      ...curve,
      line: { color: colours.of(run), width: 2.5, dash: DASHES[i % DASHES.length] },
      name: plain(named(run)),
      legendgroup: "chosen",
      showlegend: state.selected.size <= 8,
      customdata: curve.x.map(() => run.id),
      text: plain(named(run)),
      hovertemplate: "%{text}<br>%{x:.6~g}: %{y:.6~g}<extra></extra>",
    });
  }
  if (colours.bar) traces.push(colourBar(colours.bar));

  const end = Math.max(...lines.map((line) => line.x.at(-1)));
  const late = lines
    .flatMap((line) => line.x.map((x, i) => [x, line.low?.[i] ?? line.y[i], line.high?.[i] ?? line.y[i]]))
    .filter(([x]) => x >= end / 10);
  const whole = lines.flatMap((line) => line.y);
  const span = (values) => Math.max(...values) - Math.min(...values);
  const lates = late.flatMap(([, low, high]) => [low, high]);
  offerTick("curves-late", late.length > 1 && span(whole) > 3 * span(lates));
  const yaxis = {
    title: { text: plain(metricOf.get(metric)?.unit ? `${label(metric)} (${metricOf.get(metric).unit})` : metric) },
  };
  if (byId("curves-late").checked && late.length > 1) {
    const pad = 0.04 * span(lates) || 1;
    yaxis.range = [Math.min(...lates) - pad, Math.max(...lates) + pad];
  }
  plot(element, traces, { xaxis: { title: { text: OVER[over] } }, yaxis }, (found) => toggleAll(found.split(" ")));
}

/** Several lines as one trace, with gaps between them: many lines stay quick. */
function lineTrace(lines, colour, text, any, mode) {
  const gap = (values) => values.flatMap((part) => [...part, null]);
  const name = (line) =>
    plain(
      mode === "run"
        ? named(line.runs[0])
        : mode === "setting"
          ? `${settingNamed(line.runs[0])}, ${count(line.n, "run")}`
          : `${text}, ${count(line.n, "run")}`,
    );
  return {
    type: "scatter",
    mode: "lines",
    x: gap(lines.map((line) => line.x)),
    y: gap(lines.map((line) => line.y)),
    name: plain(text ?? ""),
    showlegend: Boolean(text),
    line: { color: colour, width: lines.length > 12 ? 1 : 1.75 },
    opacity: any ? 0.25 : 1,
    connectgaps: false,
    customdata: gap(lines.map((line) => line.x.map(() => line.runs.map((run) => run.id).join(" ")))),
    text: gap(lines.map((line) => line.x.map(() => name(line)))),
    hovertemplate: "%{text}<br>%{x:.6~g}: %{y:.6~g}<extra></extra>",
  };
}

function bandTrace(lines, colour, any) {
  const outline = (line, upper, lower) => [...upper(line), ...lower(line).toReversed(), null];
  return {
    type: "scatter",
    mode: "lines",
    fill: "toself",
    fillcolor: translucent(colour, any ? 0.05 : 0.18),
    line: { width: 0 },
    hoverinfo: "skip",
    showlegend: false,
    x: lines.flatMap((line) =>
      outline(
        line,
        ({ x }) => x,
        ({ x }) => x,
      ),
    ),
    y: lines.flatMap((line) =>
      outline(
        line,
        ({ high }) => high,
        ({ low }) => low,
      ),
    ),
  };
}
