// The interactive part of report.html: galleries, filters and the minimum score. The data are the JSON in #data. Labels, ids and
// responses come from models and other people's files, so they enter the page only as textContent. The part of the address
// after # stores what the user selects.
"use strict";

const PAGE = 24; // cards per page of the gallery
const data = JSON.parse(document.getElementById("data").textContent);
const images = data.images;
const at = (id) => document.getElementById(id);

let threshold = 0; // the minimum score
let results = []; // matchImage() of each image at the minimum score
let list = []; // positions of the images in the gallery, in order
let page = 0;
let cards = []; // [position, figure] of the cards in view

// ---- matching -----------------------------------------------------------------------------------------------------------

// Match one image, using the predictions with a score of at least `threshold`. The result equals that of match_images in
// boxtune/metrics/matching.py and of error_types in boxtune/metrics/error_types.py.
//   predictions: "hidden", "hit", "excused" or an error type. gt: "found", "missed" or "ignored".
//   predictionIou, gtIou: the IoU of the match, or else of the best overlap. meanIou: over all ground truth boxes.
function matchImage(image, threshold) {
  const { gt, predictions } = image;
  const { predictionPartner, gtPartner, predictionBest, gtBest } = matchGreedily(image, threshold);
  const isEnough = (iou) => iou !== undefined && iou >= data.iou_threshold;
  const predictionStates = predictions.unmatched.map((unmatched, i) => {
    if (predictions.score[i] < threshold) return "hidden";
    if (isEnough(predictionPartner.get(i))) return "hit";
    // It overlaps a box enough for a match, but another prediction matches that box.
    return unmatched !== "excused" && isEnough(predictionBest.get(i)) ? "duplicate" : unmatched;
  });
  const gtStates = gt.ignored.map((ignored, j) => (ignored ? "ignored" : isEnough(gtPartner.get(j)) ? "found" : "missed"));
  const counted = gt.ignored.filter((ignored) => !ignored).length;
  return {
    predictions: predictionStates,
    gt: gtStates,
    predictionIou: predictionStates.map((state, i) => (state === "hit" ? predictionPartner : predictionBest).get(i)),
    gtIou: gtStates.map((state, j) => (state === "found" ? gtPartner : gtBest).get(j)),
    meanIou: counted ? [...gtPartner.values()].reduce((sum, iou) => sum + iou, 0) / counted : null,
    tp: predictionStates.filter((state) => state === "hit").length,
    fp: predictionStates.filter(isFalsePositive).length,
    fn: gtStates.filter((state) => state === "missed").length,
  };
}

// Match without an IoU threshold. The pairs are sorted by IoU, so each pair is taken unless one of its two boxes is taken already.
// Returns maps from the position of a box to the IoU of its match (partner) and of its best overlap (best).
function matchGreedily({ predictions, pairs }, threshold) {
  const predictionPartner = new Map(), gtPartner = new Map(), predictionBest = new Map(), gtBest = new Map();
  for (const [i, j, iou] of pairs) {
    if (predictions.score[i] < threshold) continue;
    if (!predictionBest.has(i)) predictionBest.set(i, iou);
    if (!gtBest.has(j)) gtBest.set(j, iou);
    if (predictionPartner.has(i) || gtPartner.has(j)) continue;
    predictionPartner.set(i, iou);
    gtPartner.set(j, iou);
  }
  return { predictionPartner, gtPartner, predictionBest, gtBest };
}

function isFalsePositive(state) {
  return state !== "hidden" && state !== "hit" && state !== "excused";
}

function rates({ tp, fp, fn }) {
  const ratio = (part, whole) => (whole ? part / whole : null);
  return { precision: ratio(tp, tp + fp), recall: ratio(tp, tp + fn), f1: ratio(2 * tp, 2 * tp + fp + fn) };
}

