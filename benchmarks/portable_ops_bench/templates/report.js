"use strict";
const root = document.documentElement, themeButton = document.getElementById("theme");
const data = JSON.parse(document.getElementById("data").textContent);
const state = new URLSearchParams(location.hash.slice(1));
const keep = () => history.replaceState(null, "", "#" + state);

// Rows come as columns, with every text once.
function unpacked({ texts, coded, columns }) {
  const names = Object.keys(columns), length = names.length ? columns[names[0]].length : 0;
  return Array.from({ length }, (_, i) =>
    Object.fromEntries(names.map(name => [name, coded.includes(name) ? texts[columns[name][i]] : columns[name][i]])));
}

const shared = unpacked(data.rows), views = new Map();
for (const spec of Object.values(data.charts)) spec.datasets = { ...spec.datasets, rows: shared };

// Controls: each sets the parameter of its name in every plot that has it, and the address.
const controls = [...document.querySelectorAll("[data-control]")];
const signal = (view, name, value) => { if (name in view.getState({ signals: () => true, data: () => false }).signals) view.signal(name, value); };
for (const control of controls) {
  const name = control.dataset.control;
  if ([...control.options].some(option => option.value === state.get(name))) control.value = state.get(name);
  control.addEventListener("change", () => {
    state.set(name, control.value); keep();
    for (const [id, view] of views) { signal(view, name, control.value); view.runAsync().then(() => { document.getElementById(id).dataset[name] = control.value; }); }
  });
}

function draw() {
  const theme = root.dataset.theme, dark = theme === "dark", ink = dark ? "#c9d3de" : "#33404e", line = dark ? "#2b3541" : "#e3e8ee";
  themeButton.textContent = dark ? "Light mode" : "Dark mode";
  themeButton.setAttribute("aria-pressed", dark);
  const config = { background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
    axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12, titleFontWeight: "normal" },
    legend: { labelColor: ink, titleColor: ink, titleFontWeight: "normal", symbolOpacity: 1 }, title: { color: ink },
    range: { category: dark
      ? ["#6cb6ff", "#ffb86b", "#7ee2b8", "#d7a6ff", "#ff8a9a", "#e6e08a", "#9fb3c8", "#f29fd0", "#8fe0f0", "#c0a080"]
      : ["#0b62a4", "#c25700", "#13795b", "#7a3ea8", "#b3261e", "#7d7400", "#5b6776", "#b0357f", "#007d94", "#7a5230"] } };
  for (const [id, spec] of Object.entries(data.charts)) {
    vegaEmbed("#" + id, spec, { actions: false, renderer: "svg", config }).then(({ view }) => {
      views.get(id)?.finalize();
      views.set(id, view);
      for (const control of controls) signal(view, control.dataset.control, control.value);
      return view.runAsync();
    }).then(() => { document.getElementById(id).dataset.drawn = theme; });
  }
}
themeButton.addEventListener("click", () => {
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  state.set("theme", root.dataset.theme); keep(); draw();
});
draw();

// The table of all results: sorted, filtered, and the code of each cell.
const body = document.querySelector("#results tbody"), rows = [...body.rows], filter = document.getElementById("filter");
const headers = [...document.querySelectorAll("#results thead th")];
function value(row, column) {
  const cell = row.cells[column], given = (cell.dataset.v ?? cell.textContent).trim();
  return given === "" ? null : given !== "" && !Number.isNaN(Number(given)) ? Number(given) : given;
}
function sort(column, descending) {
  headers.forEach((th, i) => i === column ? th.setAttribute("aria-sort", descending ? "descending" : "ascending") : th.removeAttribute("aria-sort"));
  const keys = new Map(rows.map(row => [row, value(row, column)]));
  rows.sort((a, b) => {
    const x = keys.get(a), y = keys.get(b);
    if (x === null || y === null) return (x === null) - (y === null);
    return (x < y ? -1 : x > y ? 1 : 0) * (descending ? -1 : 1);
  });
  body.append(...rows);
  state.set("sort", (descending ? "-" : "") + (column + 1)); keep();
}
function choose() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) { const text = row.textContent.toLowerCase(); row.hidden = !words.every(word => text.includes(word)); shown += !row.hidden; }
  document.getElementById("shown").textContent = shown + " of " + rows.length;
}
headers.forEach((th, column) => th.firstElementChild.addEventListener("click", () => sort(column, th.getAttribute("aria-sort") === "ascending")));
filter.addEventListener("input", () => { choose(); filter.value ? state.set("filter", filter.value) : state.delete("filter"); keep(); });
filter.value = state.get("filter") ?? "";
const sorted = parseInt(state.get("sort") ?? "");

const cells = unpacked(data.cells), dialog = document.getElementById("cell");
rows.forEach((row, i) => {
  const name = row.cells[0].textContent, button = document.createElement("button");
  button.type = "button"; button.textContent = name; button.title = "Code, and how to measure it again";
  button.addEventListener("click", () => {
    const text = column => row.cells[column].textContent.trim(), cell = cells[i];
    const filled = data.codes[name][cell.way + "|" + cell.start]
      .replaceAll("{input}", text(1)).replaceAll("{backend}", cell.backend).replaceAll("{dtype}", text(3));
    document.getElementById("cell-title").textContent = name + ", " + text(2);
    document.getElementById("cell-what").textContent = [text(1), text(3), text(4), text(5), text(6), text(15)].filter(Boolean).join(" · ");
    document.getElementById("cell-code").textContent = filled;
    document.getElementById("cell-rerun").textContent = cell.rerun;
    dialog.showModal();
  });
  row.cells[0].replaceChildren(button);
});
document.getElementById("cell-close").addEventListener("click", () => dialog.close());
if (sorted && headers[Math.abs(sorted) - 1]) sort(Math.abs(sorted) - 1, sorted < 0);
choose();
// A printed page shows all of it.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => { one.dataset.was = one.open ? "open" : ""; one.open = true; }));
addEventListener("afterprint", () => document.querySelectorAll("details").forEach(one => { one.open = one.dataset.was === "open"; }));
