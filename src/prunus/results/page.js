// Glue: what the page's own controls are set to reaches the charts and the table.
const all = (selector) => [...document.querySelectorAll(selector)];
const specs = JSON.parse(document.getElementById("specs").textContent);
const views = [];

function hidden() {
  return all("[data-curve]")
    .filter((entry) => entry.hidden || !entry.querySelector("input").checked)
    .map((entry) => entry.dataset.curve);
}

function show() {
  const wanted = all("select").filter((filter) => filter.value);
  for (const element of all("[data-told]")) {
    const told = JSON.parse(element.dataset.told);
    element.hidden = wanted.some(({ name, value }) => Object.hasOwn(told, name) && told[name] !== value);
  }
  for (const view of views) view.signal("hidden", hidden()).runAsync();
  window.dispatchEvent(new Event("resize")); // charts that were hidden have no width
  document.getElementById("count").textContent = all("#lines tr").filter((line) => !line.hidden).length;
}

function sort(button) {
  const header = button.closest("th");
  const down = header.ariaSort === "ascending";
  all("th").forEach((other) => (other.ariaSort = null));
  header.ariaSort = down ? "descending" : "ascending";
  const text = (line) => line.cells[header.cellIndex].textContent;
  const compare = (a, b) =>
    !a || !b ? !a - !b : (down ? -1 : 1) * (a - b || a.localeCompare(b, undefined, { numeric: true }));
  const body = document.getElementById("lines");
  body.append(...[...body.rows].sort((a, b) => compare(text(a), text(b))));
}

// Drawn when they come into sight: there may be many
const watch = new IntersectionObserver(
  (seen) =>
    seen
      .filter((one) => one.isIntersecting)
      .forEach(async ({ target }) => {
        watch.unobserve(target);
        const options = { actions: false, ast: true, renderer: "svg", tooltip: { disableDefaultStyle: true } };
        const { view } = await vegaEmbed(target, specs[target.dataset.chart], options);
        views.push(view);
        view.signal("hidden", hidden()).runAsync();
      }),
  { rootMargin: "400px" },
);

all("[data-chart]").forEach((place) => watch.observe(place));
all("select, [data-curve] input").forEach((control) => control.addEventListener("change", show));
all("th button").forEach((button) => button.addEventListener("click", () => sort(button)));
all("button[data-all]").forEach((button) =>
  button.addEventListener("click", () => {
    all("[data-curve] input").forEach((input) => (input.checked = button.dataset.all === "on"));
    show();
  }),
);
show();
