// The rate-distortion plane.

const SYMBOLS = ["circle", "diamond", "square", "triangle-up", "triangle-down", "pentagon", "star"];

const distortionOf = (run, kind, split) => {
  const rec = valueOf(run, `${split}/rec`);
  return kind === "squared" ? (run.distortion ?? null) : isNumber(rec) ? -rec : null;
};

function drawPlane(element) {
  const splits = ["test", "val"].filter((split) =>
    runs.some((run) => isNumber(run.results?.[`${split}/kl`]) && isNumber(run.results?.[`${split}/rec`])),
  );
  if (!splits.length) return empty(element, "No run has a KL and a reconstruction term.");
  const split = offer(
    "plane-split",
    splits.map((name) => [name, name]),
  );
  const kinds = [
    ["squared", "squared error"],
    ["nats", "−E log p(x | z), nats"],
  ];
  const known = kinds.filter(
    ([kind]) => kind === "nats" || (split === "test" && runs.some((run) => isNumber(run.distortion))),
  );
  const kind = offer("plane-distortion", known);
  const color = offer(
    "plane-color",
    [...axes.map(({ key }) => [key, key]), ...quantities()],
    defaults?.color,
    usualAxes()[0],
  );
  byId("plane-log").closest("label").hidden = kind !== "squared";
  offerTick("plane-log", true);
  const rate = `${split}/kl`;
  const items = current().filter((run) => isNumber(valueOf(run, rate)) && isNumber(distortionOf(run, kind, split)));
  if (!items.length) return empty(element, "No run here has a KL and a reconstruction term.");

  const protocols = [...new Set(items.map((run) => protocolIn(run, rate)))].sort(compare);
  const note = byId("plane-note");
  const names = protocols.map((id, i) => `${SYMBOLS[i % SYMBOLS.length].split("-")[0]}: ${protocolText(id)}`);
  const missing = oracles.filter(
    (oracle) => oracle.note && oracle.runs.some((id) => items.some((run) => run.id === id)),
  );
  const notes = [
    protocols.length > 1
      ? "Scores under different protocols have different symbols and do not compare: they differ in " +
        `${disagreement(protocols)}. ${names.join("; ")}.`
      : null,
    ...missing.map((oracle) => `${oracle.label}: ${oracle.note}`),
  ].filter(Boolean);
  note.hidden = !notes.length;
  note.textContent = notes.join(" ");

  const colours = colouring(items, color);
  const any = items.some((run) => state.selected.has(run.id));
  const points = colours.groups.map((group) => ({
    type: "scatter",
    mode: "markers",
    name: plain(group.text),
    showlegend: Boolean(group.text),
    x: group.runs.map((run) => valueOf(run, rate)),
    y: group.runs.map((run) => distortionOf(run, kind, split)),
    customdata: group.runs.map((run) => run.id),
    hovertemplate: "%{text}<extra></extra>",
    text: group.runs.map((run) => hover(run, [`${split}/elbo`, rate, `${split}/rec`])),
    marker: {
      color: group.runs.map(colours.of),
      symbol: group.runs.map((run) => SYMBOLS[protocols.indexOf(protocolIn(run, rate)) % SYMBOLS.length]),
      size: group.runs.map((run) => (state.selected.has(run.id) ? 15 : 9)),
      opacity: group.runs.map((run) => (any && !state.selected.has(run.id) ? 0.3 : 0.9)),
      line: { color: tint("--ink"), width: group.runs.map((run) => (state.selected.has(run.id) ? 2 : 0)) },
    },
  }));
  const greatest = Math.max(...items.map((run) => valueOf(run, rate)));
  const lines = oracles
    .filter((oracle) => oracle.runs.some((id) => items.some((run) => run.id === id)))
    .map((oracle, i, all) => oracleLine(oracle, kind, greatest, i, all.length > 1 ? `, ${oracle.label}` : ""))
    .filter(Boolean);
  const log = kind === "squared" && byId("plane-log").checked;
  const bar = colours.bar ? [colourBar(colours.bar)] : [];
  plot(
    element,
    [...lines, ...points, ...bar],
    {
      xaxis: { title: { text: `rate: KL, ${split} (nats)` }, rangemode: "tozero" },
      yaxis: {
        title: { text: kind === "squared" ? "distortion: squared error" : "distortion (nats)" },
        ...(log
          ? logarithmic([...items.map((run) => distortionOf(run, kind, split)), ...lines.flatMap((line) => line.y)])
          : {}),
      },
      height: narrow() ? 420 : 520,
    },
    toggle,
  );
}

function oracleLine(oracle, kind, greatest, i, which) {
  const distortion = kind === "squared" ? oracle.distortion : oracle.rec?.map((rec) => -rec);
  if (!distortion?.length) return null;
  const within = oracle.rate.map((rate, j) => j).filter((j) => oracle.rate[j] <= 1.15 * greatest + 1);
  return {
    type: "scatter",
    mode: "lines",
    name: plain(`linear oracle${which}`),
    x: within.map((j) => oracle.rate[j]),
    y: within.map((j) => distortion[j]),
    line: { color: tint("--faint"), width: 1.5, dash: ["solid", "dash", "dot", "dashdot"][i % 4] },
    text: within.map((j) => plain(`linear oracle, ${oracle.label}: s2 = ${significant(oracle.s2?.[j], 4)}`)),
    hovertemplate: "%{text}<extra></extra>",
  };
}
