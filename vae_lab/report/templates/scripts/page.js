// The page as a whole: its theme, where one is in it, what is copied, the chosen runs at its foot; and its start.

function wireTheme() {
  const button = byId("theme");
  const root = document.documentElement;
  const kept = (value) => {
    try {
      if (value) localStorage.setItem("vae_lab-theme", value);
      return localStorage.getItem("vae_lab-theme");
    } catch {
      return value; // where files may keep nothing
    }
  };
  const show = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `${button.textContent} theme`);
  };
  if (kept()) root.dataset.theme = kept();
  button.onclick = () => {
    root.dataset.theme = dark() ? "light" : "dark";
    kept(root.dataset.theme);
    show();
    refresh();
  };
  matchMedia("(prefers-color-scheme: dark)").onchange = () => {
    show();
    refresh();
  };
  show();
}

function wireNavigation() {
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        for (const [id, link] of links)
          id === target.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
      }
    },
    { rootMargin: "-20% 0px -75% 0px" },
  );
  for (const section of document.querySelectorAll("main section")) watch.observe(section);
  for (const link of links.values()) {
    link.onclick = (event) => {
      // without taking the place of the view in the address
      event.preventDefault();
      const section = byId(link.hash.slice(1));
      section.scrollIntoView();
      section.tabIndex = -1;
      section.focus({ preventScroll: true });
    };
  }
}

function wireCopies() {
  document.addEventListener("click", async ({ target }) => {
    const button = target.closest("[data-copy]");
    if (!button) return;
    const done = await copy(button.dataset.copy);
    button.textContent = done ? "Copied" : "Not copied";
    byId("said").textContent = button.textContent;
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

function drawTray() {
  const items = chosen();
  const tray = byId("tray");
  tray.hidden = !items.length;
  const chips = items.slice(0, 12).map((run) =>
    h(
      "li",
      {},
      h(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-label": `Remove ${run.name}`,
          title: run.name,
          onclick: () => toggle(run.id),
        },
        named(run),
      ),
    ),
  );
  const clear = h(
    "button",
    {
      type: "button",
      class: "quiet small",
      onclick: () => {
        state.selected.clear();
        selectionChanged();
      },
    },
    "Clear",
  );
  const jump = (id, text) =>
    h(
      "a",
      {
        href: `#${id}`,
        class: "jump",
        onclick: (event) => {
          event.preventDefault();
          byId(id).scrollIntoView();
        },
      },
      text,
    );
  tray.replaceChildren(
    h("strong", {}, `${items.length} chosen`),
    h("ul", {}, ...chips),
    jump("details", "Details"),
    jump("pictures", "Pictures"),
    ...(items.length > 1 ? [jump("difference", "Configurations")] : []),
    clear,
  );
}

function start() {
  readAddress();
  tint("--ink");
  wireTheme();
  wireNavigation();
  wireCopies();
  drawSummary();
  wireTable();
  wireStatistics();
  drawTray();
  whenChanged(drawTray);
  lazily("heat-chart", drawHeat);
  lazily("plane-chart", drawPlane);
  lazily("curves-chart", drawCurves);
  lazily("parallel-chart", drawParallel);
  lazily("active-chart", drawActive);
  lazily("kl-chart", drawKl);
  lazily("collapse", () => drawVerdicts(byId("verdicts")));
  lazily("pictures", () => drawPictures(byId("pictures-grid")));
  lazily("statistics", drawComparison);
  lazily("difference", () => drawDifference(byId("configs")));
  window.addEventListener("beforeprint", () => refresh(true));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) requestAnimationFrame(() => refresh());
    width = window.innerWidth;
  });
  drawAhead();
  document.documentElement.dataset.ready = Math.round(performance.now());
}

start();
