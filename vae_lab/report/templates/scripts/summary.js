// The best run, or of runs whose scores do not compare, the best of each kind.

function drawSummary() {
  byId("compute").textContent = duration(payload.size.seconds);
  const key = principal();
  const best = byId("best");
  if (!key) {
    best.replaceChildren(h("p", { class: "faint" }, "No run has a score yet."));
    return;
  }
  const groups = byProtocol(runs, key);
  const cards = groups.map(([id, items]) => bestCard(key, id, items));
  best.replaceChildren();
  if (groups.length > 1) {
    const ids = groups.map(([id]) => id);
    const why =
      `The ${label(key)} was found under ${groups.length} protocols, which differ in ${disagreement(ids)}. ` +
      "Such scores are not ranked together.";
    best.append(h("p", { class: "note" }, why));
  }
  best.append(...cards.slice(0, 3));
  if (cards.length > 3) {
    const more = h("details", {}, h("summary", {}, `${cards.length - 3} more protocols`), ...cards.slice(3));
    best.append(more);
  }
}

function bestCard(key, id, items) {
  const [run] = ranked(items, key);
  const error = run.errors?.[key];
  const score = [fixed(valueOf(run, key), decimals([valueOf(run, key)]))];
  if (isNumber(error)) score.push(h("small", {}, ` ± ${uncertain(error)}`));
  if (metricOf.get(key).unit) score.push(h("small", {}, ` ${metricOf.get(key).unit}`));
  return h(
    "article",
    { class: "best", "data-best": run.id },
    h("h3", {}, `Best ${label(key)} of ${count(items.length, "run")}`),
    h("p", { class: "score" }, ...score),
    h(
      "p",
      {},
      named(run),
      " ",
      h("button", { type: "button", class: "quiet small", onclick: () => toggle(run.id) }, "Choose"),
    ),
    h("p", { class: "faint" }, protocolText(id)),
    run.verdict ? h("p", { class: `level level-${run.verdict.level}` }, run.verdict.text) : null,
    commandBox(run.command),
  );
}
