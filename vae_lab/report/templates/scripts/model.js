// The runs, and what can be computed of them.

const payload = JSON.parse(byId("payload").textContent);
const { metrics, oracles, defaults } = payload;
const swept = payload.axes.filter((axis) => !axis.seed);
const axes = [...swept, ...payload.axes.filter((axis) => axis.seed)];
const runs = payload.runs.toSorted(
  (a, b) => axes.map(({ key }) => compare(a.axes[key], b.axes[key])).find((sign) => sign) ?? 0,
);
const runOf = new Map(runs.map((run) => [run.id, run]));
const axisOf = new Map(axes.map((axis) => [axis.key, axis]));
const metricOf = new Map(metrics.map((metric) => [metric.key, metric]));
const protocolOf = new Map(payload.protocols.map((protocol) => [protocol.id, protocol]));

/** The key's last part, where no other axis has the same. */
function short(key) {
  const axis = axisOf.get(key);
  if (axis?.label) return axis.label;
  const last = key.split(".").at(-1);
  return axes.some((other) => other.key !== key && other.key.split(".").at(-1) === last) ? key : last;
}

/** A metric, or an axis, by name: "test ELBO". */
function label(key) {
  const metric = metricOf.get(key);
  if (metric) return metric.split ? `${metric.split} ${metric.label}` : metric.label;
  return OTHERS[key] ?? (axisOf.has(key) ? short(key) : key);
}

/** With its unit, for a chart's axis. */
const labelled = (key) => (metricOf.get(key)?.unit ? `${label(key)} (${metricOf.get(key).unit})` : label(key));

const OTHERS = { active: "active units", seconds: "seconds", name: "run", state: "state" };

/** What is known of a run under this key: an axis, a metric, or one of OTHERS. */
function valueOf(run, key) {
  if (axisOf.has(key)) return run.axes[key] ?? null;
  if (metricOf.has(key)) return run.results?.[key] ?? null;
  return run[key] ?? null;
}

/** A run in short: the values in which it differs. */
const named = (run) =>
  axes
    .filter(({ key }) => key in run.axes)
    .map(({ key }) => `${short(key)}=${shown(run.axes[key])}`)
    .join(" ") || run.name;

/** A run's setting is all but its seed. */
const settingOf = (run) => JSON.stringify(swept.map(({ key }) => run.axes[key] ?? null));
const settingNamed = (run) =>
  swept
    .filter(({ key }) => key in run.axes)
    .map(({ key }) => `${short(key)}=${shown(run.axes[key])}`)
    .join(" ") || run.name;

function groupBy(items, key) {
  const groups = new Map();
  for (const item of items) {
    const name = key(item);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(item);
  }
  return groups;
}

/** Numbers in their order, then texts in theirs. */
function compare(a, b) {
  if (isNumber(a) && isNumber(b)) return a - b;
  if (isNumber(a) !== isNumber(b)) return isNumber(a) ? -1 : 1;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

const distinct = (items, key) =>
  [...new Set(items.map((run) => valueOf(run, key)).filter((v) => v !== null))].sort(compare);

// --- statistics

/** n, the mean, and its standard error, which one value does not have. */
function summarise(values) {
  const n = values.length;
  const mean = values.reduce((sum, value) => sum + value, 0) / n;
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1);
  return { n, mean, error: n > 1 ? Math.sqrt(variance / n) : null };
}

/** Student's 97.5 % quantile. */
const t975 = (freedom) => payload.t975[freedom - 1] ?? 1.96;

/** The mean difference of pairs, and its 95 % interval, which needs two of them. */
function paired(differences) {
  const { n, mean, error } = summarise(differences);
  const half = n > 1 ? t975(n - 1) * error : null;
  return { n, mean, error, half, low: mean - half, high: mean + half };
}

// --- the guard: scores under different protocols do not compare

const protocolIn = (run, key) => run.protocol?.[key] ?? null;
const scored = (items, key) => items.filter((run) => isNumber(valueOf(run, key)));

/** Those that have a score, by protocol: pairs of its id and the runs, the most runs first. */
function byProtocol(items, key) {
  const groups = groupBy(scored(items, key), (run) => (metricOf.has(key) ? protocolIn(run, key) : null));
  return [...groups].toSorted(([, some], [, others]) => others.length - some.length);
}

/** The runs of the protocol that most have, by a metric. */
const comparable = (items, key) => (key ? byProtocol(items, key)[0]?.[1] : null) ?? [];

const protocolText = (id) => protocolOf.get(id)?.text ?? "protocol not recorded";

/** In which facts protocols differ: "preprocessing (raw, binarised)". */
function disagreement(ids) {
  const facts = ids.map((id) => protocolOf.get(id)?.facts ?? {});
  const names = [...new Set(facts.flatMap(Object.keys))];
  const differing = names.map((name) => [name, [...new Set(facts.map((fact) => shown(fact[name])))]]);
  const found = differing
    .filter(([, values]) => values.length > 1)
    .map(([name, values]) => `${name} (${values.join(", ")})`);
  return found.join("; ") || "what was recorded of them";
}

/** Runs from the best to the worst by a metric; meaningful among runs of one protocol. */
function ranked(items, key) {
  const sign = metricOf.get(key)?.better === "min" ? 1 : -1;
  return scored(items, key).toSorted((a, b) => sign * (valueOf(a, key) - valueOf(b, key)));
}

/** The metric by which runs are best: the command's, else the first headline that has a direction. */
function principal() {
  const known = (key) => metricOf.get(key)?.better && runs.some((run) => isNumber(valueOf(run, key)));
  return (
    [defaults?.y, "test/elbo", ...metrics.filter((m) => m.headline).map((m) => m.key), ...metricOf.keys()].find(
      known,
    ) ?? null
  );
}

/** The metrics that some run has, headlines first. */
const measured = metrics
  .filter(({ key }) => runs.some((run) => isNumber(valueOf(run, key))))
  .toSorted((a, b) => Boolean(b.headline) - Boolean(a.headline));
