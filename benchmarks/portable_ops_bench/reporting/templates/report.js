"use strict";
const root = document.documentElement, themeButton = document.getElementById("theme");
const data = JSON.parse(document.getElementById("data").textContent);
const state = new URLSearchParams(location.hash.slice(1));
const atHome = new Set(data.at_home);
const keep = () => history.replaceState(null, "", "#" + state);

const body = document.querySelector("#results tbody"), rows = [...body.rows], filter = document.getElementById("filter");
const headers = [...document.querySelectorAll("#results thead th")];
const column = Object.fromEntries(headers.map((th, i) => [th.textContent.trim(), i]));
const text = (row, name) => row.cells[column[name]].textContent.trim();
const number = (row, name) => Number(row.cells[column[name]].dataset.v ?? (text(row, name) || NaN));

// What a row of the table is about; the usual conditions are not written there.
function cellOf(row) {
  const kinds = text(row, "kind").split(" "), among = (values, usual) => values.find(one => kinds.includes(one)) ?? usual;
  return { operation: text(row, "operation"), input: text(row, "input"), who: text(row, "where"), dtype: text(row, "dtype"),
    clock: among(["latency"], "throughput"), cache: among(["cold"], "warm"), start: among(["host"], "resident"),
    layout: among(["strided"], "contiguous"),
    ...data.contestants[text(row, "where")] };
}
const bounds = { b: "bytes", e: "exps", f: "flops" };
const cells = rows.map(cellOf);
const shared = rows.flatMap((row, i) => {
  const median = number(row, "median"), ulp = number(row, "ulp"), bytes = data.numbers.bytes[i], floor = number(row, "of floor");
  const peak = number(row, "memory"), ok = text(row, "status").startsWith("ok");
  if (!ok || Number.isNaN(median) || Number.isNaN(ulp)) return [];
  return [{ ...cells[i], median, kernel: text(row, "kernel"), time: text(row, "median"), ulp: Math.max(ulp, 0.01), bytes,
    size: data.numbers.size[i], low: data.numbers.low[i], high: data.numbers.high[i], rate: bytes / median / 1e9,
    floor: Number.isNaN(floor) ? null : floor, bound: bounds[data.numbers.bound[i]] ?? "not known",
    peak: Number.isNaN(peak) ? null : peak, peaktext: text(row, "memory"), doubt: text(row, "status").slice(4),
    front: Boolean(data.numbers.front[i] & (cells[i].start === "host" ? 2 : 1)) }].flatMap(one =>
      atHome.has(i) ? [one, { ...one, start: "host", front: Boolean(data.numbers.front[i] & 2) }] : [one]);
});
const views = new Map();
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
  label();
  const config = { background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
    axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12, titleFontWeight: "normal" },
    legend: { labelColor: ink, titleColor: ink, titleFontWeight: "normal", symbolOpacity: 1, symbolBaseFillColor: ink, symbolBaseStrokeColor: ink }, title: { color: ink },
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
const label = () => {
  const dark = root.dataset.theme === "dark";
  themeButton.textContent = dark ? "Light mode" : "Dark mode";
  themeButton.setAttribute("aria-pressed", dark);
};
themeButton.addEventListener("click", () => {
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  state.set("theme", root.dataset.theme); keep(); draw();
});
// The plots' library is kept compressed: it is most of the page.
async function unpack() {
  const bytes = Uint8Array.from(atob(document.getElementById("bundle").textContent), letter => letter.charCodeAt(0));
  const source = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  (0, eval)(source);
}

// The table of all results: sorted, filtered, and the code of each cell.
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

const dialog = document.getElementById("cell");
const filled = (template, cell) => template.replace(/\{(\w+)\}/g, (all, name) => cell[name] ?? all);
rows.forEach((row, i) => {
  const cell = cells[i], button = document.createElement("button"), about = ["input", "dtype", "kind", "kernel", "median", "status"];
  button.type = "button"; button.textContent = cell.operation; button.title = "Code, and how to measure it again";
  button.addEventListener("click", () => {
    const [size, rest] = cell.input.split(" "), input = rest === "elements" ? " --synthetic --sizes " + size : " --real";
    document.getElementById("cell-title").textContent = cell.operation + ", " + cell.who;
    document.getElementById("cell-what").textContent = about.map(name => text(row, name)).filter(Boolean).join(" · ");
    document.getElementById("cell-code").textContent = filled(data.codes[cell.operation][[cell.way, cell.start, cell.layout].join("|")], cell);
    document.getElementById("cell-rerun").textContent = filled(data.rerun, cell) + input;
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

label();
unpack().then(draw);

// The address keeps what is shown; a link to a section scrolls there and leaves the rest as it is.
document.querySelectorAll("nav a, .skip").forEach(link => link.addEventListener("click", event => {
  const target = document.getElementById(link.hash.slice(1));
  event.preventDefault();
  state.set("at", target.id); keep();
  target.tabIndex = -1; target.focus({ preventScroll: true }); target.scrollIntoView();
}));
addEventListener("hashchange", () => location.reload());
if (state.has("at")) document.getElementById(state.get("at"))?.scrollIntoView();
