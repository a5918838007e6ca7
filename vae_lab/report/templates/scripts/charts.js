// Charts: Plotly in the page's colours, drawn when they come into view.

/** Plotly is in the page as text, and becomes a program with the first chart. */
function plotly() {
  if (!window.Plotly) document.head.append(h("script", {}, byId("plotly").textContent));
  return window.Plotly;
}

const drawings = new Map(); // element -> {draw, near, stale}
const seen = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      drawings.get(target).near = isIntersecting;
      if (isIntersecting) redraw(target);
    }
  },
  { rootMargin: "400px" },
);

/** Calls `draw` when the element is near the window, and after each change. */
function lazily(id, draw) {
  const element = byId(id);
  drawings.set(element, { draw, near: false, stale: true });
  seen.observe(element);
}

function redraw(element) {
  const drawing = drawings.get(element);
  if (!drawing.stale) return;
  drawing.stale = false;
  drawing.draw(element);
}

let waiting = false;

/** Draws what is not in view, one by one, when there is nothing else to do: so that nothing moves under the reader. */
function drawAhead() {
  const idle = window.requestIdleCallback ?? setTimeout;
  const next = [...drawings].find(([, drawing]) => drawing.stale)?.[0];
  document.documentElement.toggleAttribute("data-drawn", !next);
  if (!next || waiting) return;
  waiting = true;
  const work = () => {
    waiting = false;
    redraw(next);
    drawAhead();
  };
  idle(work, { timeout: 500 }); // some browsers are never idle
}

/** Draws what is near the window anew, the rest when it comes there; at once if `all`. */
function refresh(all = false) {
  for (const [element, drawing] of drawings) {
    drawing.stale = true;
    if (drawing.near || all) redraw(element);
  }
  drawAhead();
}
whenChanged(() => {
  document.documentElement.removeAttribute("data-drawn");
  requestAnimationFrame(() => refresh());
});

// --- colours

const VIRIDIS = [
  "#440154",
  "#482878",
  "#3e4a89",
  "#31688e",
  "#26828e",
  "#1f9e89",
  "#35b779",
  "#6ece58",
  "#b5de2b",
  "#fde725",
];
const SCALE = VIRIDIS.map((colour, i) => [i / (VIRIDIS.length - 1), colour]);
const OKABE_ITO = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c"];

function viridis(share) {
  const place = Math.min(1, Math.max(0, share)) * (VIRIDIS.length - 1);
  const low = Math.min(VIRIDIS.length - 2, Math.floor(place));
  const channel = (colour, i) => parseInt(colour.slice(1 + 2 * i, 3 + 2 * i), 16);
  const mixed = [0, 1, 2].map((i) => {
    const [a, b] = [channel(VIRIDIS[low], i), channel(VIRIDIS[low + 1], i)];
    return Math.round(a + (b - a) * (place - low));
  });
  return `rgb(${mixed.join(",")})`;
}

const dark = () => tint("--paper").match(/\d+/)[0] < 128;

/** A colour, let through by as much as `share` says. */
function translucent(colour, share) {
  const hex = colour
    .match(/^#(..)(..)(..)$/)
    ?.slice(1)
    .map((pair) => parseInt(pair, 16));
  return `rgba(${(hex ?? colour.match(/\d+/g).slice(0, 3)).join(",")},${share})`;
}

/** A colour of the page's style, as it is now. */
function tint(name) {
  const probe = byId("tint") ?? document.body.appendChild(h("span", { id: "tint", hidden: true }));
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

/**
 * How runs are coloured by a key: a few values each have their colour, along viridis where they are numbers; many
 * numbers share a scale. Returns {of: run -> colour, groups: [{value, text, colour, runs}], bar}.
 */
function colouring(items, key) {
  if (!key)
    return {
      of: () => tint("--accent"),
      groups: [{ value: null, text: "", colour: tint("--accent"), runs: items }],
      bar: null,
    };
  const values = distinct(items, key);
  const numbers = values.length > 0 && values.every(isNumber);
  const [from, to] = dark() ? [0.34, 1] : [0, 0.88]; // what stands out from the paper
  const grey = tint("--edge");
  if (numbers && values.length > 8) {
    const log = axisOf.get(key)?.log && values[0] > 0;
    const f = log ? Math.log10 : (value) => value;
    const [low, high] = [f(values[0]), f(values.at(-1))];
    const share = (value) => from + ((to - from) * (f(value) - low)) / (high - low);
    const of = (run) => (isNumber(valueOf(run, key)) ? viridis(share(valueOf(run, key))) : grey);
    const scale = [0, 0.25, 0.5, 0.75, 1].map((place) => [place, viridis(from + (to - from) * place)]);
    return {
      of,
      groups: [{ value: null, text: "", colour: null, runs: items }],
      bar: { low, high, log, scale, title: label(key) },
    };
  }
  const colour = (i) =>
    numbers
      ? viridis(from + (to - from) * (values.length > 1 ? i / (values.length - 1) : 0.4))
      : OKABE_ITO[i % OKABE_ITO.length];
  const colours = new Map(values.map((value, i) => [value, colour(i)]));
  const of = (run) => colours.get(valueOf(run, key)) ?? grey;
  const groups = [...values, null].map((value) => ({
    value,
    text: `${label(key)} = ${shown(value)}`,
    colour: colours.get(value) ?? grey,
    runs: items.filter((run) => valueOf(run, key) === value),
  }));
  return { of, groups: groups.filter((group) => group.runs.length), bar: null };
}

/** Above a scale, and clear of its first tick. */
const barTitle = (text) => ({ text: text ? `${plain(text)}<br> ` : "", side: "top", font: { size: 12 } });

/** The scale of a colouring, as an invisible trace that carries it. */
function colourBar({ low, high, log, scale, title }) {
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((place) => low + (high - low) * place);
  return {
    type: "scatter",
    mode: "markers",
    x: [null],
    y: [null],
    showlegend: false,
    hoverinfo: "skip",
    marker: {
      color: [low],
      cmin: low,
      cmax: high,
      colorscale: scale,
      showscale: true,
      colorbar: {
        title: barTitle(title),
        thickness: 12,
        outlinewidth: 0,
        len: 0.9,
        tickvals: ticks,
        ticktext: ticks.map((value) => significant(log ? 10 ** value : value, 2)),
      },
    },
  };
}

// --- Plotly

const narrow = () => window.innerWidth < 760;

/** An axis of a chart: logarithmic with the values themselves as ticks where they are few, or a category. */
function scaleOf(key, values) {
  const axis = axisOf.get(key);
  const numbers = values.length > 0 && values.every(isNumber);
  if (!axis) return { title: { text: plain(labelled(key)) } };
  if (!numbers)
    return {
      type: "category",
      title: { text: plain(label(key)) },
      categoryorder: "array",
      categoryarray: values.map(shown),
    };
  const ticks = values.length <= 12 ? { tickvals: values, ticktext: values.map((value) => significant(value, 4)) } : {};
  return { type: axis.log && values[0] > 0 ? "log" : "linear", title: { text: plain(label(key)) }, ...ticks };
}

/** About five round numbers between two. */
function round(low, high) {
  if (low === high) return [low];
  const power = 10 ** Math.floor(Math.log10((high - low) / 4));
  const step = power * [1, 2, 5, 10].find((factor) => (high - low) / (factor * power) <= 6);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) =>
    Number(((first + i) * step).toPrecision(12)),
  );
}

