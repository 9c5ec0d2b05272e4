// The controls of report.html: the minimum score, the filters and the pages of the gallery. The part of the address after # stores
// what the user selects. The files before this one in the page count (report_counts.js), select boxes (report_filters.js), draw
// them (report_cards.js) and arrange tables (report_tables.js).
const PAGE = 24; // cards per page of the gallery
const PAUSE = 250; // milliseconds without a change after which what is not in view is drawn
const SLICE = 8; // milliseconds after which this drawing is interrupted

// ---- numbers ------------------------------------------------------------------------------------------------------------

// Write the counts at the minimum score: in total, per class and per error type. While the slider is dragged, only those rows of
// the class table that are in view.
function recount(inView = false) {
  const { total, classes, types } = countAll();
  if (at("live")) writeCounts(at("live"), total);
  for (const point of points) moveTo(point, rates(classes[point.dataset.point]));
  for (const row of classRows) if (!inView || visible.has(row)) writeCounts(row, classes[row.dataset.class]);
  for (const cell of typeCells) write(cell, types[cell.dataset.errorType] || 0);
  for (const note of thresholdNotes) {
    write(note, threshold ? `Only boxes with a score of at least ${threshold}. ${note.dataset.threshold}`.trim() : "");
  }
}

const points = [...document.querySelectorAll("[data-point]")];
const classRows = [...document.querySelectorAll("tr[data-class]")];
const typeCells = [...document.querySelectorAll("[data-error-type]")];
const thresholdNotes = [...document.querySelectorAll("[data-threshold]")];

// The rows and cards in view. Asking for their places would cost a layout of the page.
const visible = new Set();
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) visible[isIntersecting ? "add" : "delete"](target);
});
for (const row of classRows) observer.observe(row);

// A text that stays the same costs no layout.
function write(element, value) {
  if (element.textContent !== String(value)) element.textContent = value;
}

// Move a class's dot next to its curve. Without predictions precision is undefined, and the dot is hidden.
function moveTo(point, { precision, recall }) {
  point.style.display = precision === null || recall === null ? "none" : "";
  point.setAttribute("cx", 100 * recall);
  point.setAttribute("cy", 100 - 100 * precision);
}

function writeCounts(parent, counts) {
  const values = { ...counts, predicted: counts.tp + counts.fp }, { precision, recall, f1 } = rates(counts);
  const texts = { precision: format(precision), recall: format(recall), f1: format(f1) };
  parent.querySelectorAll("[data-count]").forEach((cell) => {
    write(cell, texts[cell.dataset.count] ?? values[cell.dataset.count]);
  });
  const change = parent.querySelector("[data-change-from]");
  // The baseline's F1 includes all of its boxes, so with a minimum score there is nothing to compare with.
  if (change) write(change, threshold ? "–" : difference(change.dataset.changeFrom, f1));
}

function difference(before, after) {
  if (before === "" || after === null) return "–";
  const text = format(Math.abs(after - Number(before)));
  return `${after < Number(before) && Number(text) ? "-" : "+"}${text}`;
}

// ---- gallery ------------------------------------------------------------------------------------------------------------

let list = []; // positions of the images in the gallery, in order
let page = 0;
let cards = []; // the cards of this page of the gallery
let waiting = []; // what has yet to be drawn, as functions
let timer, frame;
let cell = null; // [row, column] of the confusion matrix, or null

function selection() {
  if (cell) return { ...everything, cell };
  const name = at("class").value, size = at("size") ? at("size").selectedIndex : 0; // 0 for all sizes
  return {
    error: at("error").value,
    label: name === "" ? null : (labelNumber.get(name) ?? -1),
    whose: at("whose").value,
    size: size ? size - 1 : null,
    cell: null,
  };
}

// Positions of the images in the selected gallery, before the filters.
function gallery() {
  return at("gallery").value === "random" ? data.random : [...images.keys()];
}

// Most errors first, then lowest mean IoU. The mean IoU is computed only of images with equally many errors.
function sortWorstFirst(numbers) {
  const errors = new Map(numbers.map((n) => [n, countImage(n)])), ious = new Map();
  const count = (n) => errors.get(n).fp + errors.get(n).fn;
  const iou = (n) => {
    if (!ious.has(n)) ious.set(n, meanIou(n) ?? 1);
    return ious.get(n);
  };
  numbers.sort((m, n) => count(n) - count(m) || iou(m) - iou(n) || m - n);
}

function arrange() {
  const selected = selection();
  list = gallery().filter((n) => countSelected(n, selected) !== null);
  if (at("gallery").value === "worst") sortWorstFirst(list);
  turnTo(0);
}

function turnTo(number) {
  page = number;
  for (const { figure } of cards) observer.unobserve(figure);
  cards = list.slice(page * PAGE, (page + 1) * PAGE).map(newCard);
  for (const { figure } of cards) observer.observe(figure);
  at("cards").replaceChildren(...cards.map(({ figure }) => figure));
  at("previous").disabled = page === 0;
  at("next").disabled = (page + 1) * PAGE >= list.length;
  at("pager").hidden = list.length <= PAGE;
  at("place").textContent = `${page * PAGE + 1}–${page * PAGE + cards.length} of ${list.length}`;
  at("nothing").hidden = list.length > 0 || images.length === 0;
  refresh(0);
}

