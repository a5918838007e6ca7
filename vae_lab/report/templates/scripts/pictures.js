// Pictures of the chosen runs, side by side.

const ALL = "all";

function drawPictures(grid) {
  const pictured = current().filter((run) => Object.keys(run.pictures ?? {}).length);
  const kinds = [...new Set(pictured.flatMap((run) => Object.keys(run.pictures)))];
  const kind = offer("pictures-kind", [[ALL, "all"], ...kinds.map((name) => [name, name.replaceAll("_", " ")])]);
  const wanted = chosen().filter((run) => Object.keys(run.pictures ?? {}).length);
  const items = wanted.length ? wanted.slice(0, 12) : usualPictures(pictured);
  byId("pictures-says").textContent = !pictured.length
    ? "No run here has pictures."
    : wanted.length
      ? `The chosen runs${wanted.length > 12 ? ", the first 12" : ""}.`
      : "No run with pictures is chosen: the best settings are shown. Choose runs in the table or in any chart.";
  grid.replaceChildren(
    ...items.map((run) => {
      const names = Object.keys(run.pictures).filter((name) => kind === ALL || name === kind);
      const figures = names.map((name) =>
        h(
          "figure",
          {},
          h("img", { src: run.pictures[name], alt: `${name} of ${named(run)}`, loading: "lazy" }),
          h("figcaption", {}, name.replaceAll("_", " ")),
        ),
      );
      const key = principal();
      const score = key && isNumber(valueOf(run, key)) ? `${label(key)}: ${significant(valueOf(run, key))}` : run.state;
      return h(
        "article",
        { "data-run": run.id },
        h("h3", {}, named(run)),
        h("p", { class: "faint number" }, score),
        ...figures,
      );
    }),
  );
}

/** The best run of each of the best three settings, of the protocol that most runs share. */
function usualPictures(items) {
  const key = principal();
  const best = ranked(comparable(items, key), key);
  const order = best.length ? best : items;
  return [...groupBy(order, settingOf).values()].map(([run]) => run).slice(0, 3);
}
