// Wires the page: pointer and buttons to prompts, prompts to the server, its masks to the planes.

import { boxOf, Prompts, transform } from "./prompts.js";
import { colourOf, Planes } from "./planes.js";
import { draw } from "./drawing.js";

const CLICK = 4; // CSS pixels that a click may wander
const get = (id) => document.getElementById(id);
const stage = get("prompts");

let facts, planes, prompts;
let drag = null; // a box being drawn: {plane, axis, from, to, start}
let waiting = false;
let again = false;

function say(text, error = false) {
  get("status").textContent = text;
  get("status").classList.toggle("error", error);
}

const structure = () => get("structure").value.trim() || (facts.named ? "" : "object");
const named = () => facts.named && get("named").checked;

function redraw() {
  draw(stage, planes, prompts.of(structure()), drag);
}

function listed(voxel) {
  const place = facts.to_world ? transform(facts.to_world, voxel) : transform(facts.to_file, voxel).slice(0, 2);
  return place.map((value) => value.toFixed(1)).join(", ") + (facts.to_world ? " mm" : " px");
}

function refresh() {
  const { points, box } = prompts.of(structure());
  const lines = points.map(({ voxel, positive }) => [positive ? "positive" : "negative", `${positive ? "inside" : "outside"} ${listed(voxel)}`]);
  if (box) lines.push(["box", `box ${listed(box.min)} to ${listed(box.max)}`]);
  get("list").replaceChildren(...lines.map(([kind, text]) => Object.assign(document.createElement("li"), { className: kind, textContent: text })));
  get("undo").disabled = !prompts.history.length;
  get("clear").disabled = get("save-prompts").disabled = !lines.length;
  redraw();
}

