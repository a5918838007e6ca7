// Paired comparisons: two settings over common seeds, and all settings against the best.

const scalar = (value) => JSON.stringify(value ?? null);

/** The best setting, and the next one of the same protocol. */
function usualSettings() {
  const key = principal();
  const settings = rankedSettings(comparable(runs, key), key);
  return [settings[0]?.runs[0], settings[1]?.runs[0] ?? settings[0]?.runs[0]];
}

function rankedSettings(items, key) {
  const sign = metricOf.get(key)?.better === "min" ? 1 : -1;
  return [...groupBy(items, settingOf).values()]
    .map((group) => ({ runs: group, ...summarise(group.map((run) => valueOf(run, key))) }))
    .sort((a, b) => sign * (a.mean - b.mean));
}

function wireStatistics() {
  const usual = usualSettings();
  for (const [side, i] of [
    ["a", 0],
    ["b", 1],
  ]) {
    const selects = swept.map(({ key }) => {
      const id = `${side}.${key}`;
      return h("label", { class: "choice", for: id }, h("span", {}, key), h("select", { id }));
    });
    byId(`setting-${side}`).append(...selects);
    for (const { key } of swept) {
      const options = distinct(runs, key).map((value) => [scalar(value), shown(value)]);
      const id = `${side}.${key}`;
      offer(id, [...options, [ANY, ANY]], scalar(usual[i]?.axes[key]));
      byId(id).onchange = ({ target }) => {
        const other = byId(`${side === "a" ? "b" : "a"}.${key}`);
        if (target.value === ANY || other.value === ANY) other.value = target.value; // a pair is over both, or neither
        state.choices.set(id, target.value).set(other.id, other.value);
        changed();
      };
    }
  }
  if (!swept.length)
    document.querySelector(".settings").replaceChildren(h("p", { class: "faint" }, "Only seeds were swept."));
}

/** The runs of a side, by what pairs them: the seed, and what is left to be any. */
function side(name, metric) {
  const said = swept.map(({ key }) => [key, choiceOf(`${name}.${key}`)]);
  const fixedTo = said.filter(([, value]) => value !== ANY);
  const free = axes.filter(({ key, seed }) => seed || said.some(([other, value]) => other === key && value === ANY));
  const items = scored(current(), metric).filter((run) =>
    fixedTo.every(([key, value]) => scalar(run.axes[key]) === value),
  );
  return new Map(items.map((run) => [JSON.stringify(free.map(({ key }) => run.axes[key] ?? null)), run]));
}

function drawComparison() {
  const metric = offer("compare-metric", quantities(), principal());
  const holder = byId("comparison");
  drawRanking(metric);
  if (!swept.length || !metric) return holder.replaceChildren();
  const [a, b] = [side("a", metric), side("b", metric)];
  const keys = [...a.keys()].filter((key) => b.has(key) && a.get(key) !== b.get(key));
  const pairs = keys.map((key) => [a.get(key), b.get(key)]);
  if (!pairs.length) {
    const same = [...a.values()].some((run) => [...b.values()].includes(run));
    const why = same
      ? "A and B are the same runs."
      : !a.size || !b.size
        ? `No run of ${a.size ? "B" : "A"} has this score.`
        : "A and B have no seed in common.";
    return holder.replaceChildren(h("p", { class: "answer" }, why));
  }
  const protocols = metricOf.has(metric) ? [...new Set(pairs.flat().map((run) => protocolIn(run, metric)))] : [];
  if (protocols.length > 1) {
    const why =
      "These scores do not compare: they were found under different protocols, which differ in " +
      `${disagreement(protocols)}.`;
    return holder.replaceChildren(h("p", { class: "note", "data-refused": true }, why));
  }
  const differences = pairs.map(([one, other]) => valueOf(one, metric) - valueOf(other, metric));
  const result = paired(differences);
  const answer = h(
    "p",
    {
      class: "answer",
      "data-mean": result.mean,
      "data-low": result.half === null ? null : result.low,
      "data-high": result.half === null ? null : result.high,
      "data-n": result.n,
    },
    answerText(result, metric),
  );
  const places = decimals(pairs.flat().map((run) => valueOf(run, metric)));
  const free = axes.filter(({ key, seed }) => seed || choiceOf(`a.${key}`) === ANY);
  const name = (run) => free.map(({ key }) => `${short(key)}=${shown(run.axes[key])}`).join(" ");
  const rows = pairs.slice(0, 100).map(([one, other], i) => {
    const numbers = [valueOf(one, metric), valueOf(other, metric), differences[i]];
    return [name(one) || "1", ...numbers.map((value) => fixed(value, places))];
  });
  const table = h("table", {}, ...tableOf(["pair", "A", "B", "A − B"], rows, 1));
  const details = h(
    "details",
    { class: "pairs", open: pairs.length <= 6 },
    h("summary", {}, count(pairs.length, "pair")),
    table,
  );
  const protocol = metricOf.has(metric) ? h("p", { class: "faint" }, protocolText(protocols[0])) : null;
  holder.replaceChildren(...[answer, protocol, intervalPicture(differences, result), details].filter(Boolean));
}

