"use strict";
const report = JSON.parse(document.getElementById("report-data").textContent);
const narrow = () => window.innerWidth < 560;
let pinned = null;

function drawn(figure) {
  const layout = structuredClone(figure.layout);
  layout.autosize = true;
  if (narrow()) {
    const names = new Set(report.names);
    layout.annotations = layout.annotations.filter((note) => !names.has(note.name));
    layout.margin = { ...layout.margin, l: 48, r: 12 };
    for (const axis of ["xaxis", "yaxis"]) {
      if (layout[axis].tickvals && layout[axis].tickvals.length > 4) layout[axis].tickfont = { size: 10, color: "#667085" };
    }
  }
  return layout;
}

function show(panel, index) {
  const view = panel.views[index];
  const card = document.getElementById("panel-" + panel.key);
  card.querySelector(".takeaway").textContent = view.takeaway;
  card.querySelectorAll(".views button").forEach((b, i) => b.setAttribute("aria-pressed", String(i === index)));
  const plot = card.querySelector(".plot");
  const config = { responsive: true, displayModeBar: false };
  Plotly.react(plot, structuredClone(view.figure.data), drawn(view.figure), config).then(() => {
    plot.dataset.drawn = "true";
    if (pinned) highlight(pinned, [plot]);
  });
}

function highlight(name, plots = document.querySelectorAll(".plot")) {
  for (const plot of plots) {
    if (!plot.data) continue;
    const shade = (other) => (!name || !report.names.includes(other) || other === name ? 1 : 0.13);
    Plotly.restyle(plot, { opacity: plot.data.map((trace) => shade(trace.name)) });
    const notes = (plot.layout.annotations || []).map((note) => ({ ...note, opacity: shade(note.name) }));
    Plotly.relayout(plot, { annotations: notes });
  }
}

function sortTable(header) {
  const table = header.closest("table");
  const column = header.cellIndex;
  const body = table.tBodies[0];
  const before = header.getAttribute("aria-sort");
  const first = header.dataset.first;
  const next = before === null ? first : before === "ascending" ? "descending" : "ascending";
  table.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", next);
  const sign = next === "ascending" ? 1 : -1;
  const key = (row) => row.cells[column].dataset.value;
  const rows = Array.from(body.rows).sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const [p, q] = [Number(x), Number(y)];
    return sign * (Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y) : p - q);
  });
  body.append(...rows);
}

for (const panel of report.panels) {
  document.querySelectorAll("#panel-" + panel.key + " .views button")
    .forEach((button, index) => button.addEventListener("click", () => show(panel, index)));
  show(panel, 0);
}
document.querySelectorAll("th").forEach((th) => th.querySelector("button").addEventListener("click", () => sortTable(th)));
document.querySelectorAll(".chips button").forEach((chip) => chip.addEventListener("click", () => {
  pinned = pinned === chip.dataset.name ? null : chip.dataset.name;
  document.querySelectorAll(".chips button").forEach((c) => c.setAttribute("aria-pressed", String(c.dataset.name === pinned)));
  highlight(pinned);
}));
let wasNarrow = narrow();
window.addEventListener("resize", () => {
  if (narrow() === wasNarrow) return;
  wasNarrow = narrow();
  for (const panel of report.panels) {
    const buttons = Array.from(document.querySelectorAll("#panel-" + panel.key + " .views button"));
    show(panel, Math.max(0, buttons.findIndex((b) => b.getAttribute("aria-pressed") === "true")));
  }
});
