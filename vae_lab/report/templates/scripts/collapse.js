// Collapse: which latent units carry nothing, and whether the oracle saw it coming.

const LEVELS = { bad: "in trouble", warn: "worth a look", good: "in order" };

function drawActive(element) {
  const items = current().filter((run) => isNumber(run.active));
  if (!items.length) return empty(element, "No run has counted its active units.");
  const axis = (key) => [key, key];
  const x = offer(
    "active-x",
    swept.map(({ key }) => axis(key)),
    swept.find(({ key }) => /s2$/.test(key))?.key,
    usualAxes()[0],
  );
  const color = offer(
    "active-color",
    swept.filter(({ key }) => key !== x).map(({ key }) => axis(key)),
    swept.find(({ key }) => key !== x && /(^|\.)d$/.test(key))?.key,
  );
  const there = x ? items.filter((run) => valueOf(run, x) !== null) : items;
  if (!x || !there.length) return empty(element, "No axis was swept.");
  const colours = colouring(there, color || null);
  const any = there.some((run) => state.selected.has(run.id));
  const at = (run) => (axisOf.get(x).number ? valueOf(run, x) : shown(valueOf(run, x)));
  const traces = colours.groups.flatMap((group) => {
    const told = group.runs.filter((run) => isNumber(run.predicted));
    const means = [...groupBy(told, at)]
      .map(([value, same]) => [value, summarise(same.map((run) => run.predicted)).mean])
      .sort(([a], [b]) => compare(a, b));
    const predicted = {
      type: "scatter",
      mode: "lines+markers",
      x: means.map(([value]) => value),
      y: means.map(([, mean]) => mean),
      showlegend: false,
      opacity: any ? 0.4 : 1,
      line: { color: group.colour ?? tint("--faint"), width: 1.5, dash: "dash" },
      marker: { symbol: "circle-open", size: 9, color: group.colour ?? tint("--faint") },
      hovertemplate: `predicted: %{y}<extra>${plain(group.text)}</extra>`,
    };
    const observed = {
      type: "scatter",
      mode: "markers",
      name: plain(group.text),
      showlegend: Boolean(group.text),
      x: group.runs.map(at),
      y: group.runs.map((run) => run.active),
      customdata: group.runs.map((run) => run.id),
      text: group.runs.map((run) => `${hover(run, [])}<br>active: ${run.active}, predicted: ${run.predicted ?? "–"}`),
      hovertemplate: "%{text}<extra></extra>",
      marker: {
        color: group.runs.map(colours.of),
        size: group.runs.map((run) => (state.selected.has(run.id) ? 14 : 8)),
        opacity: group.runs.map((run) => (any && !state.selected.has(run.id) ? 0.3 : 0.9)),
        line: { color: tint("--ink"), width: group.runs.map((run) => (state.selected.has(run.id) ? 2 : 0)) },
      },
    };
    return means.length ? [predicted, observed] : [observed];
  });
  const key = [
    {
      type: "scatter",
      mode: "markers",
      x: [null],
      y: [null],
      name: "observed",
      marker: { color: tint("--ink"), size: 8 },
    },
    {
      type: "scatter",
      mode: "lines+markers",
      x: [null],
      y: [null],
      name: "predicted",
      line: { color: tint("--ink"), dash: "dash", width: 1.5 },
      marker: { symbol: "circle-open", size: 9 },
    },
  ];
  const bar = colours.bar ? [colourBar(colours.bar)] : [];
  const most = Math.max(...there.map((run) => Math.max(run.active, run.predicted ?? 0)));
  plot(
    element,
    [...traces, ...key, ...bar],
    {
      xaxis: scaleOf(x, distinct(there, x)),
      yaxis: { title: { text: "active units" }, rangemode: "tozero", dtick: most <= 10 ? 1 : null },
    },
    toggle,
  );
}

