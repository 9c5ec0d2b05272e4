// The cards of the gallery: the boxes of an image are drawn once, and a change of the minimum score or of the filters only changes
// their style. Labels, ids and responses come from models and other people's files, so they enter the page only as textContent.
const SIDE = 480; // the longest side of a drawing in a card, in its own units

function newCard(n) {
  const image = images[n], figure = at("card").content.firstElementChild.cloneNode(true);
  const find = (selector) => figure.querySelector(selector);
  find(".image").style.aspectRatio = Math.max(1, image.width / image.height); // a tall image would break the grid
  showImage(find("img"), image);
  find("b").textContent = image.id;
  find(".size").textContent = `${image.width} × ${image.height}`;
  find(".problems").textContent = image.problems.length ? `problems: ${image.problems.join(", ")}` : "";
  find("pre").textContent = image.text;
  for (const summary of figure.querySelectorAll("summary")) {
    summary.setAttribute("aria-label", `${summary.textContent} of ${image.id}`);
  }
  find(".enlarge").setAttribute("aria-label", `enlarge ${image.id}`);
  find(".image").addEventListener("click", () => openZoom(n));
  return { n, figure, drawing: null, counts: "", described: "" };
}

// The image, or why there is none.
function showImage(img, image) {
  img.alt = image.id;
  if (image.data_uri) img.src = image.data_uri;
  else {
    const paragraph = document.createElement("p");
    add(paragraph, "span", {}, `${image.image_problem}: ${image.image}`);
    img.replaceWith(paragraph);
  }
}

// Show what the boxes are at the minimum score, and which of them the filters select.
function styleCard(card, selected) {
  card.drawing ??= draw(card.figure.querySelector("svg"), card.n, SIDE);
  styleDrawing(card.drawing, selected);
  const counts = countsOf(card.n), key = counts.join();
  if (card.counts === key) return;
  card.counts = key;
  card.figure.querySelector(".counts").replaceChildren();
  for (const count of counts) add(card.figure.querySelector(".counts"), "span", {}, count);
}

// Write the tooltips and the list of boxes, which takes longer.
function describeCard(card) {
  if (card.described === threshold) return;
  card.described = threshold;
  const list = card.figure.querySelector(".boxes");
  list.replaceChildren();
  for (const { style, tooltip } of describeDrawing(card.drawing)) add(list, "li", { class: style }, tooltip);
}

// Draw all boxes of an image in a coordinate system whose longest side is `side`. Labels are above all boxes; the style sheet hides
// those of ground truth that was found or is ignored. Ground truth comes first, so predictions are drawn above it.
function draw(svg, n, side) {
  const image = images[n], range = ranges[n], scale = side / Math.max(image.width, image.height);
  const height = image.height * scale, objects = [], names = [];
  svg.setAttribute("viewBox", `0 0 ${image.width * scale} ${height}`);
  svg.replaceChildren();
  const drawObject = (object) => {
    const [x, y, right, bottom] = [...object.place].map((value) => round(value) * scale);
    const isPoint = object.place.length === 2, shape = add(svg, "g", {}), label = object.label;
    const title = add(shape, "title", {});
    if (isPoint) add(shape, "circle", { class: "dot", cx: x, cy: y, r: 6 });
    else add(shape, "rect", { class: "shape", x, y, width: right - x, height: bottom - y });
    const left = Math.max(x + (isPoint ? 10 : 3), 3);
    const base = isPoint ? y + 4 : object.isGt ? Math.min(bottom - 4, height - 4) : Math.max(y + 12, 12);
    names.push([{ x: left, y: base }, label.length > 30 ? `${label.slice(0, 29)}…` : label]);
    objects.push({ ...object, shape, title, style: "" });
  };
  for (let j = range.gt; j < range.gt + image.gt_drawn; j += 1) {
    drawObject({ isGt: true, number: j, label: data.labels[gt.label[j]], place: gtPlace(n, j) });
  }
  for (let i = range.predictions; i < range.predictions + image.predictions_drawn; i += 1) {
    drawObject({ isGt: false, number: i, label: data.labels[predictions.label[i]], place: predictionPlace(n, i) });
  }
  names.forEach(([attributes, label], k) => (objects[k].name = add(svg, "text", attributes, label)));
  return { n, objects };
}