function answerText({ n, mean, half, low, high }, metric) {
  const { better, unit } = metricOf.get(metric) ?? {};
  const nats = unit ? ` ${unit}` : "";
  const of = count(n, "pair");
  if (half === null) return `A − B = ${significant(mean, 4)}${nats}. One pair has no interval.`;
  if (low <= 0 && high >= 0) {
    const [middle, from, to] = within(half, mean, low, high);
    const claim = "These runs do not tell A and B apart";
    return `${claim}: A − B = ${middle}${nats}, 95 % interval ${from} to ${to}, n = ${of}.`;
  }
  const ahead = mean > 0 ? "A" : "B";
  const winner = !better ? null : mean > 0 === (better === "max") ? "A" : "B";
  const [least, by, most] = within(half, ...[low, mean, high].map(Math.abs).sort((x, y) => x - y));
  const claim = winner ? `${winner} is better by` : `${ahead} is greater by`;
  return `${claim} ${by}${nats}: 95 % interval ${least} to ${most}, n = ${of}.`;
}

/** The differences as points, their mean's interval as a bar, and zero. */
function intervalPicture(differences, { mean, half, low, high }) {
  const all = [...differences, 0, ...(half === null ? [] : [low, high])];
  const [from, to] = [Math.min(...all), Math.max(...all)];
  const x = (value) => (to > from ? 20 + (600 * (value - from)) / (to - from) : 320);
  const bar =
    half === null
      ? []
      : [
          svg("line", {
            x1: x(low),
            x2: x(high),
            y1: 26,
            y2: 26,
            stroke: "var(--accent)",
            "stroke-width": 4,
            "stroke-linecap": "round",
            opacity: 0.55,
          }),
        ];
  return svg(
    "svg",
    {
      class: "interval",
      viewBox: "0 0 640 66",
      role: "img",
      "aria-label": "The differences and the interval of their mean",
    },
    svg("line", { x1: 20, x2: 620, y1: 40, y2: 40, stroke: "var(--line)" }),
    svg("line", { x1: x(0), x2: x(0), y1: 8, y2: 46, stroke: "var(--edge)", "stroke-dasharray": "3 3" }),
    svg("text", { x: x(0), y: 60, "text-anchor": "middle" }, "0"),
    ...bar,
    ...differences.map((value) => svg("circle", { cx: x(value), cy: 40, r: 4, fill: "var(--ink)", opacity: 0.55 })),
    svg("circle", { cx: x(mean), cy: 26, r: 6, fill: "var(--accent)" }),
  );
}

function drawRanking(metric) {
  const holder = byId("ranking");
  const groups = byProtocol(current(), metric);
  if (!groups.length || !swept.length)
    return holder.replaceChildren(h("p", { class: "faint" }, "No run here has this score."));
  const parts = groups.map(([id, items]) => rankingTable(metric, id, items));
  const ids = groups.map(([id]) => id);
  const why = `Each protocol has its own ranking, since scores do not compare that differ in ${disagreement(ids)}.`;
  holder.replaceChildren(...(groups.length > 1 ? [h("p", { class: "note" }, why)] : []), ...parts.flat());
}

/** A paired difference, its interval, and its number of pairs, as text. */
function told(result) {
  if (!result) return ["", "", ""];
  if (result.half === null) return [significant(result.mean, 4), "–", `${result.n}`];
  const [mean, low, high] = within(result.half, result.mean, result.low, result.high);
  return [mean, `${low} to ${high}`, `${result.n}`];
}

function rankingTable(metric, id, items) {
  const settings = rankedSettings(items, metric);
  const seeds = (run) => JSON.stringify(axes.filter(({ seed }) => seed).map(({ key }) => run.axes[key] ?? null));
  const best = new Map(settings[0].runs.map((run) => [seeds(run), valueOf(run, metric)]));
  const rows = settings.slice(0, 15).map(({ runs: its, mean, error, n }, i) => {
    const shared = i ? its.filter((run) => best.has(seeds(run))) : [];
    const differences = shared.map((run) => valueOf(run, metric) - best.get(seeds(run)));
    const result = differences.length ? paired(differences) : null;
    return [settingNamed(its[0]), plusMinus(mean, error), `${n}`, ...told(result)];
  });
  const heads = ["setting", label(metric), "n", "difference", "95 % interval", "pairs"];
  const table = h("div", { class: "frame low" }, h("table", {}, ...tableOf(heads, rows, 1)));
  const title = metricOf.has(metric) ? [h("p", { class: "faint" }, protocolText(id))] : [];
  const more = settings.length > 15 ? [h("p", { class: "faint" }, `and ${settings.length - 15} more settings`)] : [];
  return [...title, table, ...more];
}
