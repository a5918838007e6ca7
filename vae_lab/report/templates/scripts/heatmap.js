// Heat maps of a metric over two axes, one panel for each value of a third.

/** What can be drawn or compared: metrics that some run has, and what else is known of it in numbers. */
const quantities = () => [
  ...measured.map(({ key }) => [key, label(key)]),
  ...extras.filter((key) => runs.some((run) => isNumber(run[key]))).map((key) => [key, label(key)]),
];

const axisOptions = (but = []) => swept.filter(({ key }) => !but.includes(key)).map(({ key }) => [key, key]);
const NONE = ["", "none"];
const ANY = "any";

/** Which axis is down and which across unless somebody says: the command's x, and the next. */
function usualAxes() {
  const x =
    axisOf.has(defaults?.x) && !axisOf.get(defaults.x).seed
      ? defaults.x
      : (swept.find(({ key }) => /s2$/.test(key))?.key ?? swept[0]?.key);
  const d = swept.find(({ key }) => key !== x && /(^|\.)d$/.test(key)) ?? swept.find(({ key }) => key !== x);
  return [x, d?.key ?? ""];
}

/** The value that the best run has on an axis. */
function bestValue(key) {
  const items = comparable(runs, principal());
  return ranked(items, principal())[0]?.axes[key];
}

function heatControls() {
  const [usualX, usualY] = usualAxes();
  const metric = offer("heat-metric", quantities(), principal());
  const x = offer("heat-x", axisOptions(), usualX);
  const y = offer(
    "heat-y",
    [...axisOptions([x]), ...(swept.length < 2 ? [NONE] : [])],
    usualY,
    swept.find(({ key }) => key !== x)?.key,
  );
  const free = swept.filter(({ key }) => ![x, y].includes(key));
  const few = free.find(({ key }) => distinct(runs, key).length <= 4);
  const panel = offer("heat-panel", [NONE, ...free.map(({ key }) => [key, key])], few?.key);
  offer("heat-scale", [
    ["values", "values"],
    ["ranks", "ranks"],
  ]);
  const others = free.filter(({ key }) => key !== panel);
  const holder = byId("heat-others");
  const ids = others.map(({ key }) => `heat-at.${key}`);
  if ([...holder.querySelectorAll("select")].map((select) => select.id).join() !== ids.join()) {
    holder.replaceChildren(
      ...others.map(({ key }, i) =>
        h("label", { class: "choice", for: ids[i] }, h("span", {}, key), h("select", { id: ids[i] })),
      ),
    );
  }
  const fixedTo = others.map(({ key }, i) => {
    const values = distinct(runs, key);
    const options = [...values.map((value) => [JSON.stringify(value), shown(value)]), [ANY, "mean over all"]];
    return [key, offer(ids[i], options, JSON.stringify(bestValue(key)))];
  });
  return { metric, x, y, panel, fixedTo: fixedTo.filter(([, value]) => value !== ANY) };
}

