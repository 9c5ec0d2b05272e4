// Which images and boxes the filters select. An image is selected if it contains a selected box.

const WHOSE = { either: ["gt", "predicted"], gt: ["gt"], predicted: ["predicted"] };
const CLASSES = data.classes.length;
const labelNumber = new Map(data.labels.map((name, number) => [name, number]));
// The positions of the shown labels among the classes; unknown labels follow the classes, as in the confusion matrix.
const classOfLabel = data.labels.map((name) => (data.classes.includes(name) ? data.classes.indexOf(name) : CLASSES));
const everything = { error: "", label: null, whose: "either", size: null, cell: null };

function isFiltered({ error, label, size, cell }) {
  return error !== "" || label !== null || size !== null || cell !== null;
}

// The positions of the image's boxes that the filters select: {gt, predictions}. A true positive is selected with both of its
// boxes, and counts by its ground truth box.
function selectObjects(n, selected) {
  if (selected.cell) return selectCell(n, selected.cell);
  const range = ranges[n], found = { gt: [], predictions: [] };
  for (let j = range.gt; j < range.gtEnd; j += 1) if (isGtSelected(j, selected)) found.gt.push(j);
  for (let i = range.predictions; i < range.predictionsEnd; i += 1) {
    if (isPredictionSelected(i, selected)) found.predictions.push(i);
  }
  return found;
}

function isGtSelected(j, { error, label, whose, size }) {
  const state = gtState(j);
  if (state === "ignored" || !gtHasError(j, state, error) || (size !== null && gt.size[j] !== size)) return false;
  if (label === null) return true;
  if (WHOSE[whose].includes("gt") && gt.label[j] === label) return true;
  if (!WHOSE[whose].includes("predicted")) return false;
  if (state === "found") return gt.label[j] === label;
  return (partners().gt.get(j) ?? []).some((i) => predictions.label[i] === label && predictions.score[i] >= threshold);
}

function gtHasError(j, state, error) {
  if (error === "" || error === "problem") return true;
  if (error === "hit") return state === "found";
  return state === "missed" && (error === "any" || error === "missed" || error === missCause(j));
}

function isPredictionSelected(i, { error, label, whose, size }) {
  const state = predictionState(i);
  if (state === "hidden" || state === "excused" || !predictionHasError(state, error)) return false;
  if (size !== null && predictions.size[i] !== size) return false;
  if (label === null) return true;
  if (WHOSE[whose].includes("predicted") && predictions.label[i] === label) return true;
  if (!WHOSE[whose].includes("gt")) return false;
  if (state === "wrong_class" || state === "unknown_label") {
    return (partners().predictions.get(i) ?? []).some((j) => gt.label[j] === label);
  }
  return state !== "background" && predictions.label[i] === label;
}

// "false" stands for all false positives.
function predictionHasError(state, error) {
  if (error === "" || error === "problem") return true;
  if (state === "hit") return error === "hit";
  return error === "any" || error === "false" || error === state;
}

// {gt: the predictions of another class on each ground truth box, predictions: the ground truth boxes of another class on which
// each prediction is}
let partnersOf = null;
function partners() {
  if (partnersOf) return partnersOf;
  partnersOf = { gt: new Map(), predictions: new Map() };
  const append = (map, key, value) => (map.has(key) ? map.get(key).push(value) : map.set(key, [value]));
  confusable.gt.forEach((j, k) => {
    append(partnersOf.gt, j, confusable.prediction[k]);
    append(partnersOf.predictions, confusable.prediction[k], j);
  });
  return partnersOf;
}

// False positives and missed ground truth, matched again regardless of class, as in `confusion` in Python: [[prediction, ground
// truth box]].
function confusedPairs(n) {
  const pairs = [], taken = new Set(), gtTaken = new Set();
  for (let k = ranges[n].pairs; k < ranges[n].pairsEnd; k += 1) {
    const i = confusable.prediction[k], j = confusable.gt[k];
    if (taken.has(i) || gtTaken.has(j) || gtState(j) !== "missed" || !isFalsePositive(predictionState(i))) continue;
    taken.add(i);
    gtTaken.add(j);
    pairs.push([i, j]);
  }
  return pairs;
}

// The boxes of one cell of the confusion matrix. Rows: the classes and background; columns: the classes, unknown label and
// background.
function selectCell(n, [row, column]) {
  const range = ranges[n], found = { gt: [], predictions: [] };
  const isRow = (j) => classOfLabel[gt.label[j]] === row, isColumn = (i) => classOfLabel[predictions.label[i]] === column;
  if (row === column && row < CLASSES) {
    for (let j = range.gt; j < range.gtEnd; j += 1) if (isRow(j) && gtState(j) === "found") found.gt.push(j);
    for (let i = range.predictions; i < range.predictionsEnd; i += 1) {
      if (isColumn(i) && predictionState(i) === "hit") found.predictions.push(i);
    }
    return found;
  }
  const pairs = confusedPairs(n);
  if (row < CLASSES && column <= CLASSES) {
    const own = pairs.filter(([i, j]) => isRow(j) && isColumn(i));
    return { gt: own.map(([, j]) => j), predictions: own.map(([i]) => i) };
  }
  const taken = new Set(pairs.map(([i]) => i)), gtTaken = new Set(pairs.map(([, j]) => j));
  for (let j = range.gt; row < CLASSES && j < range.gtEnd; j += 1) {
    if (isRow(j) && gtState(j) === "missed" && !gtTaken.has(j)) found.gt.push(j);
  }
  for (let i = range.predictions; row === CLASSES && i < range.predictionsEnd; i += 1) {
    if (isColumn(i) && isFalsePositive(predictionState(i)) && !taken.has(i)) found.predictions.push(i);
  }
  return found;
}

// Problems that a clean response may have (boxtune/answers/selection.py).
const INTENDED = ["noise", "low_score", "suppressed", "merged", "gated"];

// How many boxes of the image are selected, null if the image is not selected. A pair counts once.
function countSelected(n, selected) {
  if (!isFiltered(selected)) return 0;
  if (selected.error === "problem") {
    if (images[n].problems.every((kind) => INTENDED.includes(kind))) return null;
    if (selected.label === null && selected.size === null) return 0;
  }
  const found = selectObjects(n, selected);
  const boxes = selected.cell
    ? Math.max(found.gt.length, found.predictions.length)
    : found.gt.length + found.predictions.filter((i) => predictionState(i) !== "hit").length;
  return boxes || null;
}
