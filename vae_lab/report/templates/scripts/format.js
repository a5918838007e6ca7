// Text for numbers, and elements for text.

const byId = (id) => document.getElementById(id);

/** An element: `on<event>` are listeners, other properties attributes, children nodes or text, never HTML. */
function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for a part of an SVG picture. */
function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const minus = (text) => text.replaceAll("-", "−");

/** A number by its significant digits. */
function significant(value, digits = 6) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7))
    return minus(value.toExponential(digits - 1).replace(/\.?0+e\+?/, "e"));
  return minus(String(Number(value.toPrecision(digits))));
}

/** A standard error: two digits, also where the second is 0. */
const uncertain = (error) => (error >= 1e-4 && error < 99.5 ? error.toPrecision(2) : significant(error, 2));

/** How many decimals give the greatest of the values `digits` significant ones. */
function decimals(values, digits = 6) {
  const greatest = Math.max(0, ...values.filter(isNumber).map(Math.abs));
  if (values.every((value) => !isNumber(value) || Number.isInteger(value))) return 0;
  return Math.min(6, Math.max(0, digits - 1 - Math.floor(Math.log10(greatest || 1))));
}

const fixed = (value, places) => (isNumber(value) ? minus(value.toFixed(places)) : "–");

/** A mean and its standard error, to the error's second digit. */
function plusMinus(mean, error) {
  if (!isNumber(mean)) return "–";
  if (!isNumber(error)) return significant(mean, 5);
  return within(error, mean, error).join(" ± ");
}

/** Numbers to the second digit of what they are uncertain by. */
const within = (uncertainty, ...values) => {
  const places = uncertainty > 0 ? Math.min(6, Math.max(0, 1 - Math.floor(Math.log10(uncertainty)))) : 3;
  return values.map((value) => fixed(value, places));
};

/** A value of a configuration, as it is typed. */
function shown(value) {
  if (value === null || value === undefined) return "null";
  if (typeof value === "number") return String(Number(value.toPrecision(6)));
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 100) return `${Number(seconds.toPrecision(2))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.round((minutes % 1440) / 60)} h`;
}

const count = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

/** A table's head and body: rows of texts or nodes; the columns from `numbers` on are set to the right. */
function tableOf(heads, rows, numbers = heads.length) {
  const kind = (i) => (i >= numbers ? "number" : null);
  const cell = (content, i) =>
    content instanceof Element && content.matches("td, th") ? content : h("td", { class: kind(i) }, content);
  return [
    h("thead", {}, h("tr", {}, ...heads.map((text, i) => h("th", { scope: "col", class: kind(i) }, text)))),
    h("tbody", {}, ...rows.map((row) => (row instanceof Element ? row : h("tr", {}, ...row.map(cell))))),
  ];
}

/** Text for Plotly, which takes some HTML for markup. */
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** A command, and a button that copies it. */
const commandBox = (text) =>
  h("div", { class: "command" }, h("code", {}, text), h("button", { type: "button", "data-copy": text }, "Copy"));

/** Puts text on the clipboard; also where a page from a file may not use the browser's own interface. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { class: "unseen", readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
