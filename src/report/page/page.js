"use strict";
// Sorting by a head: numbers by their value, words as words; what has no value stands last.
for (const table of document.querySelectorAll("#table table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, at) => head.querySelector("button").addEventListener("click", () => {
    const number = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : number;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[at];
      return number ? parseFloat(cell.dataset.value) : cell.textContent.trim();
    };
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (number) {
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return down ? y - x : x - y;
      }
      return down ? y.localeCompare(x) : x.localeCompare(y);
    };
    const body = table.tBodies[0];
    [...body.rows].sort(order).forEach((row) => body.append(row));
  }));
}
// A number leads to its runs: they open.
const open = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") {
    target.open = true;
    target.scrollIntoView();
    target.querySelector("summary").focus({ preventScroll: true });
  }
};
addEventListener("hashchange", open);
open();
// A page of a run that trains is read again, unless its reader does not want it.
const reload = document.getElementById("reload");
if (reload) {
  reload.checked = sessionStorage.getItem("reload") !== "no";
  reload.addEventListener("change", () => sessionStorage.setItem("reload", reload.checked ? "yes" : "no"));
  setInterval(() => { if (reload.checked) location.reload(); }, 10000);
}
