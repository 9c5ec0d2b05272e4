// What report.html can be asked: galleries, filters and the score threshold. Data come from #data; labels, ids and answers are
// a stranger's text, so they enter the page by textContent alone. What is chosen stands in the address behind the #.
"use strict";

const PAGE = 24;
const data = JSON.parse(document.getElementById("data").textContent);
const images = data.images;
const at = (id) => document.getElementById(id);
const main = document.querySelector("main");

let threshold = 0;
let results = []; // judge() of each image at the threshold
let list = []; // positions of the images that the gallery holds, in order
let page = 0;
let drawn = []; // [position, figure] of the cards in view

// ---- matching -----------------------------------------------------------------------------------------------------------

// How the answers of at least `threshold` fare, as boxtune.metrics.matching.image_scores and boxtune.mistakes judge them: `pairs` come
// best first, so each is made unless one of its two is taken. `answers` are "hidden", "hit", "excused" or a kind of mistake,
// `truth` is "found", "missed" or "ignored"; an IoU is that of the pair, or of the best overlap where there is none.
function judge(image, threshold) {
  const { truth, answers, pairs } = image;
  const partner = new Map(), taken = new Map(); // answer → IoU and truth → IoU of a matching without IoU threshold
  const best = { answers: new Map(), truth: new Map() };
  for (const [i, j, iou] of pairs) {
    if (answers.score[i] < threshold) continue;
    if (!best.answers.has(i)) best.answers.set(i, iou);
    if (!best.truth.has(j)) best.truth.set(j, iou);
    if (partner.has(i) || taken.has(j)) continue;
    partner.set(i, iou);
    taken.set(j, iou);
  }
  const enough = (iou) => iou !== undefined && iou >= data.iou_threshold;
  const answerFates = answers.otherwise.map((otherwise, i) => {
    if (answers.score[i] < threshold) return "hidden";
    if (enough(partner.get(i))) return "hit";
    // What overlaps enough and yet hits nothing came second to a better answer.
    return otherwise !== "excused" && enough(best.answers.get(i)) ? "duplicate" : otherwise;
  });
  const truthFates = truth.ignored.map((ignored, j) => (ignored ? "ignored" : enough(taken.get(j)) ? "found" : "missed"));
  const counted = truth.ignored.filter((ignored) => !ignored).length;
  return {
    answers: answerFates,
    truth: truthFates,
    answerIou: answerFates.map((fate, i) => (fate === "hit" ? partner : best.answers).get(i)),
    truthIou: truthFates.map((fate, j) => (fate === "found" ? taken : best.truth).get(j)),
    meanIou: counted ? [...taken.values()].reduce((sum, iou) => sum + iou, 0) / counted : null,
    tp: answerFates.filter((fate) => fate === "hit").length,
    fp: answerFates.filter(isMistake).length,
    fn: truthFates.filter((fate) => fate === "missed").length,
  };
}

function isMistake(fate) {
  return fate !== "hidden" && fate !== "hit" && fate !== "excused";
}

function rates({ tp, fp, fn }) {
  const ratio = (part, whole) => (whole ? part / whole : null);
  return { precision: ratio(tp, tp + fp), recall: ratio(tp, tp + fn), f1: ratio(2 * tp, 2 * tp + fp + fn) };
}

// The score threshold of the best F1, in the fewest digits that keep the same answers; null where nothing hits. From the
// highest score down, one more answer changes its own image alone.
function bestThreshold() {
  const steps = images.flatMap((image, n) => image.answers.score.map((score) => [score, n]));
  steps.sort((a, b) => b[0] - a[0]);
  const judged = images.map((image) => judge(image, Infinity));
  const total = { tp: 0, fp: 0, fn: judged.reduce((sum, result) => sum + result.fn, 0) };
  let best = null, bestF1 = 0;
  steps.forEach(([score, n], k) => {
    const after = judge(images[n], score);
    for (const key of ["tp", "fp", "fn"]) total[key] += after[key] - judged[n][key];
    judged[n] = after;
    const next = k + 1 < steps.length ? steps[k + 1][0] : -1;
    if (next < score && rates(total).f1 > bestF1) {
      bestF1 = rates(total).f1;
      best = shortest(score, next);
    }
  });
  return best;
}

// The number of fewest digits that is at most `high` and above `low`.
function shortest(high, low) {
  for (let power = 1; power < 1e15; power *= 10) {
    const value = Math.floor(high * power) / power;
    if (value > low && value <= high) return value;
  }
  return high;
}

// ---- numbers ------------------------------------------------------------------------------------------------------------

// Three decimals as Python writes them: a tie goes to the even digit, and of three decimals only odd sixteenths are ties.
function format(value) {
  if (value === null) return "–";
  return (Math.abs(value * 16) % 4 === 1 ? value * (1 - 1e-9) : value).toFixed(3);
}

