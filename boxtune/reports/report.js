// The interactive part of report.html: galleries, filters and the minimum score. Labels, ids and responses come from models and
// other people's files, so they enter the page only as textContent. The part of the address after # stores what the user selects.
// report_counts.js, which precedes this file in the page, reads the data and tells what each box is at the minimum score.
const PAGE = 24; // cards per page of the gallery
const PAUSE = 250; // milliseconds without a change after which what is not in view is drawn
const SLICE = 12; // milliseconds after which this drawing is interrupted
const at = (id) => document.getElementById(id);

let list = []; // positions of the images in the gallery, in order
let page = 0;
let cards = []; // [position, figure] of the cards in view
let waiting = []; // the cards that have yet to be drawn
let timer;

// ---- numbers ------------------------------------------------------------------------------------------------------------

// Three decimals, rounded as in Python: ties go to the even digit. With three decimals only odd sixteenths are ties.
function format(value) {
  if (value === null) return "–";
  return (Math.abs(value * 16) % 4 === 1 ? value * (1 - 1e-9) : value).toFixed(3);
}

// Write the counts at the minimum score: in total, per class and per error type. While the slider is dragged, only the rows of
// the class table that are in view.
function recount(inView = false) {
  const rows = [...document.querySelectorAll("tr[data-class]")].filter((row) => !inView || isInView(row));
  const { total, classes, types } = countAll();
  if (at("live")) writeCounts(at("live"), total);
  document.querySelectorAll("[data-point]").forEach((point) => moveTo(point, rates(classes[point.dataset.point])));
  rows.forEach((row) => writeCounts(row, classes[row.dataset.class]));
  document.querySelectorAll("[data-error-type]").forEach((cell) => write(cell, types[cell.dataset.errorType] || 0));
  document.querySelectorAll("[data-threshold]").forEach((note) => {
    note.textContent = threshold ? `Only boxes with a score of at least ${threshold}. ${note.dataset.threshold}`.trim() : "";
  });
}

function isInView(element) {
  const { top, bottom } = element.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}

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

// The selected filters: the error, and the label as a number; null for all classes.
function selection() {
  const name = at("class").value;
  return { error: at("error").value, label: name === "" ? null : data.labels.indexOf(name) };
}

// Whether the filters select an image: it contains the selected error of the selected class.
function isSelected(n, { error, label }) {
  if (error === "" && label === null) return true;
  const onProblem = error === "" || error === "problem";
  if (error === "problem" && !images[n].problems.some((kind) => kind !== "noise")) return false; // noise is a trained format
  if (error === "problem" && label === null) return true;
  const { gt: from, gtEnd, predictions: first, predictionsEnd } = ranges[n];
  for (let j = from; j < gtEnd; j += 1) {
    if (label !== null && gt.label[j] !== label) continue;
    if (onProblem || ((error === "any" || error === "missed") && gtState(j) === "missed")) return true;
  }
  for (let i = first; i < predictionsEnd; i += 1) {
    if (label !== null && predictions.label[i] !== label) continue;
    const state = predictionState(i);
    if (state !== "hidden" && (onProblem || (error === "any" ? isFalsePositive(state) : state === error))) return true;
  }
  return false;
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
  list = gallery().filter((n) => isSelected(n, selected));
  if (at("gallery").value === "worst") sortWorstFirst(list);
  turnTo(0);
}

function turnTo(number) {
  page = number;
  cards = list.slice(page * PAGE, (page + 1) * PAGE).map((n) => [n, newCard(n)]);
  at("cards").replaceChildren(...cards.map(([, figure]) => figure));
  at("previous").disabled = page === 0;
  at("next").disabled = (page + 1) * PAGE >= list.length;
  at("pager").hidden = list.length <= PAGE;
  at("place").textContent = `${page * PAGE + 1}–${page * PAGE + cards.length} of ${list.length}`;
  refresh();
}