/** A logarithmic axis, with few ticks: round numbers within a power of ten, else 1, 2 and 5, or the powers of ten. */
function logarithmic(values) {
  const [least, greatest] = [Math.min(...values), Math.max(...values)];
  if (greatest < 1.6 * least) {
    const ticks = round(least / 1.5, greatest * 1.5).filter((value) => value > 0);
    return { type: "log", tickvals: ticks, ticktext: ticks.map((value) => significant(value, 4)) };
  }
  const [low, high] = [least, greatest].map(Math.log10);
  const steps = high - low > 3 ? [1] : high - low > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  const powers = Array.from({ length: Math.ceil(high) - Math.floor(low) + 3 }, (_, i) => Math.floor(low) - 1 + i);
  const ticks = powers.flatMap((power) => steps.map((factor) => Number((factor * 10 ** power).toPrecision(2))));
  return { type: "log", tickvals: ticks, ticktext: ticks.map((value) => significant(value, 2)) };
}

function layoutOf(layout) {
  const [ink, faint, line, paper, surface] = ["--ink", "--faint", "--line", "--paper", "--surface"].map(tint);
  const axis = {
    gridcolor: line,
    zerolinecolor: line,
    linecolor: line,
    tickcolor: line,
    tickfont: { color: faint },
    automargin: true,
    zeroline: false,
    ticks: "outside",
    ticklen: 4,
    title: { font: { color: ink, size: 13 }, standoff: 10 },
  };
  const full = {
    autosize: true,
    height: narrow() ? 360 : 440,
    margin: { l: 60, r: 16, t: 16, b: 48 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
    hoverlabel: {
      bgcolor: surface,
      bordercolor: tint("--edge"),
      font: { color: ink, size: 12 },
      align: "left",
      namelength: -1,
    },
    hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    legend: narrow()
      ? { orientation: "h", y: -0.24, yanchor: "top", x: 0, font: { size: 12 } }
      : { font: { size: 12 }, x: 1.01, y: 1 },
    ...layout,
  };
  for (const name of Object.keys(full).filter((key) => /^[xy]axis\d*$/.test(key))) {
    full[name] = { ...axis, ...full[name], title: { ...axis.title, ...full[name].title } };
  }
  return full;
}

const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };

/** Draws, or draws anew; `pick` is called with what a click hits: a point's customdata. */
function plot(element, traces, layout, pick) {
  const first = !element.classList.contains("js-plotly-plot");
  if (first) element.replaceChildren();
  const done = plotly().react(element, traces, layoutOf(layout), CONFIG);
  if (first) {
    element.on("plotly_click", ({ points }) => {
      const data = points[0]?.customdata;
      if (data !== undefined && data !== null) element.pick?.(data);
    });
  }
  element.pick = pick;
  return done;
}

/** Says instead of a chart why there is none. */
function empty(element, text) {
  if (element.classList.contains("js-plotly-plot")) plotly().purge(element);
  element.classList.remove("js-plotly-plot");
  element.removeAttribute("style");
  element.replaceChildren(h("p", { class: "empty" }, text));
}

/** What hovering tells of a run. */
function hover(run, keys) {
  const lines = keys.map((key) => `${label(key)}: ${plusMinus(valueOf(run, key), run.errors?.[key])}`);
  return plain([named(run), ...lines].join("\n")).replaceAll("\n", "<br>");
}