function drawHeat(element) {
  if (!swept.length || !measured.length) return empty(element, "No axis was swept, or no run has a score.");
  const chosenAxes = heatControls();
  const { metric, x, y, panel, fixedTo } = chosenAxes;
  const at = current().filter((run) => fixedTo.every(([key, value]) => JSON.stringify(valueOf(run, key)) === value));
  const groups = byProtocol(at, metric);
  const options = groups.map(([id]) => [String(id), protocolText(id)]);
  const protocol = offer("heat-protocol", options);
  const note = byId("heat-note");
  note.hidden = groups.length < 2;
  note.textContent =
    `These runs were scored under ${groups.length} protocols, which differ in ` +
    `${disagreement(groups.map(([id]) => id))}. Means are over one of them at a time.`;
  const items = groups.find(([id]) => String(id) === protocol)?.[1] ?? [];
  if (!items.length) return empty(element, "No run here has this score.");
  if ([x, y].some((key) => key && distinct(items, key).length > 16)) return drawField(element, items, metric, x, y);

  const { xs, ys, panels, cells } = heatCells(items, chosenAxes);
  const means = cells
    .flat(2)
    .filter(Boolean)
    .map(({ mean }) => mean);
  const ranks = choiceOf("heat-scale") === "ranks" && means.length > 1;
  const shade = shading(means, ranks);
  const across = narrow() ? 1 : Math.min(panels.length, Math.max(1, Math.floor(12 / xs.length)));
  const width = Math.min(element.parentElement.clientWidth, 150 + across * (xs.length * 150 + 70));
  const places = panelPlaces(panels.length, across, width, ys.length);
  const cell = (places.share * width) / xs.length; // pixels across
  const layout = { height: places.height, annotations: [], margin: { l: 60, r: 10, t: panel ? 34 : 12, b: 48 } };
  const traces = panels.flatMap((value, i) => {
    const name = i ? String(i + 1) : "";
    const { left, top, domains } = places.of(i);
    layout[`xaxis${name}`] = { ...cellScale(x, xs), domain: domains[0], anchor: `y${name}`, showgrid: false };
    layout[`yaxis${name}`] = { ...cellScale(y, ys), domain: domains[1], anchor: `x${name}`, showgrid: false };
    if (left > 0) layout[`yaxis${name}`].title = { text: "" };
    if (panel) layout.annotations.push(panelTitle(`${short(panel)} = ${shown(value)}`, left, top));
    const map = {
      type: "heatmap",
      x: coordinates(x, xs),
      y: coordinates(y, ys),
      xaxis: `x${name}`,
      yaxis: `y${name}`,
      colorscale: SCALE,
      zmin: 0,
      zmax: 1,
      z: cells[i].map((line) => line.map(shade)),
      xgap: 2,
      ygap: 2,
      hovertext: cells[i].map((line) => line.map((one) => one && cellHover(one, metric))),
      hovertemplate: "%{hovertext}<extra></extra>",
      customdata: cells[i].map((line) => line.map((one) => one?.runs.map((run) => run.id).join(" "))),
      hoverongaps: false,
      showscale: i === 0 && !ranks,
      colorbar: heatBar(metric, Math.min(...means), Math.max(...means)),
    };
    return [map, cellLabels(map, cells[i], (one) => cellText(one, means, cell), cell)];
  });
  element.style.maxWidth = `${width}px`;
  plot(element, traces, layout, (found) => toggleAll(found.split(" ")));
}

/** The values along each axis, and for each panel the rows of cells: their runs, n, mean and standard error. */
function heatCells(items, { metric, x, y, panel }) {
  const [panels, ys, xs] = [panel, y, x].map((key) => (key ? distinct(items, key) : [null]));
  const is = (run, key, value) => !key || valueOf(run, key) === value;
  const cellAt = (p, b, a) => {
    const here = items.filter((run) => is(run, panel, p) && is(run, y, b) && is(run, x, a));
    return here.length ? { runs: here, ...summarise(here.map((run) => valueOf(run, metric))) } : null;
  };
  return { xs, ys, panels, cells: panels.map((p) => ys.map((b) => xs.map((a) => cellAt(p, b, a)))) };
}

/** Where a cell's mean stands in the range of all, or among their ranks: from 0 to 1; null for no cell. */
function shading(means, ranks) {
  const order = [...new Set(means)].sort((a, b) => a - b);
  const [low, high] = [order[0], order.at(-1)];
  return (one) => {
    if (!one) return null;
    if (low === high) return 0.5;
    return ranks ? order.indexOf(one.mean) / (order.length - 1) : (one.mean - low) / (high - low);
  };
}

/** Where n panels of some rows stand in a chart of this width, in shares of it, and how high it has to be. */
function panelPlaces(n, across, width, rows) {
  const down = Math.ceil(n / across);
  const height = 110 + down * Math.max(2, rows) * 62 + (down - 1) * 70;
  const [gapX, gapY] = [across > 1 ? Math.min(0.12, 60 / width) : 0, down > 1 ? 84 / height : 0];
  const [w, h] = [(1 - gapX * (across - 1)) / across, (1 - gapY * (down - 1)) / down];
  const of = (i) => {
    const [left, top] = [(i % across) * (w + gapX), 1 - Math.floor(i / across) * (h + gapY)];
    return {
      left,
      top,
      domains: [
        [left, left + w],
        [Math.max(0, top - h), top],
      ],
    };
  };
  return { height, of, share: w * (1 - 150 / width) };
}

