// Tables that a click on a header sorts, that a search field filters, and whose rows beyond the first ones are folded away.
const FOLD = 30; // rows of a table until all are wanted

// {table, rows, search, more: the button that shows all rows, isOpen, sortedBy: a header or null, isReversed}
const tables = [...document.querySelectorAll("table[data-list]")].map((table) => {
  const more = document.querySelector(`[data-more="${table.id}"]`), search = document.querySelector(`[data-search="${table.id}"]`);
  const rows = [...table.querySelectorAll("tr")].filter((row) => row.querySelector("td"));
  return { table, rows, search, more, isOpen: false, sortedBy: null, isReversed: false };
});

// A table's rows in order, of which the search and the fold hide some.
function arrangeTable(list) {
  const { table, rows, search, more, isOpen, sortedBy, isReversed } = list;
  const ordered = sortedBy ? sortRows(rows, sortedBy.cellIndex, isReversed) : rows;
  const wanted = search ? search.value.trim().toLowerCase() : "";
  const found = new Set(ordered.filter((row) => row.dataset.words.toLowerCase().includes(wanted)));
  const shown = new Set(isOpen ? found : [...found].slice(0, FOLD));
  for (const row of rows) {
    row.hidden = !found.has(row);
    row.classList.toggle("folded", found.has(row) && !shown.has(row));
  }
  const body = table.querySelector("tbody");
  if (ordered.some((row, k) => body.children[k] !== row)) body.append(...ordered);
  more.hidden = shown.size === found.size;
  more.textContent = `show all ${found.size}`;
  if (search) document.querySelector(`[data-found="${table.id}"]`).textContent = `${shown.size} of ${rows.length} shown`;
}

// Numbers with the highest first and words in alphabetical order, or reversed; undefined values last; ties as on the page.
function sortRows(rows, column, isReversed) {
  const value = new Map(rows.map((row) => [row, cellValue(row.cells[column])])), sign = isReversed ? -1 : 1;
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : b - a);
  return [...rows].sort((a, b) => {
    const x = value.get(a), y = value.get(b);
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * compare(x, y);
  });
}

function cellValue({ textContent, dataset }) {
  const text = textContent.trim();
  if ("words" in dataset) return text;
  return text === "–" || text === "" ? null : Number(text);
}

function sortBy(list, header) {
  if (list.sortedBy === header) list.isReversed = !list.isReversed;
  else [list.sortedBy, list.isReversed] = [header, false];
  const isWords = "words" in list.rows[0].cells[header.cellIndex].dataset;
  for (const other of list.table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", isWords === list.isReversed ? "descending" : "ascending");
  arrangeTable(list);
}

for (const list of tables) {
  for (const button of list.table.querySelectorAll("th button")) {
    button.addEventListener("click", () => list.rows.length && sortBy(list, button.closest("th")));
  }
  list.more.addEventListener("click", () => {
    list.isOpen = true;
    arrangeTable(list);
  });
  if (list.search) list.search.addEventListener("input", () => arrangeTable(list));
  arrangeTable(list);
}