// Update everything that changes while the slider is dragged. The order of the cards changes only when it is released.
function refresh() {
  const inView = cards.filter(([, figure]) => isInView(figure)); // before anything changes, which would cost a layout
  const all = gallery(), selected = selection(), found = all.filter((n) => isSelected(n, selected)).length;
  write(at("found"), `${found} of ${all.length} images`);
  clearTimeout(timer);
  for (const [n, figure] of inView) fillCard(figure, n, false);
  waiting = [...cards];
  timer = setTimeout(drawWaiting, PAUSE);
}

// Draw the cards that are not in view, and all lists of boxes, with time for input in between.
function drawWaiting() {
  const end = performance.now() + SLICE;
  while (waiting.length && performance.now() < end) {
    const [n, figure] = waiting.shift();
    fillCard(figure, n, true);
  }
  if (waiting.length) timer = setTimeout(drawWaiting);
}

function newCard(n) {
  const image = images[n], figure = at("card").content.firstElementChild.cloneNode(true);
  const find = (selector) => figure.querySelector(selector);
  find(".image").style.aspectRatio = Math.max(1, image.width / image.height); // a tall image would break the grid
  find("img").alt = image.id;
  if (image.data_uri) find("img").src = image.data_uri;
  else find("img").replaceWith(imageProblem(image));
  find("b").textContent = image.id;
  find(".size").textContent = `${image.width} × ${image.height}`;
  find(".problems").textContent = image.problems.length ? `problems: ${image.problems.join(", ")}` : "";
  find("pre").textContent = image.text;
  for (const summary of figure.querySelectorAll("summary")) {
    summary.setAttribute("aria-label", `${summary.textContent} of ${image.id}`);
  }
  return figure;
}

function imageProblem(image) {
  const paragraph = document.createElement("p");
  add(paragraph, "span", {}, `${image.image_problem}: ${image.image}`);
  return paragraph;
}

// Fill in what depends on the minimum score: the boxes, the list of boxes and the counts.
function fillCard(figure, n, withList) {
  const find = (selector) => figure.querySelector(selector);
  const objects = objectsOf(n);
  drawObjects(find("svg"), images[n], objects);
  if (withList || find(".boxes").closest("details").open) {
    find(".boxes").replaceChildren();
    for (const { style, tooltip } of objects) add(find(".boxes"), "li", { class: style }, tooltip);
  }
  find(".counts").replaceChildren();
  for (const count of countsOf(n)) add(find(".counts"), "span", {}, count);
}

// Draw the objects in a coordinate system whose longest side is 480. Labels are drawn last, above all boxes; ground truth that was
// found or is ignored has no label.
function drawObjects(svg, image, objects) {
  const scale = 480 / Math.max(image.width, image.height), height = image.height * scale, labels = [];
  svg.setAttribute("viewBox", `0 0 ${image.width * scale} ${height}`);
  svg.replaceChildren();
  for (const { style, label, place, tooltip } of objects) {
    const [x, y, right, bottom] = [...place].map((value) => round(value) * scale), isPoint = place.length === 2;
    const group = add(svg, "g", { class: style });
    add(group, "title", {}, tooltip);
    if (isPoint) add(group, "circle", { class: "dot", cx: x, cy: y, r: 6 });
    else add(group, "rect", { class: "shape", x, y, width: right - x, height: bottom - y });
    if (style === "found" || style === "ignored") continue;
    const left = Math.max(x + (isPoint ? 10 : 3), 3);
    const base = isPoint ? y + 4 : style === "missed" ? Math.min(bottom - 4, height - 4) : Math.max(y + 12, 12);
    labels.push([style, { class: "name", x: left, y: base }, label.length > 30 ? `${label.slice(0, 29)}…` : label]);
  }
  for (const [style, attributes, label] of labels) add(add(svg, "g", { class: style }), "text", attributes, label);
}

function countsOf(n) {
  const { tp, fp, fn, states } = countImage(n), image = images[n], iou = meanIou(n), all = image.gt + image.predictions;
  const counts = [`${tp} TP`, `${fp} FP`, `${fn} FN`];
  const names = { duplicate: "duplicate", excused: "not counted", hidden: "below the minimum score" };
  for (const [state, name] of Object.entries(names)) if (states[state]) counts.push(`${states[state]} ${name}`);
  if (iou !== null) counts.push(`mean IoU ${format(iou)}`);
  if (image.seconds !== null) counts.push(`${image.seconds} s`);
  if (!isWhole(n)) counts.push(`${image.gt_drawn + image.predictions_drawn} of ${all} boxes drawn, errors first`);
  return counts;
}