function styleDrawing({ n, objects }, selected) {
  const isAll = !isFiltered(selected), found = isAll ? null : selectObjects(n, selected);
  const chosen = isAll ? null : { gt: new Set(found.gt), predictions: new Set(found.predictions) };
  for (const object of objects) {
    const { isGt, number } = object;
    const state = styleOf(object), isChosen = isAll || (isGt ? chosen.gt : chosen.predictions).has(number);
    const style = isChosen ? state : `${state} dim`;
    if (object.style === style) continue;
    object.style = style;
    object.shape.setAttribute("class", style);
    object.name.setAttribute("class", `name ${style}`);
  }
}

// The class of the style sheet.
function styleOf({ isGt, number }) {
  if (isGt) return gtState(number);
  const state = predictionState(number);
  return isFalsePositive(state) ? "false" : state;
}

// Write the tooltips. Returns {style, tooltip} of the objects that are not hidden.
function describeDrawing({ n, objects }) {
  const { predictionPartner, gtPartner, predictionBest, gtBest } = matchGreedily(n), described = [];
  const gtNames = { found: "ground truth", ignored: "ignored ground truth" };
  const predictionNames = { hit: "true positive", excused: "not counted, inside ignored ground truth" };
  for (const object of objects) {
    const { isGt, number, label, place, title } = object, state = isGt ? gtState(number) : predictionState(number);
    let tooltip = "";
    if (isGt) {
      const name = gtNames[state] || `missed ground truth, ${data.names[missCause(number)]}`;
      const iou = describeIou(state === "found", (state === "found" ? gtPartner : gtBest).get(number));
      tooltip = describe(label, name, place, iou);
    } else if (state !== "hidden") {
      const name = predictionNames[state] || `false positive, ${data.names[state]}`;
      const iou = describeIou(state === "hit", (state === "hit" ? predictionPartner : predictionBest).get(number));
      tooltip = describe(label, name, place, iou, `score ${format(predictions.score[number])}`);
    }
    title.textContent = tooltip;
    if (tooltip) described.push({ style: styleOf(object), tooltip });
  }
  return described;
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
  if (text) child.textContent = text;
  return parent.appendChild(child);
}

// ---- the enlarged image -------------------------------------------------------------------------------------------------

const CLOSER = 3; // how much larger a click makes the enlarged image
let zoom = { n: null, isClose: false, drawing: null };

function openZoom(n) {
  zoom = { n, isClose: false, drawing: null };
  if (!at("zoom").open) at("zoom").showModal();
  const image = images[n], fresh = document.createElement("img");
  at("zoom-image").querySelector("img, p")?.remove();
  at("zoom-image").prepend(fresh);
  showImage(fresh, image);
  at("zoom-name").textContent = image.id;
  at("zoom-counts").replaceChildren();
  for (const count of countsOf(n)) add(at("zoom-counts"), "span", {}, count);
  const place = list.indexOf(n);
  at("zoom-previous").disabled = place <= 0;
  at("zoom-next").disabled = place < 0 || place + 1 >= list.length;
  fitZoom();
}

// Size the enlarged image: as large as the window allows, or closer, around the point (x, y) given as shares of the image.
function fitZoom(x = 0.5, y = 0.5) {
  const { width, height } = images[zoom.n], stage = at("zoom-stage"), { clientWidth, clientHeight } = stage;
  const scale = Math.min(clientWidth / width, clientHeight / height) * (zoom.isClose ? CLOSER : 1);
  at("zoom-image").style.width = `${width * scale}px`;
  at("zoom-image").style.height = `${height * scale}px`;
  at("zoom-image").classList.toggle("close", zoom.isClose);
  zoom.drawing = draw(at("zoom-image").querySelector("svg"), zoom.n, Math.max(width, height) * scale);
  styleDrawing(zoom.drawing, selection());
  describeDrawing(zoom.drawing);
  stage.scrollTo(x * width * scale - clientWidth / 2, y * height * scale - clientHeight / 2);
}

function turnZoom(step) {
  const n = list[list.indexOf(zoom.n) + step];
  if (n !== undefined) openZoom(n);
}

at("zoom-image").addEventListener("click", (event) => {
  const { left, top, width, height } = at("zoom-image").getBoundingClientRect();
  zoom.isClose = !zoom.isClose;
  fitZoom((event.clientX - left) / width, (event.clientY - top) / height);
});
at("zoom-previous").addEventListener("click", () => turnZoom(-1));
at("zoom-next").addEventListener("click", () => turnZoom(1));
at("zoom-close").addEventListener("click", () => at("zoom").close()); // so does Esc
at("zoom").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") turnZoom(-1);
  if (event.key === "ArrowRight") turnZoom(1);
});
addEventListener("resize", () => at("zoom").open && fitZoom());
