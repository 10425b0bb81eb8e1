"use strict";

// Tables: a click on a column's name sorts by it, numbers by value, empty cells last.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.querySelectorAll("th[aria-sort]")];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [sortKey(row.cells[column]), row]);
      rows.sort(([a], [b]) => compare(a, b, up ? 1 : -1));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// A table wider than its frame says so.
function markWide() {
  for (const frame of document.querySelectorAll(".scroll")) {
    frame.classList.toggle("wide", frame.scrollWidth > frame.clientWidth);
  }
}
markWide();
window.addEventListener("resize", markWide);
document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", markWide));

function sortKey(cell) {
  const text = cell.textContent.trim();
  if ("value" in cell.dataset) return Number(cell.dataset.value);
  return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
}

function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  if (typeof a === "number") return sign * (a - b);
  return sign * a.localeCompare(b, "en", { numeric: true });
}

// Drawings: the pointer or the arrow keys pick a point, and a tip tells its values.
const tip = document.getElementById("tip");

function follow(chart) {
  const points = [...chart.querySelectorAll(".point")];
  const shown = () => points.filter((point) => !point.closest(".off"));
  const place = (point) => [Number(point.dataset.x), Number(point.dataset.y)];
  if (points.length) points[0].setAttribute("tabindex", "0");

  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const scale = chart.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale;
    const y = (event.clientY - box.top) * scale;
    const distance = (point) => Math.hypot(place(point)[0] - x, place(point)[1] - y);
    const near = shown().sort((a, b) => distance(a) - distance(b))[0];
    if (near && distance(near) < 60 * Math.max(1, scale)) show(near);
    else hide();
  });
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("focusout", hide);
  chart.addEventListener("focusin", (event) => {
    if (event.target.classList.contains("point")) show(event.target);
  });
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hide();
    const here = shown();
    const index = here.indexOf(document.activeElement);
    if (!step || index < 0) return;
    event.preventDefault();
    const next = here[(index + step + here.length) % here.length];
    points.forEach((point) => point.setAttribute("tabindex", point === next ? "0" : "-1"));
    next.focus();
  });

  function show(point) {
    hide();
    point.classList.add("near");
    const column = shown().filter((other) => other.dataset.column === point.dataset.column);
    column.sort((a, b) => place(a)[1] - place(b)[1]);
    for (const other of column) {
      const line = document.createElement("div");
      line.textContent = other.getAttribute("aria-label");
      if (other === point) line.className = "here";
      tip.append(line);
    }
    tip.hidden = false;
    const box = point.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const left = Math.min(Math.max(4, box.right + 10), window.innerWidth - size.width - 4);
    const above = box.top - size.height - 10;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 10}px`;
  }
}

document.querySelectorAll("svg.chart").forEach(follow);

function hide() {
  tip.hidden = true;
  tip.replaceChildren();
  document.querySelectorAll(".near").forEach((point) => point.classList.remove("near"));
}

for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    for (const group of button.closest("figure").querySelectorAll(".series")) {
      if (group.dataset.series === button.dataset.series) group.classList.toggle("off", !on);
    }
  });
}

// Colors: as the system has them, or one of the two, which is remembered where that is allowed.
const theme = document.getElementById("theme");
const themes = { "": "as the system", light: "light", dark: "dark" };
let chosen = "";
try {
  chosen = localStorage.getItem("fewshot-theme") || "";
} catch {
  chosen = "";
}
paint();
theme.addEventListener("click", () => {
  const names = Object.keys(themes);
  chosen = names[(names.indexOf(chosen) + 1) % names.length];
  try {
    localStorage.setItem("fewshot-theme", chosen);
  } catch {
    // a browser that keeps nothing for local files forgets it with the page
  }
  paint();
});

function paint() {
  if (!(chosen in themes)) chosen = "";
  document.documentElement.dataset.theme = chosen;
  theme.textContent = `Colors: ${themes[chosen]}`;
}

window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((part) => part.setAttribute("open", ""));
});