async function post(name, body) {
  const reply = await fetch(name, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  if (!reply.ok) throw new Error((await reply.json()).error);
  return reply;
}

// Asks about the prompts as they are; where a question is still out, once more after it.
async function ask() {
  refresh();
  if (waiting) {
    again = true;
    return;
  }
  if (!structure() || !prompts.asks(structure(), named())) {
    planes.setMask(new Uint8Array(planes.mask.img.length));
    get("save-mask").disabled = true;
    say(structure() ? "click into the structure, or drag a box round it" : "name a structure");
    return;
  }
  waiting = true;
  say("asking …");
  const started = performance.now();
  try {
    const reply = await post("ask", { prompts: prompts.document([structure()], named()), zoom: get("zoom").checked });
    const answer = JSON.parse(reply.headers.get("X-Answer"));
    const voxels = new Uint8Array(await reply.arrayBuffer());
    planes.setMask(voxels);
    get("save-mask").disabled = !answer.voxels;
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    say(`${answer.structure}: ${answer.voxels ? answer.size : "nothing found"}, ${seconds} s (${answer.origin})`);
    redraw();
    return voxels;
  } catch (error) {
    say(error instanceof TypeError ? "the server is gone; start adaptmedseg view again" : error.message, true);
  } finally {
    waiting = false;
    if (again) {
      again = false;
      ask();
    }
  }
}

function keep(name, blob) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function saveMask() {
  try {
    const reply = await post("save", {});
    keep(JSON.parse(reply.headers.get("X-File-Name")), await reply.blob());
  } catch (error) {
    say(error.message, true);
  }
}

function savePrompts() {
  const asked = [...prompts.byStructure.keys()].filter((name) => prompts.asks(name, false));
  const text = JSON.stringify(prompts.document(asked, named()), null, 1);
  keep(`${facts.name}_prompts.json`, new Blob([text], { type: "application/json" }));
}

function under(event) {
  const frame = stage.getBoundingClientRect();
  return planes.at(event.clientX - frame.left, event.clientY - frame.top);
}

function onDown(event) {
  const found = under(event);
  if (!found) return;
  stage.setPointerCapture(event.pointerId);
  if (event.button === 0) drag = { ...found, from: found.voxel, to: found.voxel, start: [event.clientX, event.clientY], moved: false };
  else onLook(found);
  event.preventDefault();
}

function onLook(found) {
  planes.moveTo(found.voxel);
  redraw();
}

function onMove(event) {
  const found = under(event);
  if (found) get("cursor").textContent = `voxel ${found.voxel.map(Math.round).join(", ")} · ${listed(found.voxel)}`;
  if (!found) return;
  if (!drag) {
    if (event.buttons & 6) onLook(found);
    return;
  }
  drag.moved ||= Math.hypot(event.clientX - drag.start[0], event.clientY - drag.start[1]) > CLICK;
  if (found.plane === drag.plane) drag.to = found.voxel;
  if (drag.moved) redraw();
}

function onUp(event) {
  if (!drag || event.button !== 0) return;
  const { moved, axis, from, to } = drag;
  drag = null;
  if (!structure()) {
    say("name a structure first", true);
    return;
  }
  if (moved) {
    const box = boxOf(from, to, axis, facts.shape, facts.spacing, prompts.of(structure()).box);
    if ([0, 1, 2].some((i) => i !== axis && box.min[i] === box.max[i])) return redraw();
    prompts.change(structure(), { box });
  } else {
    prompts.addPoint(structure(), from.map((value, i) => Math.min(Math.max(value, 0), facts.shape[i] - 1)), !event.shiftKey);
    planes.moveTo(from);
  }
  ask();
}

function onWheel(event) {
  const found = under(event);
  if (!found) return;
  planes.step(found.axis, event.deltaY > 0 ? -1 : 1);
  redraw();
  event.preventDefault();
}

function listen() {
  stage.addEventListener("pointerdown", onDown);
  stage.addEventListener("pointermove", onMove);
  stage.addEventListener("pointerup", onUp);
  stage.addEventListener("pointercancel", () => { drag = null; redraw(); });
  stage.addEventListener("contextmenu", (event) => event.preventDefault());
  stage.addEventListener("wheel", onWheel, { passive: false });
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe(stage);
  for (const id of ["structure", "named", "zoom"]) get(id).addEventListener("change", ask);
  get("undo").addEventListener("click", () => { const changed = prompts.undo(); if (changed && facts.named) get("structure").value = changed; ask(); });
  get("clear").addEventListener("click", () => { prompts.clear(structure()); ask(); });
  get("save-mask").addEventListener("click", saveMask);
  get("save-prompts").addEventListener("click", savePrompts);
  get("opacity").addEventListener("input", (event) => { planes.setOpacity(planes.mask, Number(event.target.value)); });
  get("reference").addEventListener("input", (event) => { planes.setOpacity(planes.reference, Number(event.target.value)); });
  get("convention").addEventListener("change", (event) => { planes.setConvention(event.target.checked); redraw(); });
  for (const id of ["low", "high"]) get(id).addEventListener("input", () => planes.setWindow(Number(get("low").value), Number(get("high").value)));
}

function describe() {
  document.title = `${facts.name} · adaptmedseg`;
  get("name").textContent = facts.name;
  get("about").textContent = [facts.modality, facts.shape.join(" × "), facts.model].filter(Boolean).join(" · ");
  get("structures").replaceChildren(...facts.structures.map((value) => Object.assign(document.createElement("option"), { value })));
  get("structure").value = facts.structures[0] ?? "";
  get("zoom").checked = facts.zoom;
  get("notes").replaceChildren(...facts.notes.map((textContent) => Object.assign(document.createElement("li"), { textContent })));
  const picture = facts.kind === "picture";
  for (const id of ["named-row", "zoom-row", "convention-row", "window-row"]) get(id).hidden = picture;
  get("reference-row").hidden = !facts.reference;
  get("reference-names").replaceChildren(...Object.entries(facts.reference?.names ?? {}).map(([value, name]) => {
    const item = Object.assign(document.createElement("span"), { textContent: name });
    item.style.color = `rgb(${colourOf(Number(value)).join(",")})`;
    return item;
  }));
  const [least, most] = planes.range();
  for (const [id, value] of [["low", facts.window?.[0]], ["high", facts.window?.[1]]]) {
    Object.assign(get(id), { min: least, max: most, step: (most - least) / 500 || 1 });
    get(id).value = value ?? least;
  }
}

// Slices through the middle of a mask, so that the first answer is in sight.
function lookAt(voxels) {
  const [nx, ny] = facts.shape;
  const sum = [0, 0, 0];
  let count = 0;
  voxels.forEach((value, index) => {
    if (!value) return;
    sum[0] += index % nx;
    sum[1] += Math.floor(index / nx) % ny;
    sum[2] += Math.floor(index / (nx * ny));
    count += 1;
  });
  if (count) onLook({ voxel: sum.map((value) => value / count) });
}

async function start() {
  facts = await (await fetch("scene.json")).json();
  planes = await Planes.open(get("image"), facts);
  prompts = new Prompts(facts);
  describe();
  listen();
  const voxels = await ask();
  if (voxels) lookAt(voxels);
}

start().catch((error) => say(`the page could not start: ${error.message}`, true));