// Judge everything at the threshold and write the counts: in all, per class, and per kind of mistake.
function recount() {
  results = images.map((image) => judge(image, threshold));
  const none = () => ({ tp: 0, fp: 0, fn: 0 });
  const total = none(), classes = new Map(), kinds = new Map();
  const add = (label, key) => {
    if (!classes.has(label)) classes.set(label, none());
    classes.get(label)[key] += 1;
    total[key] += 1;
  };
  images.forEach((image, n) => {
    results[n].truth.forEach((fate, j) => fate === "missed" && add(image.truth.label[j], "fn"));
    results[n].answers.forEach((fate, i) => {
      if (fate === "hit") add(image.answers.label[i], "tp");
      if (isMistake(fate)) {
        add(image.answers.label[i], "fp");
        kinds.set(fate, (kinds.get(fate) || 0) + 1);
      }
    });
  });
  if (at("live")) writeCounts(at("live"), total);
  document.querySelectorAll("[data-point]").forEach((point) => {
    moveTo(point, rates(classes.get(data.classes[point.dataset.point]) || none()));
  });
  document.querySelectorAll("tr[data-class]").forEach((row) => {
    writeCounts(row, classes.get(data.classes[row.dataset.class]) || none());
  });
  document.querySelectorAll("[data-mistake]").forEach((cell) => {
    cell.textContent = kinds.get(cell.dataset.mistake) || 0;
  });
  document.querySelectorAll("[data-threshold]").forEach((place) => {
    place.textContent = threshold ? `Boxes of score ${threshold} and above${place.dataset.threshold}.` : "";
  });
}

// A class's point beside its curve; where nothing is answered it has no precision, and no place.
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
  // The baseline's F1 is of all its boxes: above a threshold there is nothing to compare with.
  if (change) change.textContent = threshold ? "–" : difference(change.dataset.changeFrom, f1);
}

function difference(before, after) {
  if (before === "" || after === null) return "–";
  const text = format(Math.abs(after - Number(before)));
  return `${after < Number(before) && Number(text) ? "-" : "+"}${text}`;
}

// ---- gallery ------------------------------------------------------------------------------------------------------------

// Whether the gallery's filters let an image through: something of the class in it that is such an error.
function matches(n) {
  const { truth, answers, problems } = images[n], error = at("error").value, name = at("class").value;
  const things = [
    ...results[n].truth.map((fate, j) => [fate === "missed" ? "missed" : "", truth.label[j]]),
    ...results[n].answers.map((fate, i) => [isMistake(fate) ? fate : "", answers.label[i], fate]),
  ].filter(([, label, fate]) => fate !== "hidden" && (name === "" || label === name));
  if (error === "" || error === "problem") {
    return (error === "" || problems.some((kind) => kind !== "noise")) && (name === "" || things.length > 0);
  }
  return things.some(([kind]) => (error === "any" ? kind !== "" : kind === error));
}

function gallery() {
  const shown = [...images.keys()].filter((n) => images[n].id !== undefined);
  return at("gallery").value === "random" ? data.random : shown;
}

function worseFirst(m, n) {
  const [a, b] = [results[m], results[n]];
  return b.fp + b.fn - a.fp - a.fn || (a.meanIou ?? 1) - (b.meanIou ?? 1) || m - n;
}

function arrange() {
  list = gallery().filter(matches);
  if (at("gallery").value === "worst") list.sort(worseFirst);
  turnTo(0);
}

function turnTo(number) {
  page = number;
  drawn = list.slice(page * PAGE, (page + 1) * PAGE).map((n) => [n, newCard(n)]);
  at("cards").replaceChildren(...drawn.map(([, figure]) => figure));
  at("previous").disabled = page === 0;
  at("next").disabled = (page + 1) * PAGE >= list.length;
  at("pager").hidden = list.length <= PAGE;
  at("place").textContent = `${page * PAGE + 1}–${page * PAGE + drawn.length} of ${list.length}`;
  refresh();
}

// Everything that moves while the slider is dragged; the cards stay where they are until it is let go.
function refresh() {
  const all = gallery(), found = all.filter(matches).length;
  at("found").textContent = `${found} of ${all.length} images`;
  drawn.forEach(([n, figure]) => fillCard(figure, n));
}

function newCard(n) {
  const image = images[n], figure = at("card").content.firstElementChild.cloneNode(true);
  const find = (selector) => figure.querySelector(selector);
  find(".picture").style.aspectRatio = Math.max(1, image.width / image.height); // a tall one would tear the grid
  find("img").alt = image.id;
  if (image.picture) find("img").src = image.picture;
  else find("img").replaceWith(trouble(image));
  find("b").textContent = image.id;
  find(".size").textContent = `${image.width} × ${image.height}`;
  find(".problems").textContent = image.problems.length ? `problems: ${image.problems.join(", ")}` : "";
  find("pre").textContent = image.text;
  for (const summary of figure.querySelectorAll("summary")) {
    summary.setAttribute("aria-label", `${summary.textContent} of ${image.id}`);
  }
  return figure;
}

