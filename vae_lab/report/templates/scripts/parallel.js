// Parallel coordinates, as SVG: a line for each run, which can be chosen; an axis, along which one can filter.

/** Where a value stands on a column of the picture, from 0 (foot) to 1, and back. */
function columnScale(items, key) {
  const values = distinct(items, key);
  if (!values.every(isNumber)) {
    const place = new Map(values.map((value, i) => [value, values.length > 1 ? i / (values.length - 1) : 0.5]));
    return {
      key,
      at: (value) => place.get(value),
      back: null,
      ticks: values.slice(0, 12).map((value) => [place.get(value), shown(value)]),
    };
  }
  const log = axisOf.get(key)?.log && values[0] > 0;
  const [f, inverse] = log ? [Math.log10, (value) => 10 ** value] : [(value) => value, (value) => value];
  const [low, high] = [f(values[0]), f(values.at(-1))];
  const at = (value) => (high > low ? (f(value) - low) / (high - low) : 0.5);
  const ticks =
    values.length <= 8 && axisOf.has(key)
      ? values
      : log
        ? [0, 0.25, 0.5, 0.75, 1].map((share) => inverse(low + share * (high - low)))
        : round(low, high);
  return {
    key,
    at,
    back: (share) => inverse(low + share * (high - low)),
    ticks: ticks.map((value) => [at(value), significant(value, 4)]),
  };
}

function drawParallel(element) {
  const headlines = measured
    .filter((metric) => metric.headline)
    .slice(0, 6)
    .map(({ key }) => key);
  const keys = [
    ...swept.map(({ key }) => key),
    ...headlines,
    ...(extras.includes("active") && runs.some((run) => isNumber(run.active)) ? ["active"] : []),
  ];
  const color = offer(
    "parallel-color",
    [...swept.map(({ key }) => [key, key]), ...quantities()],
    defaults?.color,
    principal(),
    usualAxes()[0],
  );
  const items = current().filter((run) => keys.some((key) => isNumber(valueOf(run, key)) && !axisOf.has(key)));
  if (!items.length || keys.length < 2) return empty(element, "No run here has a score.");
  const [height, head, foot] = [340, 44, 16];
  const width = Math.max(element.clientWidth, keys.length * 104);
  const margin = 56;
  const x = (i) => margin + (i * (width - 2 * margin)) / (keys.length - 1);
  const y = (share) => head + (1 - share) * (height - head - foot);
  const scales = keys.map((key) => columnScale(items, key));
  const colours = colouring(items, color);
  const any = items.some((run) => state.selected.has(run.id));

  const lines = items.map((run) => {
    let pen = "M"; // lifted where a value is missing
    const path = scales
      .map((scale, i) => {
        const value = valueOf(run, scale.key);
        const place = value === null ? undefined : scale.at(value);
        const step = place === undefined ? "" : `${pen}${x(i).toFixed(1)},${y(place).toFixed(1)}`;
        pen = place === undefined ? "M" : "L";
        return step;
      })
      .join("");
    const told = svg(
      "title",
      {},
      [named(run), ...headlines.map((key) => `${label(key)}: ${significant(valueOf(run, key))}`)].join("\n"),
    );
    const chosenClass = state.selected.has(run.id) ? "chosen" : null;
    return svg(
      "g",
      { class: chosenClass, "data-run": run.id, onclick: () => toggle(run.id) },
      svg("path", { class: "line", d: path, stroke: colours.of(run) }),
      svg("path", { class: "hit", d: path }, told),
    );
  });
  const columns = scales.map((scale, i) => parallelAxis(scale, x(i), y, head, height - foot, width));
  lines.sort((a, b) => a.classList.contains("chosen") - b.classList.contains("chosen"));
  const title = `Parallel coordinates of ${count(items.length, "run")} over ${keys.map(label).join(", ")}`;
  element.replaceChildren(
    svg(
      "svg",
      { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title },
      svg("g", { class: any ? "fading" : null }, ...lines),
      ...columns,
    ),
  );
}

function parallelAxis(scale, x, y, top, bottom, width) {
  const ticks = scale.ticks.map(([share, text]) =>
    svg("text", { class: "tick-label", x: x + 7, y: y(share) + 4 }, text),
  );
  const [name, split] = metricOf.has(scale.key)
    ? [metricOf.get(scale.key).label, metricOf.get(scale.key).split]
    : [label(scale.key), ""];
  const shift = Math.min(0, width - x - 3.6 * name.length); // the last name stays in the picture
  const group = svg(
    "g",
    {},
    svg("text", { x: x + shift, y: 14, "text-anchor": "middle" }, name),
    svg("text", { x: x + shift, y: 29, "text-anchor": "middle", class: "tick-label" }, split ?? ""),
    svg("line", { class: "axis", x1: x, x2: x, y1: top, y2: bottom }),
    ...ticks,
  );
  if (!scale.back) return group;
  const band = svg("rect", { class: "band", x: x - 6, width: 12, y: 0, height: 0 });
  const grip = svg("rect", { class: "brush", x: x - 12, width: 24, y: top - 6, height: bottom - top + 12 });
  const inside = (event) =>
    Math.min(bottom, Math.max(top, event.clientY - group.ownerSVGElement.getBoundingClientRect().top));
  let start = null;
  grip.onpointerdown = (event) => {
    start = inside(event);
    grip.setPointerCapture(event.pointerId);
  };
  grip.onpointermove = (event) => {
    if (start === null) return;
    const [a, b] = [start, inside(event)].sort((one, other) => one - other);
    band.setAttribute("y", a);
    band.setAttribute("height", b - a);
  };
  grip.onpointerup = (event) => {
    const [a, b] = [start, inside(event)].sort((one, other) => one - other);
    start = null;
    const share = (place) => (bottom - place) / (bottom - top);
    const slack = 1e-9; // so that the end of the axis itself is within
    const range = [scale.back(share(b) - slack), scale.back(share(a) + slack)].map((value) =>
      Number(value.toPrecision(4)),
    );
    setFilter(scale.key, b - a < 4 ? "" : range.join(".."));
  };
  group.append(band, grip);
  return group;
}
