"use strict";

// Sort a table by the column of a button; a second press turns the order around. Cells without a value stay last.
document.querySelectorAll("th button").forEach((button) => {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const table = head.closest("table");
    const body = table.tBodies[0];
    const column = head.cellIndex;
    const first = head.classList.contains("number") ? "descending" : "ascending";
    const turned = { ascending: "descending", descending: "ascending" };
    const order = turned[head.getAttribute("aria-sort")] || first;
    table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);

    const value = (row) => {
      const text = row.cells[column].dataset.value;
      if (text === undefined) return null;
      return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
    };
    const compare = (a, b) =>
      typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en");
    const rows = Array.from(body.rows);
    const known = rows.filter((row) => value(row) !== null);
    known.sort((a, b) => (order === "ascending" ? 1 : -1) * compare(value(a), value(b)));
    body.append(...known, ...rows.filter((row) => value(row) === null));
  });
});

// Paper shows everything: what is folded up is opened while printing.
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = Array.from(document.querySelectorAll("details:not([open])"));
  opened.forEach((part) => { part.open = true; });
});
window.addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));