function panelTitle(text, left, top) {
  const place = { x: left, y: top, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", yshift: 4 };
  return { text: plain(text), showarrow: false, font: { size: 13 }, ...place };
}

/** The labels of a map's cells, dark on light and light on dark. */
function cellLabels({ x, y, z, xaxis, yaxis }, cells, text, width) {
  const there = cells
    .flatMap((line, row) => line.map((one, column) => ({ one, row, column })))
    .filter(({ one }) => one);
  return {
    type: "scatter",
    mode: "text",
    hoverinfo: "skip",
    showlegend: false,
    xaxis,
    yaxis,
    x: there.map(({ column }) => x[column]),
    y: there.map(({ row }) => y[row]),
    text: there.map(({ one }) => text(one)),
    textfont: {
      size: width < 64 ? 10 : 12,
      color: there.map(({ row, column }) => (z[row][column] > 0.55 ? "#16181b" : "#ffffff")),
    },
  };
}

/** The scale beside the maps: their colours are shares of the range of the means. */
function heatBar(metric, low, high) {
  const shares = high > low ? [0, 0.25, 0.5, 0.75, 1] : [0.5];
  const values = shares.map((share) => low + share * (high - low));
  const places = decimals(values, 4);
  const ticks = { tickvals: shares, ticktext: values.map((value) => fixed(value, places)) };
  return { title: barTitle(metricOf.get(metric)?.unit ?? ""), thickness: 12, outlinewidth: 0, ...ticks };
}

/** An axis of cells: logarithmic where its values are, else in equal steps. */
function cellScale(key, values) {
  const log = axisOf.get(key)?.log && values.every((value) => value > 0) && values.length > 1;
  if (log)
    return {
      type: "log",
      title: { text: plain(label(key)) },
      tickvals: values,
      ticktext: values.map((value) => significant(value, 4)),
    };
  return {
    type: "category",
    title: { text: key ? plain(label(key)) : "" },
    tickvals: values.map(shown),
    showticklabels: Boolean(key),
  };
}

const coordinates = (key, values) => (cellScale(key, values).type === "log" ? values : values.map(shown));

function cellText(cell, means, width) {
  const mark = cell.runs.some((run) => state.selected.has(run.id)) ? "◆ " : "";
  if (width < 40) return mark;
  const places = decimals(means, 5);
  const lines = [mark + fixed(cell.mean, places)];
  if (cell.error !== null) lines.push(`± ${uncertain(cell.error)}`);
  return [...lines, `n = ${cell.n}`].join("<br>");
}

function cellHover({ runs: items, n, mean, error }, metric) {
  const spread = error === null ? "" : ` ± ${uncertain(error)}, standard error of ${count(n, "run")}`;
  return plain(
    [`${label(metric)}: ${significant(mean)}${spread}`, ...items.slice(0, 8).map(named)].join("\n"),
  ).replaceAll("\n", "<br>");
}

/** Where an axis has too many values for cells, as after a search: the runs as points. */
function drawField(element, items, metric, x, y) {
  const colours = colouring(items, metric);
  const trace = {
    type: "scatter",
    mode: "markers",
    x: items.map((run) => valueOf(run, x)),
    y: items.map((run) => (y ? valueOf(run, y) : 0)),
    marker: {
      size: 11,
      color: items.map(colours.of),
      line: { width: items.map((run) => (state.selected.has(run.id) ? 3 : 0)), color: tint("--ink") },
    },
    customdata: items.map((run) => run.id),
    text: items.map((run) => hover(run, [metric])),
    hovertemplate: "%{text}<extra></extra>",
    showlegend: false,
  };
  element.style.maxWidth = "";
  const traces = colours.bar ? [trace, colourBar(colours.bar)] : [trace];
  plot(element, traces, { xaxis: scaleOf(x, distinct(items, x)), yaxis: scaleOf(y, distinct(items, y)) }, toggle);
}
