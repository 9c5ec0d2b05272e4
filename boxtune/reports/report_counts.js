// The data of report.html, the JSON in #data, and what each box is at the minimum score. boxtune/reports/report_data.py and
// boxtune/metrics/minimum_score.py describe the columns.
"use strict";

const at = (id) => document.getElementById(id);
const data = JSON.parse(at("data").textContent);
const images = data.images;

// A column of numbers: base64 of a little-endian array.
function column(text, Type) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let k = 0; k < bytes.length; k += 1) bytes[k] = binary.charCodeAt(k);
  return new Type(bytes.buffer);
}

const KINDS = ["excused", "unknown_label", "duplicate", "wrong_class", "localisation", "background"]; // UNMATCHED in Python
const CAUSES = ["missed_taken", "missed_wrong_class", "missed_localisation"]; // MISSED in Python
const NO_BOX = "missed_no_box";
const gt = {
  label: column(data.gt.label, Uint32Array),
  found: column(data.gt.found, Float64Array),
  size: column(data.gt.size, Uint8Array),
  place: column(data.gt.place, Float64Array),
};
const predictions = {
  label: column(data.predictions.label, Uint32Array),
  score: column(data.predictions.score, Float64Array),
  lost: column(data.predictions.lost, Float64Array),
  unmatched: column(data.predictions.unmatched, Uint8Array),
  size: column(data.predictions.size, Uint8Array),
  place: column(data.predictions.place, Float64Array),
};
const SIZE = data.click ? 2 : 4; // numbers per predicted place

// For each cause, the minimum score at which a ground truth box begins to be missed for it; −1 for never.
const missedFrom = CAUSES.map(() => new Float64Array(gt.label.length).fill(-1));
{
  const cause = column(data.missed.cause, Uint8Array), score = column(data.missed.score, Float64Array);
  column(data.missed.gt, Uint32Array).forEach((j, k) => (missedFrom[cause[k]][j] = score[k]));
}

// Pairs of different classes that overlap enough for a match, by image; highest IoU first.
const confusable = {
  prediction: column(data.confusable.prediction, Uint32Array),
  gt: column(data.confusable.gt, Uint32Array),
};

// Where the objects and pairs of each image are in the columns: [from, to), and from where their places are.
let ends = { gt: 0, predictions: 0, gtPlace: 0, predictionPlace: 0, pairs: 0 };
const ranges = images.map((image) => {
  const begin = ends;
  ends = {
    gt: begin.gt + image.gt,
    predictions: begin.predictions + image.predictions,
    gtPlace: begin.gtPlace + image.gt_drawn,
    predictionPlace: begin.predictionPlace + image.predictions_drawn,
    pairs: begin.pairs + image.confusable,
  };
  return { ...begin, gtEnd: ends.gt, predictionsEnd: ends.predictions, pairsEnd: ends.pairs };
});

let threshold = 0; // the minimum score

// ---- what a box is at the minimum score ---------------------------------------------------------------------------------

// "hidden", "hit", "excused" or an error type.
function predictionState(i) {
  if (predictions.score[i] < threshold) return "hidden";
  return predictions.lost[i] < threshold ? "hit" : KINDS[predictions.unmatched[i]];
}

// Why a missed ground truth box is missed: one of CAUSES or NO_BOX.
function missCause(j) {
  const k = missedFrom.findIndex((scores) => scores[j] >= threshold);
  return k < 0 ? NO_BOX : CAUSES[k];
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
        const iou = boxIou(4 * (range.predictionPlace + i - range.predictions), 4 * (range.gtPlace + j - range.gt));
        if (iou > 0) pairs.push([i, j, iou]);
      }
    }
    pairs.sort((a, b) => b[2] - a[2]);
  }
  pairsOf.set(n, pairs);
  return pairs;
}

// The IoU of the predicted box and the ground truth box that begin at these positions of the columns of places.
function boxIou(i, j) {
  const a = predictions.place, b = gt.place;
  const x0 = a[i], y0 = a[i + 1], x1 = a[i + 2], y1 = a[i + 3];
  const left = b[j], top = b[j + 1], right = b[j + 2], bottom = b[j + 3];
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

// {label, kind, value: descending minimum scores at which boxes begin or cease to count, total: how many count up to there}
const groups = [];
{
  const value = column(data.counts.value, Float64Array);
  const count = data.counts.count === null ? null : column(data.counts.count, Int32Array);
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

// Counts of all images: in total, one entry per class, and {error type: false positives, cause: missed ground truth boxes}.
function countAll() {
  const classes = data.counts.gt.map((count) => ({ tp: 0, fp: 0, fn: count })), total = { tp: 0, fp: 0, fn: 0 }, types = {};
  for (const group of groups) {
    if (group.kind === "excused") continue;
    const count = countGroup(group, threshold), own = classes[group.label];
    types[group.kind] = (types[group.kind] || 0) + count;
    if (CAUSES.includes(group.kind)) continue;
    total[group.kind === "hit" ? "tp" : "fp"] += count;
    if (own) own[group.kind === "hit" ? "tp" : "fp"] += count;
    if (own && group.kind === "hit") own.fn -= count;
  }
  total.fn = data.counts.gt.reduce((sum, count) => sum + count, 0) - total.tp;
  types[NO_BOX] = CAUSES.reduce((left, cause) => left - (types[cause] || 0), total.fn);
  return { total, classes, types };
}

// Three decimals, rounded as in Python: ties go to the even digit. With three decimals only odd sixteenths are ties.
function format(value) {
  if (value === null) return "–";
  return (Math.abs(value * 16) % 4 === 1 ? value * (1 - 1e-9) : value).toFixed(3);
}

function rates({ tp, fp, fn }) {
  const ratio = (part, whole) => (whole ? part / whole : null);
  return { precision: ratio(tp, tp + fp), recall: ratio(tp, tp + fn), f1: ratio(2 * tp, 2 * tp + fp + fn) };
}

// The minimum score with the best F1, in the fewest digits that keep the same predictions; null if there is no true positive.
function bestThreshold() {
  const all = data.counts.gt.reduce((sum, count) => sum + count, 0);
  const counted = groups.filter(({ kind }) => kind !== "excused" && !CAUSES.includes(kind));
  const scores = counted.flatMap(({ value }) => [...value]);
  const steps = Float64Array.from(new Set(scores)).sort().reverse();
  const added = { tp: new Float64Array(steps.length), fp: new Float64Array(steps.length) };
  const place = new Map();
  steps.forEach((score, k) => place.set(score, k));
  for (const { kind, value, total } of counted) {
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