// What is drawn on one image: {style (a class of the style sheet), label, place, tooltip}. Ground truth comes first, so
// predictions are drawn above it.
function objectsOf(n) {
  const range = ranges[n], { predictionPartner, gtPartner, predictionBest, gtBest } = matchGreedily(n), objects = [];
  const gtNames = { found: "ground truth", missed: "missed ground truth", ignored: "ignored ground truth" };
  for (let j = range.gt; j < range.gt + images[n].gt_drawn; j += 1) {
    const state = gtState(j), label = data.labels[gt.label[j]], place = gtPlace(n, j);
    const iou = describeIou(state === "found", (state === "found" ? gtPartner : gtBest).get(j));
    objects.push({ style: state, label, place, tooltip: describe(label, gtNames[state], place, iou) });
  }
  const predictionNames = { hit: "true positive", excused: "not counted, inside ignored ground truth" };
  for (let i = range.predictions; i < range.predictions + images[n].predictions_drawn; i += 1) {
    const state = predictionState(i), label = data.labels[predictions.label[i]], place = predictionPlace(n, i);
    if (state === "hidden") continue;
    const name = predictionNames[state] || `false positive, ${state.replace("_", " ")}`;
    const iou = describeIou(state === "hit", (state === "hit" ? predictionPartner : predictionBest).get(i));
    const score = `score ${format(predictions.score[i])}`;
    const style = isFalsePositive(state) ? "false" : state;
    objects.push({ style, label, place, tooltip: describe(label, name, place, iou, score) });
  }
  return objects;
}

// One decimal.
function round(value) {
  return Math.round(10 * value) / 10;
}

function describeIou(isMatch, iou) {
  return data.click || !iou ? "" : `${isMatch ? "IoU" : "best IoU"} ${format(iou)}`;
}

function describe(label, name, place, ...facts) {
  return [`${label}: ${name}`, ...facts.filter((fact) => fact), `at [${[...place].map(round).join(", ")}] px`].join(", ");
}

// Append a child in its parent's namespace, so that the same function makes HTML and SVG.
function add(parent, name, attributes, text = "") {
  const child = document.createElementNS(parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) child.setAttribute(key, value);
  child.textContent = text;
  return parent.appendChild(child);
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

const SELECTS = ["class", "error", "gallery"];

function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (at("score")) setThreshold(wanted.get("score") || 0);
  for (const id of SELECTS) {
    at(id).value = wanted.get(id) ?? "";
    if (at(id).selectedIndex < 0) at(id).selectedIndex = 0;
  }
  recount();
  arrange();
}

function writeAddress() {
  const selected = new URLSearchParams();
  if (threshold) selected.set("score", threshold);
  for (const id of SELECTS) if (at(id).selectedIndex > 0) selected.set(id, at(id).value);
  history.replaceState(null, "", `#${selected}`);
}

function showAll() {
  recount();
  arrange();
  writeAddress();
}

for (const id of SELECTS) at(id).addEventListener("change", showAll);
for (const id of at("score") ? ["score", "score-number"] : []) {
  at(id).addEventListener("input", () => {
    const typed = at(id).value;
    setThreshold(typed);
    at(id).value = typed; // do not change the text while the user types
    refresh();
    recount(true);
  });
  at(id).addEventListener("change", showAll);
}
for (const [id, step] of [["previous", -1], ["next", 1]]) {
  at(id).addEventListener("click", () => {
    turnTo(page + step);
    at("images").scrollIntoView();
  });
}
document.querySelectorAll("button[data-error]").forEach((button) => {
  button.addEventListener("click", () => {
    at("error").value = button.dataset.error;
    at("class").value = "";
    showAll();
    at("images").scrollIntoView();
  });
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