// The minimum score with the best F1, in the fewest digits that keep the same predictions; null if there is no true positive.
// Goes from the highest score down, because one more prediction changes the counts of its own image alone.
function bestThreshold() {
  const steps = images.flatMap((image, n) => image.predictions.score.map((score) => [score, n]));
  steps.sort((a, b) => b[0] - a[0]);
  const matched = images.map((image) => matchImage(image, Infinity));
  const total = { tp: 0, fp: 0, fn: matched.reduce((sum, result) => sum + result.fn, 0) };
  let best = null, bestF1 = 0;
  steps.forEach(([score, n], k) => {
    const after = matchImage(images[n], score);
    for (const key of ["tp", "fp", "fn"]) total[key] += after[key] - matched[n][key];
    matched[n] = after;
    const next = k + 1 < steps.length ? steps[k + 1][0] : -1;
    if (next < score && rates(total).f1 > bestF1) {
      bestF1 = rates(total).f1;
      best = shortest(score, next);
    }
  });
  return best;
}

// The number with the fewest digits that is at most `high` and above `low`.
function shortest(high, low) {
  for (let power = 1; power < 1e15; power *= 10) {
    const value = Math.floor(high * power) / power;
    if (value > low && value <= high) return value;
  }
  return high;
}

// ---- numbers ------------------------------------------------------------------------------------------------------------

// Three decimals, rounded as in Python: ties go to the even digit. With three decimals only odd sixteenths are ties.
function format(value) {
  if (value === null) return "–";
  return (Math.abs(value * 16) % 4 === 1 ? value * (1 - 1e-9) : value).toFixed(3);
}

// Match all images at the minimum score and write the counts: in total, per class and per error type.
function recount() {
  results = images.map((image) => matchImage(image, threshold));
  const { total, classes, types } = countAll();
  if (at("live")) writeCounts(at("live"), total);
  document.querySelectorAll("[data-point]").forEach((point) => {
    moveTo(point, rates(classes.get(data.classes[point.dataset.point]) || noCounts()));
  });
  document.querySelectorAll("tr[data-class]").forEach((row) => {
    writeCounts(row, classes.get(data.classes[row.dataset.class]) || noCounts());
  });
  document.querySelectorAll("[data-error-type]").forEach((cell) => {
    cell.textContent = types.get(cell.dataset.errorType) || 0;
  });
  document.querySelectorAll("[data-threshold]").forEach((note) => {
    note.textContent = threshold ? `Only boxes with a score of at least ${threshold}. ${note.dataset.threshold}`.trim() : "";
  });
}

function noCounts() {
  return { tp: 0, fp: 0, fn: 0 };
}

// Counts of `results`: in total, {class: counts} and {error type: false positives}.
function countAll() {
  const total = noCounts(), classes = new Map(), types = new Map();
  const count = (label, key) => {
    if (!classes.has(label)) classes.set(label, noCounts());
    classes.get(label)[key] += 1;
    total[key] += 1;
  };
  images.forEach((image, n) => {
    results[n].gt.forEach((state, j) => state === "missed" && count(image.gt.label[j], "fn"));
    results[n].predictions.forEach((state, i) => {
      if (state === "hit") count(image.predictions.label[i], "tp");
      if (isFalsePositive(state)) {
        count(image.predictions.label[i], "fp");
        types.set(state, (types.get(state) || 0) + 1);
      }
    });
  });
  return { total, classes, types };
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
    cell.textContent = texts[cell.dataset.count] ?? values[cell.dataset.count];
  });
  const change = parent.querySelector("[data-change-from]");
  // The baseline's F1 includes all of its boxes, so with a minimum score there is nothing to compare with.
  if (change) change.textContent = threshold ? "–" : difference(change.dataset.changeFrom, f1);
}

function difference(before, after) {
  if (before === "" || after === null) return "–";
  const text = format(Math.abs(after - Number(before)));
  return `${after < Number(before) && Number(text) ? "-" : "+"}${text}`;
}

// ---- gallery ------------------------------------------------------------------------------------------------------------

// Whether the filters select an image: it contains the selected error of the selected class.
function isSelected(n) {
  const { gt, predictions, problems } = images[n], error = at("error").value, name = at("class").value;
  const objects = [
    ...results[n].gt.map((state, j) => ({ label: gt.label[j], error: state === "missed" ? "missed" : "" })),
    ...results[n].predictions
      .map((state, i) => ({ label: predictions.label[i], error: isFalsePositive(state) ? state : "", state }))
      .filter(({ state }) => state !== "hidden"),
  ].filter(({ label }) => name === "" || label === name);
  if (error === "" || error === "problem") {
    const hasProblem = problems.some((kind) => kind !== "noise"); // noise is part of the trained format
    return (error === "" || hasProblem) && (name === "" || objects.length > 0);
  }
  return objects.some((object) => (error === "any" ? object.error !== "" : object.error === error));
}

