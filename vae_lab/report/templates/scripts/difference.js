// The configurations of two runs beside each other.

function drawDifference(table) {
  const options = runs.map((run) => [run.id, run.name]);
  const [first, second] = chosen();
  const [bestA, bestB] = usualSettings();
  const pick = (id, ...wishes) => offer(id, options, ...wishes.filter(Boolean).map((run) => run.id));
  const a = runOf.get(pick("difference-a", first, bestA, runs[0]));
  const unlike = runs.find((run) => run !== a);
  const b = runOf.get(pick("difference-b", second, bestB === a ? null : bestB, unlike));
  offerTick("difference-all", false);
  if (!a || !b) return table.replaceChildren();
  const keys = [...new Set([...Object.keys(a.config), ...Object.keys(b.config)])].sort();
  const text = (run, key) => (key in run.config ? shown(run.config[key]) : "–");
  const rows = keys
    .map((key) => [key, text(a, key), text(b, key)])
    .filter(([, one, other]) => one !== other || byId("difference-all").checked)
    .map(([key, ...values]) => {
      const cells = [h("th", { scope: "row" }, h("code", {}, key)), ...values.map((value) => h("td", {}, value))];
      return h("tr", { class: values[0] === values[1] ? "same" : null }, ...cells);
    });
  const same = [h("tr", {}, h("td", { colspan: 3, class: "faint" }, "Their configurations are the same."))];
  table.replaceChildren(...tableOf(["key", "A", "B"], rows.length ? rows : same));
}
