// The table of runs: sorted, filtered, and where runs are chosen by hand.

const LETTERS = "abcdefghijklmnopqrstuvwxyz";

/** What is not among the metrics; the active units are where the test has counted them. */
const extras = measured.some(({ key }) => key === "test/active_units") ? ["seconds"] : ["active", "seconds"];

/** The columns there can be; those that a reader has not asked for otherwise are shown if `usual`. */
const columns = [
  { key: "name", usual: true, fixed: true },
  { key: "state", usual: runs.some((run) => run.state !== "finished") },
  ...axes.map((axis) => ({ key: axis.key, number: axis.number, usual: true })),
  ...measured.map((metric) => ({ key: metric.key, number: true, metric, usual: Boolean(metric.headline) })),
  ...extras.filter((key) => runs.some((run) => isNumber(run[key]))).map((key) => ({ key, number: true, usual: true })),
];

const shownColumns = () =>
  columns.filter((column) => {
    const said = state.choices.get(`column.${column.key}`);
    return column.fixed || (said === undefined ? column.usual : said === "true");
  });

/** A protocol's letter in the table. */
const used = [...new Set(runs.flatMap((run) => Object.values(run.protocol ?? {})))].sort(compare);
const letter = (id) => LETTERS[used.indexOf(id)] ?? (used.includes(id) ? String(used.indexOf(id) + 1) : "?");

/** How many protocols a column of all runs has. */
const protocolsIn = (key) => new Set(scored(runs, key).map((run) => protocolIn(run, key))).size;

function drawHead() {
  const heads = shownColumns().map((column) => {
    const sorted = state.sort?.key === column.key ? (state.sort.down ? "descending" : "ascending") : "none";
    const text = column.metric ? [column.metric.label, h("small", {}, column.metric.split ?? "")] : [label(column.key)];
    const sort = h(
      "button",
      { type: "button", class: "sort", title: column.key, onclick: () => sortBy(column.key) },
      ...text,
    );
    const filter = h("input", {
      type: "text",
      placeholder: "any",
      "aria-label": `Condition on ${label(column.key)}`,
      autocomplete: "off",
      spellcheck: "false",
      "data-filter": column.key,
      value: state.filters.get(column.key) ?? "",
      oninput: ({ target }) => setFilter(column.key, target.value),
    });
    return h("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": sorted }, sort, filter);
  });
  byId("runs").replaceChildren(h("thead", {}, h("tr", {}, ...heads, h("th", { scope: "col" }, "command"))), h("tbody"));
}

function sortBy(key) {
  const better = metricOf.get(key)?.better;
  const first = better === "max"; // the best comes first
  const again = state.sort?.key === key;
  state.sort = again ? (state.sort.down === first ? { key, down: !first } : null) : { key, down: first };
  changed();
}

/** The visible runs in order; where a column mixes protocols, by protocol first. Those without a value come last. */
function inOrder() {
  if (!state.sort) return current();
  const { key, down } = state.sort;
  const apart = metricOf.has(key) && protocolsIn(key) > 1;
  return current().toSorted((a, b) => {
    const [x, y] = [valueOf(a, key), valueOf(b, key)];
    if (x === null || y === null) return (x === null) - (y === null);
    return (apart && compare(protocolIn(a, key), protocolIn(b, key))) || (down ? compare(y, x) : compare(x, y));
  });
}

function drawRows() {
  const rows = inOrder();
  const shown = shownColumns().map((column) => {
    const values = rows.map((run) => valueOf(run, column.key));
    const best = new Set();
    if (column.metric?.better)
      for (const [, items] of byProtocol(rows, column.key)) best.add(ranked(items, column.key)[0].id);
    return { ...column, places: decimals(values), best, mixed: column.metric ? protocolsIn(column.key) > 1 : false };
  });
  const body = byId("runs").tBodies[0];
  const active = document.activeElement?.closest?.("#runs tbody tr")?.dataset.run;
  const elements = [];
  const apart = state.sort && shown.find((column) => column.key === state.sort.key)?.mixed;
  let protocol; // of the rows at hand
  for (const run of rows) {
    if (apart) {
      const here = valueOf(run, state.sort.key) === null ? "none" : protocolIn(run, state.sort.key);
      if (here !== protocol) elements.push(apartRow(here, shown.length + 1));
      protocol = here;
    }
    elements.push(tableRow(run, shown));
  }
  body.replaceChildren(...elements);
  const focused = body.querySelector(active ? `tr[data-run="${CSS.escape(active)}"]` : "tr[data-run]");
  if (focused) focused.tabIndex = 0;
  if (active) focused?.focus({ preventScroll: true });
  if (!rows.length)
    body.append(h("tr", { class: "apart" }, h("td", { colspan: shown.length + 1 }, "No run meets these conditions.")));
  drawLegend(shown);
  byId("shown").textContent =
    rows.length === runs.length ? count(runs.length, "run") : `${rows.length} of ${count(runs.length, "run")}`;
  byId("unfilter").hidden = !state.filters.size && !state.search;
  for (const input of byId("runs").querySelectorAll("[data-filter]")) {
    const text = state.filters.get(input.dataset.filter) ?? "";
    if (input.value !== text) input.value = text;
    input.setAttribute("aria-invalid", String(text !== "" && condition(text) === null));
  }
  if (byId("search").value !== state.search) byId("search").value = state.search;
}

function apartRow(id, width) {
  const why = `${protocolText(id)}: ranked apart, since scores under different protocols do not compare`;
  return h("tr", { class: "apart" }, h("td", { colspan: width }, id === "none" ? "no score" : `${letter(id)}  ${why}`));
}

