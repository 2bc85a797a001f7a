// Draws the prompts over the image: points and boxes of the slices that are shown.

import { AXES } from "./planes.js";

const OTHER = "rgba(255, 255, 255, 0.25)";

export function draw(canvas, planes, { points, box }, drag) {
  const context = fitted(canvas);
  const here = planes.crosshair();
  for (const plane of planes.planes()) {
    const axis = AXES[plane];
    if (box) rectangle(context, planes, plane, box.min, box.max, within(box, here, axis) ? "#ffd34d" : OTHER);
    for (const point of points) {
      const near = Math.abs(point.voxel[axis] - here[axis]) < 0.75;
      dot(context, planes.place(point.voxel, plane), near ? (point.positive ? "#35e06a" : "#ff5252") : OTHER);
    }
    if (drag && drag.plane === plane) rectangle(context, planes, plane, drag.from, drag.to, "#fff", false);
  }
}

function fitted(canvas) {
  const dpr = window.devicePixelRatio;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * dpr;
  canvas.height = height * dpr;
  const context = canvas.getContext("2d");
  context.scale(dpr, dpr);
  return context;
}

function within(box, voxel, axis) {
  return box.min[axis] - 0.5 <= voxel[axis] && voxel[axis] <= box.max[axis] + 0.5;
}

function rectangle(context, planes, plane, low, high, colour, whole = true) {
  const half = whole ? 0.5 : 0; // a box holds the whole of its outermost voxels
  const a = planes.place(low.map((value) => value - half), plane);
  const b = planes.place(high.map((value) => value + half), plane);
  if (!a || !b) return;
  context.strokeStyle = colour;
  context.lineWidth = 2;
  context.strokeRect(Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1]));
}

function dot(context, place, colour) {
  if (!place) return;
  context.beginPath();
  context.arc(place[0], place[1], 5, 0, 2 * Math.PI);
  context.fillStyle = colour;
  context.strokeStyle = "#000";
  context.lineWidth = 1.5;
  context.fill();
  context.stroke();
}
