// The data of report.html, the JSON in #data, and what each box is at the minimum score. boxtune/reports/report_data.py and
// boxtune/metrics/minimum_score.py describe the columns.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const images = data.images;

// A column of numbers: base64 of a little-endian array.
function column(text, Type) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let k = 0; k < bytes.length; k += 1) bytes[k] = binary.charCodeAt(k);
  return new Type(bytes.buffer);
}

const KINDS = ["excused", "unknown_label", "duplicate", "wrong_class", "localisation", "background"]; // UNMATCHED in Python
const gt = {
  label: column(data.gt.label, Uint32Array),
  found: column(data.gt.found, Float64Array),
  place: column(data.gt.place, Float64Array),
};
const predictions = {
  label: column(data.predictions.label, Uint32Array),
  score: column(data.predictions.score, Float64Array),
  lost: column(data.predictions.lost, Float64Array),
  unmatched: column(data.predictions.unmatched, Uint8Array),
  place: column(data.predictions.place, Float64Array),
};
const SIZE = data.click ? 2 : 4; // numbers per predicted place

// Where the objects of each image are in the columns: [from, to), and from where their places are.
let ends = { gt: 0, predictions: 0, gtPlace: 0, predictionPlace: 0 };
const ranges = images.map((image) => {
  const begin = ends;
  ends = {
    gt: begin.gt + image.gt,
    predictions: begin.predictions + image.predictions,
    gtPlace: begin.gtPlace + image.gt_drawn,
    predictionPlace: begin.predictionPlace + image.predictions_drawn,
  };
  return { ...begin, gtEnd: ends.gt, predictionsEnd: ends.predictions };
});

let threshold = 0; // the minimum score

// ---- what a box is at the minimum score ---------------------------------------------------------------------------------

// "hidden", "hit", "excused" or an error type.
function predictionState(i) {
  if (predictions.score[i] < threshold) return "hidden";
  return predictions.lost[i] < threshold ? "hit" : KINDS[predictions.unmatched[i]];
}

// "found", "missed" or "ignored".
function gtState(j) {
  if (gt.found[j] === -2) return "ignored";
  return gt.found[j] >= threshold ? "found" : "missed";
}

function isFalsePositive(state) {
  return state !== "hidden" && state !== "hit" && state !== "excused";
}

// The counts of one image, and {state: number} of its predictions.
function countImage(n) {
  const { gt: from, gtEnd, predictions: first, predictionsEnd } = ranges[n];
  let tp = 0, fn = 0, fp = 0;
  const states = {};
  for (let j = from; j < gtEnd; j += 1) {
    if (gt.found[j] >= threshold) tp += 1;
    else if (gt.found[j] > -2) fn += 1;
  }
  for (let i = first; i < predictionsEnd; i += 1) {
    const state = predictionState(i);
    states[state] = (states[state] || 0) + 1;
    if (isFalsePositive(state)) fp += 1;
  }
  return { tp, fp, fn, states };
}

// ---- overlaps of one image ----------------------------------------------------------------------------------------------

// Whether all objects of the image are on this page. Otherwise the overlaps are not known.
function isWhole(n) {
  return images[n].gt === images[n].gt_drawn && images[n].predictions === images[n].predictions_drawn;
}

const pairsOf = new Map();

// [prediction, ground truth box, IoU] of the same class with an IoU above 0, without ignored boxes; highest IoU first, ties by
// prediction and then by ground truth box.
function overlappingPairs(n) {
  if (pairsOf.has(n)) return pairsOf.get(n);
  const pairs = [], range = ranges[n];
  if (!data.click && isWhole(n)) {
    for (let i = range.predictions; i < range.predictionsEnd; i += 1) {
      for (let j = range.gt; j < range.gtEnd; j += 1) {
        if (predictions.label[i] !== gt.label[j] || gt.found[j] === -2) continue;
        const iou = boxIou(predictionPlace(n, i), gtPlace(n, j));
        if (iou > 0) pairs.push([i, j, iou]);
      }
    }
    pairs.sort((a, b) => b[2] - a[2]);
  }
  pairsOf.set(n, pairs);
  return pairs;
}

function boxIou([x0, y0, x1, y1], [left, top, right, bottom]) {
  const width = Math.min(x1, right) - Math.max(x0, left), height = Math.min(y1, bottom) - Math.max(y0, top);
  if (width <= 0 || height <= 0) return 0;
  return (width * height) / ((x1 - x0) * (y1 - y0) + (right - left) * (bottom - top) - width * height);
}

function gtPlace(n, j) {
  const k = ranges[n].gtPlace + j - ranges[n].gt;
  return gt.place.subarray(4 * k, 4 * k + 4);
}