function tableRow(run, shown) {
  const cells = shown.map((column) => tableCell(run, column));
  const copyable = h(
    "button",
    { type: "button", class: "small", tabindex: -1, "data-copy": run.command, title: run.command },
    "Copy",
  );
  copyable.setAttribute("aria-label", `Copy the command of ${run.name}`);
  return h(
    "tr",
    { "data-run": run.id, tabindex: -1, "aria-selected": String(state.selected.has(run.id)) },
    ...cells,
    h("td", {}, copyable),
  );
}

function tableCell(run, { key, number, metric, places, best, mixed }) {
  const value = valueOf(run, key);
  if (key === "name") return h("td", { title: run.folder }, run.name);
  if (key === "state") return h("td", { class: `state-${run.state}` }, run.state);
  if (!isNumber(value)) return h("td", { class: number ? "number" : null }, value === null ? "" : shownText(value));
  if (!metric)
    return h(
      "td",
      { class: number ? "number" : null, title: value },
      key === "seconds" ? fixed(value, Math.min(1, places)) : significant(value),
    );
  const error = run.errors?.[key];
  const cell = h("td", { class: `number${best.has(run.id) ? " top" : ""}`, "data-value": value }, fixed(value, places));
  cell.title = `${value}${isNumber(error) ? ` ± ${error}` : ""}; ${protocolText(protocolIn(run, key))}`;
  if (isNumber(error)) cell.append(h("small", {}, ` ± ${uncertain(error)}`));
  if (mixed) cell.append(h("sup", { class: "protocol" }, letter(protocolIn(run, key))));
  return cell;
}

const shownText = (value) => shown(value);

/** Under which protocols the columns' numbers were found. */
function drawLegend(shown) {
  const lines = used.map((id) => {
    const names = shown.filter(
      ({ metric, key }) =>
        metric && current().some((run) => isNumber(valueOf(run, key)) && protocolIn(run, key) === id),
    );
    if (!names.length) return null;
    return h(
      "p",
      {},
      h("strong", {}, `${letter(id)} `),
      `${protocolText(id)}: ${names.map(({ key }) => label(key)).join("; ")}`,
    );
  });
  const bold = shown.some(({ best }) => best.size)
    ? h("p", {}, "Bold: the best of its column and protocol. ± is the standard error over data.")
    : null;
  byId("legend").replaceChildren(...[bold, ...lines].filter(Boolean));
}

/** All that is known of the chosen runs. */
function drawDetails() {
  const items = chosen();
  const cards = items.slice(0, 6).map((run) => {
    const facts = [
      ["state", run.state],
      ["folder", run.folder],
      ["started", run.started],
      ["time", isNumber(run.seconds) ? duration(run.seconds) : null],
    ];
    if (run.active !== null && run.active !== undefined) {
      facts.push([
        "active units",
        `${run.active}${isNumber(run.predicted) ? `; the linear oracle predicts ${run.predicted}` : ""}`,
      ]);
    }
    if (run.error) facts.push(["error", run.error]);
    const results = measured
      .map(({ key }) => key)
      .filter((key) => isNumber(run.results?.[key]))
      .map((key) => {
        const error = run.errors?.[key];
        const exact = `${minus(String(run.results[key]))}${isNumber(error) ? ` ± ${error}` : ""}`;
        return [label(key), `${exact}${key in (run.protocol ?? {}) ? `  (${letter(run.protocol[key])})` : ""}`];
      });
    const pairs = [...facts.filter(([, value]) => value), ...results];
    return h(
      "article",
      {},
      h("h3", {}, run.name),
      run.verdict ? h("p", { class: `level level-${run.verdict.level}` }, run.verdict.text) : null,
      commandBox(run.command),
      h("dl", {}, ...pairs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    );
  });
  const more = items.length > 6 ? [h("p", { class: "faint" }, `and ${items.length - 6} more`)] : [];
  byId("details").replaceChildren(
    ...(cards.length ? [h("h3", {}, "Chosen runs"), h("div", { class: "details" }, ...cards), ...more] : []),
  );
}

function wireTable() {
  drawHead();
  byId("columns").append(
    ...columns
      .filter((column) => !column.fixed)
      .map((column) => {
        const box = h("input", { type: "checkbox" });
        box.checked = shownColumns().includes(column);
        box.onchange = () => {
          state.choices.set(`column.${column.key}`, String(box.checked));
          drawHead();
          changed();
        };
        return h("label", { class: "tick" }, box, h("span", {}, label(column.key)));
      }),
  );
  byId("search").oninput = ({ target }) => {
    state.search = target.value;
    changed();
  };
  byId("unfilter").onclick = () => {
    state.filters.clear();
    state.search = "";
    changed();
  };
  const table = byId("runs");
  const rowAt = (target) => target.closest("tr[data-run]");
  table.onclick = ({ target }) => {
    if (!target.closest("button, input") && rowAt(target) && !String(getSelection())) toggle(rowAt(target).dataset.run);
  };
  table.onkeydown = (event) => {
    const row = rowAt(event.target);
    if (!row || event.target.closest("button")) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      const rows = [...table.querySelectorAll("tr[data-run]")];
      const next = rows[rows.indexOf(row) + step];
      if (next) {
        row.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      }
    } else if (event.key === "Enter" || event.key === " ") {
      toggle(row.dataset.run);
    } else {
      return;
    }
    event.preventDefault();
  };
  whenChanged(() => {
    for (const [i, column] of shownColumns().entries()) {
      const sorted = state.sort?.key === column.key ? (state.sort.down ? "descending" : "ascending") : "none";
      table.tHead.rows[0].cells[i].setAttribute("aria-sort", sorted);
    }
    drawRows();
    drawDetails();
  });
  drawRows();
  drawDetails();
}