function trouble(image) {
  const paragraph = document.createElement("p");
  add(paragraph, "span", {}, `${image.trouble}: ${image.image}`);
  return paragraph;
}

// What depends on the threshold: boxes, their list and the counts.
function fillCard(figure, n) {
  const find = (selector) => figure.querySelector(selector);
  const shown = things(images[n], results[n]);
  drawThings(find("svg"), images[n], shown);
  find(".boxes").replaceChildren();
  for (const { look, tip } of shown) add(find(".boxes"), "li", { class: look }, tip);
  find(".counts").replaceChildren();
  for (const count of countsOf(images[n], results[n])) add(find(".counts"), "span", {}, count);
}

// In units of a drawing whose longest side is 480. Names lie on top of every box; truth that was found goes without.
function drawThings(svg, image, shown) {
  const scale = 480 / Math.max(image.width, image.height), height = image.height * scale, names = [];
  svg.setAttribute("viewBox", `0 0 ${image.width * scale} ${height}`);
  svg.replaceChildren();
  for (const { look, label, place, tip } of shown) {
    const [x, y, right, bottom] = place.map((value) => value * scale), isPoint = place.length === 2;
    const group = add(svg, "g", { class: look });
    add(group, "title", {}, tip);
    if (isPoint) add(group, "circle", { class: "dot", cx: x, cy: y, r: 6 });
    else add(group, "rect", { class: "shape", x, y, width: right - x, height: bottom - y });
    if (look === "found" || look === "ignored") continue;
    const left = Math.max(x + (isPoint ? 10 : 3), 3);
    const base = isPoint ? y + 4 : look === "missed" ? Math.min(bottom - 4, height - 4) : Math.max(y + 12, 12);
    names.push([look, { class: "name", x: left, y: base }, label.length > 30 ? `${label.slice(0, 29)}…` : label]);
  }
  for (const [look, attributes, name] of names) add(add(svg, "g", { class: look }), "text", attributes, name);
}

function countsOf(image, result) {
  const counts = [`${result.tp} TP`, `${result.fp} FP`, `${result.fn} FN`];
  for (const [fate, words] of [["duplicate", "duplicate"], ["excused", "not counted"], ["hidden", "below the score"]]) {
    const number = result.answers.filter((each) => each === fate).length;
    if (number) counts.push(`${number} ${words}`);
  }
  if (!data.click && result.meanIou !== null) counts.push(`mean IoU ${format(result.meanIou)}`);
  if (image.seconds !== null) counts.push(`${image.seconds} s`);
  return counts;
}

// What is drawn on one picture, truth first so that answers lie on top: look (a class of the style sheet), label, place, tip.
function things(image, result) {
  const words = { found: "truth", missed: "missed truth", ignored: "ignored truth" };
  const truth = result.truth.map((fate, j) => {
    const label = image.truth.label[j], place = image.truth.place[j];
    return { look: fate, label, place, tip: tip(label, words[fate], place, overlap(fate === "found", result.truthIou[j])) };
  });
  const answers = result.answers.map((fate, i) => {
    const label = image.answers.label[i], place = image.answers.place[i];
    const look = isMistake(fate) ? "false" : fate;
    const mistake = `false positive, ${fate.replace("_", " ")}`;
    const meaning = { hit: "true positive", excused: "not counted, inside ignored truth" }[fate] || mistake;
    const score = `score ${format(image.answers.score[i])}`;
    return { look, label, place, tip: tip(label, meaning, place, overlap(fate === "hit", result.answerIou[i]), score) };
  });
  return [...truth, ...answers.filter(({ look }) => look !== "hidden")];
}

function overlap(isPair, iou) {
  return data.click || !iou ? "" : `${isPair ? "IoU" : "best IoU"} ${format(iou)}`;
}

function tip(label, meaning, place, ...facts) {
  return [`${label}: ${meaning}`, ...facts.filter((fact) => fact), `at [${place.join(", ")}] px`].join(", ");
}

// A new last child in the namespace of its parent, so the same line makes HTML and SVG.
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
  const asked = new URLSearchParams(location.hash.slice(1));
  if (at("score")) setThreshold(asked.get("score") || 0);
  for (const id of SELECTS) {
    at(id).value = asked.get(id) ?? "";
    if (at(id).selectedIndex < 0) at(id).selectedIndex = 0;
  }
  recount();
  arrange();
}

function writeAddress() {
  const chosen = new URLSearchParams();
  if (threshold) chosen.set("score", threshold);
  for (const id of SELECTS) if (at(id).selectedIndex > 0) chosen.set(id, at(id).value);
  history.replaceState(null, "", `#${chosen}`);
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
    at(id).value = typed; // what is being typed stays as it is
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
  // After the first view: it takes a while with tens of thousands of boxes.
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