function drawKl(element) {
  const order = (a, b) => swept.map(({ key }) => compare(valueOf(b, key), valueOf(a, key))).find((sign) => sign) ?? 0;
  const keys = (run) => swept.filter(({ key }) => key in run.axes);
  const items = current()
    .filter((run) => run.kl_dims?.length)
    .toSorted(order);
  if (!items.length || !keys(items[0])) return empty(element, "No run has logged its KL by dimension.");
  const rows = items.map((run) => run.kl_dims.filter(isNumber).toSorted((a, b) => b - a));
  const widest = Math.max(...rows.map((row) => row.length));
  const name = (run) => `${state.selected.has(run.id) ? "◆ " : ""}${named(run)}`;
  const few = items.length <= 40 && !narrow();
  const told = (run, row, j) =>
    plain(`${named(run)}\n${j + 1} of ${row.length}: ${significant(row[j], 4)} nats`).replaceAll("\n", "<br>");
  const trace = {
    type: "heatmap",
    colorscale: SCALE,
    zmin: 0,
    z: rows.map((row) => Array.from({ length: widest }, (_, j) => row[j] ?? null)),
    y: items.map((_, i) => i),
    x: Array.from({ length: widest }, (_, j) => j + 1),
    hoverongaps: false,
    xgap: 1,
    ygap: items.length > 120 ? 0 : 1,
    text: rows.map((row, i) =>
      Array.from({ length: widest }, (_, j) => (j < row.length ? told(items[i], row, j) : "")),
    ),
    hovertemplate: "%{text}<extra></extra>",
    customdata: items.map((run) => Array(widest).fill(run.id)),
    colorbar: { title: barTitle("nats"), thickness: 12, outlinewidth: 0 },
  };
  const marked = items.map((run, i) => i).filter((i) => state.selected.has(items[i].id));
  const shapes = marked.map((i) => ({
    type: "rect",
    x0: 0.5,
    x1: widest + 0.5,
    y0: i - 0.5,
    y1: i + 0.5,
    line: { color: tint("--accent"), width: 2 },
  }));
  const ticks = few
    ? { tickvals: items.map((_, i) => i), ticktext: items.map((run) => plain(name(run))) }
    : { showticklabels: false, ticks: "" };
  element.style.maxWidth = "";
  plot(
    element,
    [trace],
    {
      shapes,
      height: Math.min(760, Math.max(170, 90 + items.length * (few ? 18 : 6))),
      xaxis: { title: { text: "latent dimension, by KL" }, showgrid: false, dtick: Math.ceil(widest / 16) },
      yaxis: {
        showgrid: false,
        title: { text: few ? "" : `${items.length} runs` },
        range: [-0.5, items.length - 0.5],
        ...ticks,
      },
      margin: { l: 60, r: 16, t: 8, b: 48 },
    },
    toggle,
  );
}

function drawVerdicts(table) {
  const rank = Object.keys(LEVELS);
  const items = current()
    .filter((run) => run.verdict)
    .toSorted((a, b) => rank.indexOf(a.verdict.level) - rank.indexOf(b.verdict.level));
  const counted = rank
    .map((level) => [level, items.filter((run) => run.verdict.level === level).length])
    .filter(([, n]) => n);
  byId("verdict-counts").replaceChildren(
    ...counted.map(([level, n]) => h("li", { class: `level level-${level}` }, `${n} ${LEVELS[level]}`)),
  );
  const aggregates = items.some((run) => run.aggregate);
  const rows = items.map((run) => {
    const pressed = String(state.selected.has(run.id));
    const choose = { type: "button", class: "quiet small", "aria-pressed": pressed, onclick: () => toggle(run.id) };
    return [
      h("td", { class: `level level-${run.verdict.level}` }, run.verdict.text),
      ...(aggregates ? [run.aggregate?.text ?? ""] : []),
      h("button", choose, named(run)),
    ];
  });
  const none = [[h("td", { class: "faint", colspan: 2 }, "No run here has a verdict.")]];
  const heads = ["verdict", ...(aggregates ? ["aggregate posterior"] : []), "run"];
  table.replaceChildren(...tableOf(heads, rows.length ? rows : none));
}