// Positions of the images in the selected gallery, before the filters.
function gallery() {
  const shown = [...images.keys()].filter((n) => images[n].id !== undefined);
  return at("gallery").value === "random" ? data.random : shown;
}

function worseFirst(m, n) {
  const [a, b] = [results[m], results[n]];
  return b.fp + b.fn - a.fp - a.fn || (a.meanIou ?? 1) - (b.meanIou ?? 1) || m - n;
}

function arrange() {
  list = gallery().filter(isSelected);
  if (at("gallery").value === "worst") list.sort(worseFirst);
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
  const all = gallery(), found = all.filter(isSelected).length;
  at("found").textContent = `${found} of ${all.length} images`;
  cards.forEach(([n, figure]) => fillCard(figure, n));
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
function fillCard(figure, n) {
  const find = (selector) => figure.querySelector(selector);
  const objects = objectsOf(images[n], results[n]);
  drawObjects(find("svg"), images[n], objects);
  find(".boxes").replaceChildren();
  for (const { style, tooltip } of objects) add(find(".boxes"), "li", { class: style }, tooltip);
  find(".counts").replaceChildren();
  for (const count of countsOf(images[n], results[n])) add(find(".counts"), "span", {}, count);
}

// Draw the objects in a coordinate system whose longest side is 480. Labels are drawn last, above all boxes; ground truth that was
// found or is ignored has no label.
function drawObjects(svg, image, objects) {
  const scale = 480 / Math.max(image.width, image.height), height = image.height * scale, labels = [];
  svg.setAttribute("viewBox", `0 0 ${image.width * scale} ${height}`);
  svg.replaceChildren();
  for (const { style, label, place, tooltip } of objects) {
    const [x, y, right, bottom] = place.map((value) => value * scale), isPoint = place.length === 2;
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

function countsOf(image, result) {
  const counts = [`${result.tp} TP`, `${result.fp} FP`, `${result.fn} FN`];
  const names = { duplicate: "duplicate", excused: "not counted", hidden: "below the minimum score" };
  for (const [state, name] of Object.entries(names)) {
    const number = result.predictions.filter((each) => each === state).length;
    if (number) counts.push(`${number} ${name}`);
  }
  if (!data.click && result.meanIou !== null) counts.push(`mean IoU ${format(result.meanIou)}`);
  if (image.seconds !== null) counts.push(`${image.seconds} s`);
  return counts;
}

// What is drawn on one image: {style (a class of the style sheet), label, place, tooltip}. Ground truth comes first, so
// predictions are drawn above it.
function objectsOf(image, result) {
  const gtNames = { found: "ground truth", missed: "missed ground truth", ignored: "ignored ground truth" };
  const gt = result.gt.map((state, j) => {
    const label = image.gt.label[j], place = image.gt.place[j];
    const iou = describeIou(state === "found", result.gtIou[j]);
    return { style: state, label, place, tooltip: describe(label, gtNames[state], place, iou) };
  });
  const predictionNames = { hit: "true positive", excused: "not counted, inside ignored ground truth" };
  const predictions = result.predictions.map((state, i) => {
    const label = image.predictions.label[i], place = image.predictions.place[i];
    const name = predictionNames[state] || `false positive, ${state.replace("_", " ")}`;
    const iou = describeIou(state === "hit", result.predictionIou[i]);
    const score = `score ${format(image.predictions.score[i])}`;
    return { style: isFalsePositive(state) ? "false" : state, label, place, tooltip: describe(label, name, place, iou, score) };
  });
  return [...gt, ...predictions.filter(({ style }) => style !== "hidden")];
}

function describeIou(isMatch, iou) {
  return data.click || !iou ? "" : `${isMatch ? "IoU" : "best IoU"} ${format(iou)}`;
}

function describe(label, name, place, ...facts) {
  return [`${label}: ${name}`, ...facts.filter((fact) => fact), `at [${place.join(", ")}] px`].join(", ");
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
    recount();
    refresh();
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