function predictionPlace(n, i) {
  const k = ranges[n].predictionPlace + i - ranges[n].predictions;
  return predictions.place.subarray(SIZE * k, SIZE * k + SIZE);
}

// Match without an IoU threshold, as match_images in boxtune/metrics/matching.py. The pairs are sorted by IoU, so each pair is
// taken unless one of its two boxes is taken already. Returns maps from a box to the IoU of its match (partner) and of its
// best overlap (best).
function matchGreedily(n) {
  const predictionPartner = new Map(), gtPartner = new Map(), predictionBest = new Map(), gtBest = new Map();
  for (const [i, j, iou] of overlappingPairs(n)) {
    if (predictions.score[i] < threshold) continue;
    if (!predictionBest.has(i)) predictionBest.set(i, iou);
    if (!gtBest.has(j)) gtBest.set(j, iou);
    if (predictionPartner.has(i) || gtPartner.has(j)) continue;
    predictionPartner.set(i, iou);
    gtPartner.set(j, iou);
  }
  return { predictionPartner, gtPartner, predictionBest, gtBest };
}

// Over all ground truth boxes of the image; null if it has none, for points, and if it is not known at this minimum score.
function meanIou(n) {
  if (!threshold || images[n].mean_iou === null) return images[n].mean_iou;
  if (!isWhole(n)) return null;
  let counted = 0;
  for (let j = ranges[n].gt; j < ranges[n].gtEnd; j += 1) if (gt.found[j] > -2) counted += 1;
  return [...matchGreedily(n).gtPartner.values()].reduce((sum, iou) => sum + iou, 0) / counted;
}

// ---- counts of all images -----------------------------------------------------------------------------------------------

// {label, kind, value: descending minimum scores at which boxes begin to count, total: how many count up to there}
const groups = [];
{
  const value = column(data.counts.value, Float64Array);
  const count = data.counts.count === null ? null : column(data.counts.count, Uint32Array);
  let first = 0;
  for (const [label, kind, size] of data.counts.groups) {
    const total = new Float64Array(size + 1);
    for (let k = 0; k < size; k += 1) total[k + 1] = total[k] + (count === null ? 1 : count[first + k]);
    groups.push({ label, kind, value: value.subarray(first, first + size), total });
    first += size;
  }
}

// How many boxes of a group count at a minimum score.
function countGroup({ value, total }, minimum) {
  let low = 0, high = value.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (value[middle] >= minimum) low = middle + 1;
    else high = middle;
  }
  return total[low];
}

// Counts of all images: in total, one entry per class, and {error type: false positives}.
function countAll() {
  const classes = data.counts.gt.map((count) => ({ tp: 0, fp: 0, fn: count })), total = { tp: 0, fp: 0, fn: 0 }, types = {};
  for (const group of groups) {
    if (group.kind === "excused") continue;
    const count = countGroup(group, threshold), own = classes[group.label];
    total[group.kind === "hit" ? "tp" : "fp"] += count;
    if (own) own[group.kind === "hit" ? "tp" : "fp"] += count;
    if (own && group.kind === "hit") own.fn -= count;
    types[group.kind] = (types[group.kind] || 0) + count;
  }
  total.fn = data.counts.gt.reduce((sum, count) => sum + count, 0) - total.tp;
  return { total, classes, types };
}

function rates({ tp, fp, fn }) {
  const ratio = (part, whole) => (whole ? part / whole : null);
  return { precision: ratio(tp, tp + fp), recall: ratio(tp, tp + fn), f1: ratio(2 * tp, 2 * tp + fp + fn) };
}

// The minimum score with the best F1, in the fewest digits that keep the same predictions; null if there is no true positive.
function bestThreshold() {
  const all = data.counts.gt.reduce((sum, count) => sum + count, 0), scores = groups.flatMap(({ value }) => [...value]);
  const steps = Float64Array.from(new Set(scores)).sort().reverse();
  const added = { tp: new Float64Array(steps.length), fp: new Float64Array(steps.length) };
  const place = new Map();
  steps.forEach((score, k) => place.set(score, k));
  for (const { kind, value, total } of groups) {
    if (kind === "excused") continue;
    const counts = added[kind === "hit" ? "tp" : "fp"];
    value.forEach((score, k) => (counts[place.get(score)] += total[k + 1] - total[k]));
  }
  let tp = 0, fp = 0, best = null, bestF1 = 0;
  for (let k = 0; k < steps.length; k += 1) {
    tp += added.tp[k];
    fp += added.fp[k];
    const { f1 } = rates({ tp, fp, fn: all - tp });
    if (f1 > bestF1) {
      bestF1 = f1;
      best = shortest(steps[k], k + 1 < steps.length ? steps[k + 1] : -1);
    }
  }
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