// Update what changes while the slider is dragged. The order of the cards changes only when it is released.
function refresh(pause = PAUSE) {
  const selected = selection(), all = gallery();
  let found = 0, boxes = 0;
  for (const n of all) {
    const count = countSelected(n, selected);
    if (count === null) continue;
    found += 1;
    boxes += count;
  }
  write(at("found"), `${found} of ${all.length} images`);
  write(at("found-boxes"), boxes ? `${boxes} ${boxes === 1 ? "box" : "boxes"}` : "");
  at("clear").hidden = !isFiltered(selected);
  at("thin").hidden = !boxes;
  at("cell").hidden = !cell;
  if (cell) write(at("cell"), describeCell(cell));
  for (const card of cards) if (visible.has(card.figure)) styleCard(card, selected);
  waiting = cards.map((card) => () => styleCard(card, selected)).concat(cards.map((card) => () => describeCard(card)));
  clearTimeout(timer);
  timer = setTimeout(drawWaiting, pause);
}

// Draw the cards that are not in view, and all tooltips and lists of boxes, with time for input in between.
function drawWaiting() {
  const end = performance.now() + SLICE;
  while (waiting.length && performance.now() < end) waiting.shift()();
  if (waiting.length) timer = setTimeout(drawWaiting);
}

function describeCell([row, column]) {
  const predicted = column === CLASSES ? "an unknown label" : data.classes[column];
  if (row === CLASSES) return `ground truth: nothing, predicted: ${predicted}`;
  if (column > CLASSES) return `ground truth: ${data.classes[row]}, predicted: nothing`;
  return `ground truth: ${data.classes[row]}, predicted: ${predicted}`;
}

// ---- controls -----------------------------------------------------------------------------------------------------------

function setThreshold(value) {
  threshold = value >= 0 && value <= 1 ? Number(value) : 0;
  if (data.counts.steps) threshold = Math.round(threshold * data.counts.steps) / data.counts.steps;
  at("score").value = threshold;
  at("score-number").value = threshold;
  document.querySelectorAll(".mark").forEach((line) => {
    line.setAttribute("transform", `translate(${100 * threshold} 0)`);
    line.style.display = threshold ? "" : "none";
  });
}

const SELECTS = ["class", "whose", "error", "size", "gallery"].filter((id) => at(id));
const FILTERS = SELECTS.filter((id) => id !== "gallery");

// Select what the parameters say, such as class=cat&error=missed; what they do not name gets its first value.
function select(ids, wanted) {
  for (const id of ids) {
    at(id).value = wanted.get(id) ?? "";
    if (at(id).selectedIndex < 0) at(id).selectedIndex = 0;
  }
  const [row, column] = (wanted.get("cell") ?? "").split(",").map(Number);
  const isCell = wanted.has("cell") && row >= 0 && row <= CLASSES && column >= 0 && column <= CLASSES + 1;
  cell = isCell ? [row, column] : null;
}

function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (at("score")) setThreshold(wanted.get("score") || 0);
  select(SELECTS, wanted);
  showAll(false);
}

function writeAddress() {
  const selected = new URLSearchParams();
  if (threshold) selected.set("score", threshold);
  for (const id of SELECTS) if (at(id).selectedIndex > 0) selected.set(id, at(id).value);
  if (cell) selected.set("cell", cell.join());
  history.replaceState(null, "", `#${selected}`);
}

function showAll(withAddress = true) {
  at("whose").disabled = at("class").value === "";
  recount();
  for (const table of tables) if (table.sortedBy) arrangeTable(table);
  arrange();
  if (withAddress) writeAddress();
}

for (const id of SELECTS) {
  at(id).addEventListener("change", () => {
    if (id !== "gallery") cell = null;
    showAll();
  });
}
for (const id of at("score") ? ["score", "score-number"] : []) {
  at(id).addEventListener("input", () => {
    const typed = at(id).value;
    setThreshold(typed);
    at(id).value = typed; // do not change the text while the user types
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      refresh();
      recount(true);
    });
  });
  at(id).addEventListener("change", () => showAll());
}
for (const [id, step] of [["previous", -1], ["next", 1]]) {
  at(id).addEventListener("click", () => {
    turnTo(page + step);
    at("images").scrollIntoView();
  });
}
document.querySelectorAll("[data-hides]").forEach((box) => {
  box.checked = true; // some browsers remember
  box.addEventListener("change", () => document.body.classList.toggle(box.dataset.hides, !box.checked));
});
at("clear").addEventListener("click", () => {
  select(FILTERS, new URLSearchParams());
  showAll();
});
// Numbers and names in tables open the gallery with the images that they count.
document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-go]");
  if (!button) return;
  const wanted = new URLSearchParams(button.dataset.go), row = button.closest("tr[data-class]");
  if (row) wanted.set("class", data.classes[row.dataset.class]);
  select(FILTERS, wanted);
  showAll();
  at("images").scrollIntoView();
  at("images").focus({ preventScroll: true });
});
addEventListener("hashchange", readAddress);

readAddress();
if (at("best")) {
  // Runs after the page is shown, because it takes a while with tens of thousands of boxes.
  setTimeout(() => {
    const best = bestThreshold();
    if (best === null) return;
    at("best").textContent = `best F1 on this split: ${best}`;
    at("best").hidden = false;
    at("best").addEventListener("click", () => {
      setThreshold(best);
      showAll();
    });
  });
}
