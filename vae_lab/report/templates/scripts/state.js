// What the reader has chosen: runs, filters, the order of the table, the charts' axes. It is kept in the address, so
// that a view can be linked.

const state = {
  selected: new Set(), // ids
  filters: new Map(), // column -> condition, as typed
  search: "",
  sort: null, // {key, down}
  choices: new Map(), // id of a control -> its value
};

const listeners = [];

/** Calls `update` after every change. */
const whenChanged = (update) => listeners.push(update);

function changed() {
  for (const update of listeners) update();
  try {
    history.replaceState(null, "", `#${written()}`);
  } catch {
    // a browser that lets no file change its address
  }
}

function written() {
  const words = new URLSearchParams();
  if (state.selected.size) words.set("runs", [...state.selected].join(","));
  if (state.search) words.set("search", state.search);
  if (state.sort) words.set("sort", `${state.sort.down ? "-" : ""}${state.sort.key}`);
  for (const [key, condition] of state.filters) words.set(`where.${key}`, condition);
  for (const [id, value] of state.choices) words.set(id, value);
  return words.toString() || "summary";
}

function readAddress() {
  if (!location.hash.includes("=")) return;
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (name === "runs")
      value
        .split(",")
        .filter((id) => runOf.has(id))
        .forEach((id) => state.selected.add(id));
    else if (name === "search") state.search = value;
    else if (name === "sort") state.sort = { key: value.replace(/^-/, ""), down: value.startsWith("-") };
    else if (name.startsWith("where.")) state.filters.set(name.slice(6), value);
    else state.choices.set(name, value);
  }
}

// --- selection

function toggle(id) {
  if (!state.selected.delete(id)) state.selected.add(id);
  selectionChanged();
}

/** Nobody's choice of two configurations outlives it: those of the chosen runs are shown. */
function selectionChanged() {
  state.choices.delete("difference-a");
  state.choices.delete("difference-b");
  changed();
}

/** Chooses these runs too, or if all of them are chosen, none of them. */
function toggleAll(ids) {
  const all = ids.every((id) => state.selected.has(id));
  for (const id of ids) all ? state.selected.delete(id) : state.selected.add(id);
  selectionChanged();
}

const chosen = () => [...state.selected].map((id) => runOf.get(id));

// --- filters

/** The condition that a text says, as a test of a value; null where it says none. */
function condition(text) {
  const typed = text.trim().replaceAll("−", "-");
  const range = typed.match(/^(.+?)\.\.(.+)$/);
  if (range && range.slice(1).every((word) => isNumber(Number(word)))) {
    const [low, high] = range.slice(1).map(Number);
    return (value) => isNumber(value) && low <= value && value <= high;
  }
  const [, sign, rest] = typed.match(/^(<=|>=|!=|=|<|>)?\s*(.*)$/);
  if (sign && "<>".includes(sign[0])) {
    const limit = Number(rest);
    if (rest === "" || !isNumber(limit)) return null;
    const tests = { "<": (v) => v < limit, "<=": (v) => v <= limit, ">": (v) => v > limit, ">=": (v) => v >= limit };
    return (value) => isNumber(value) && tests[sign](value);
  }
  const words = rest
    .split(",")
    .map((word) => word.trim())
    .filter(Boolean);
  if (!words.length) return null;
  const same = (value, word) =>
    isNumber(value) && isNumber(Number(word))
      ? value === Number(word)
      : sign
        ? shown(value) === word
        : !isNumber(value) && shown(value).toLowerCase().includes(word.toLowerCase());
  const any = (value) => words.some((word) => same(value, word));
  return sign === "!=" ? (value) => !any(value) : any;
}

/** The runs that meet every filter. */
function visible() {
  const tests = [...state.filters].map(([key, text]) => [key, condition(text)]).filter(([, test]) => test);
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  return runs.filter(
    (run) =>
      tests.every(([key, test]) => test(valueOf(run, key))) &&
      words.every((word) => `${run.name} ${named(run)} ${run.state} ${run.command}`.toLowerCase().includes(word)),
  );
}

let passing = null; // what `visible` found, until the next change
const current = () => (passing ??= visible());
whenChanged(() => (passing = null));

function setFilter(key, text) {
  text ? state.filters.set(key, text) : state.filters.delete(key);
  changed();
}

// --- controls

/**
 * Fills a list of choices with [value, label] pairs; the first of `preferred` that is there is chosen, unless the
 * reader has. A list with less than two is hidden.
 */
function offer(id, options, ...preferred) {
  const select = byId(id);
  const values = options.map(([value]) => value);
  const wish = [state.choices.get(id), ...preferred, values[0]].find((value) => values.includes(value));
  select.replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
  if (wish !== undefined) select.value = wish;
  select.closest("label").hidden = options.length < 2;
  select.onchange = () => {
    state.choices.set(id, select.value);
    changed();
  };
  return select.value;
}

const choiceOf = (id) => byId(id).value;

/** The same for a box that is ticked or not. */
function offerTick(id, preferred) {
  const box = byId(id);
  box.checked = state.choices.has(id) ? state.choices.get(id) === "true" : preferred;
  box.onchange = () => {
    state.choices.set(id, String(box.checked));
    changed();
  };
}
