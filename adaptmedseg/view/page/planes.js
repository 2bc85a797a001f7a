// NiiVue with an image, a mask and a reference, and the way between places on the screen and canonical voxels.

import { Niivue } from "./niivue.js";

export const AXES = { 0: 2, 1: 1, 2: 0 }; // NiiVue's axial, coronal and sagittal: the axis that a slice is across
const AXIAL = 0;
const MULTIPLANAR = 3;
const COLOURS = [[80, 200, 120], [90, 170, 255], [230, 120, 230], [240, 220, 90], [120, 230, 230], [200, 200, 200]];

export function colourOf(value) {
  return COLOURS[(value - 1) % COLOURS.length];
}

function labelMap(names) {
  const values = [0, ...Object.keys(names).map(Number)];
  const colours = values.map((value) => (value ? colourOf(value) : [0, 0, 0]));
  return {
    R: colours.map((colour) => colour[0]),
    G: colours.map((colour) => colour[1]),
    B: colours.map((colour) => colour[2]),
    A: values.map((value) => (value ? 255 : 0)),
    I: values,
    labels: values.map((value) => names[value] ?? ""),
  };
}

export class Planes {
  constructor(canvas, facts) {
    this.facts = facts;
    this.canvas = canvas;
    this.nv = new Niivue({
      backColor: [0.06, 0.06, 0.06, 1],
      crosshairColor: [0.9, 0.75, 0.2, 0.6],
      crosshairWidth: 0.3,
      crosshairWidthUnit: "percent",
      dragAndDropEnabled: false,
      isRadiologicalConvention: facts.kind === "volume",
      isResizeCanvas: true,
      isNearestInterpolation: true,
      loadingText: "",
      multiplanarShowRender: 0,
      show3Dcrosshair: false,
      sliceType: facts.kind === "volume" ? MULTIPLANAR : AXIAL,
    });
  }

  static async open(canvas, facts) {
    const planes = new Planes(canvas, facts);
    await planes.nv.attachToCanvas(canvas);
    const volumes = [{ url: "image.nii", name: "image.nii", colormap: "gray" }];
    if (facts.reference) volumes.push({ url: "reference.nii", name: "reference.nii", opacity: 0 });
    volumes.push({ url: "mask.nii", name: "mask.nii", colormap: "red", opacity: 0.5, cal_min: 0.5, cal_max: 1 });
    await planes.nv.loadVolumes(volumes);
    if (facts.reference) planes.nv.volumes[1].setColormapLabel(labelMap(facts.reference.names));
    const mask = planes.nv.volumes[volumes.length - 1];
    mask.setColormapLabel({ R: [0, 255], G: [0, 120], B: [0, 30], A: [0, 255], I: [0, 1], labels: ["", "mask"] });
    if (facts.window) planes.setWindow(...facts.window);
    planes.nv.updateGLVolume();
    return planes;
  }

  get mask() {
    return this.nv.volumes[this.nv.volumes.length - 1];
  }

  setMask(voxels) {
    this.mask.img.set(voxels);
    this.nv.updateGLVolume();
  }

  setOpacity(volume, value) {
    this.nv.setOpacity(this.nv.volumes.indexOf(volume), value);
  }

  get reference() {
    return this.facts.reference ? this.nv.volumes[1] : null;
  }

  range() {
    const image = this.nv.volumes[0];
    return [image.global_min, image.global_max];
  }

  setWindow(low, high) {
    const image = this.nv.volumes[0];
    image.cal_min = low;
    image.cal_max = Math.max(high, low + 1e-6);
    this.nv.updateGLVolume();
  }

  setConvention(radiological) {
    this.nv.setRadiologicalConvention(radiological);
  }

  // What lies at a place of the canvas, in CSS pixels: the plane, the axis across it, and the voxel; the slice is whole.
  at(x, y) {
    const dpr = this.nv.uiData.dpr;
    const tile = this.nv.tileIndex(x * dpr, y * dpr);
    if (tile < 0) return null;
    const plane = this.nv.screenSlices[tile].axCorSag;
    const axis = AXES[plane];
    if (axis === undefined) return null;
    const frac = this.nv.screenXY2TextureFrac(x * dpr, y * dpr, tile, true);
    if (frac[0] < 0) return null;
    const voxel = this.voxel(frac);
    voxel[axis] = Math.round(voxel[axis]);
    return { plane, axis, voxel };
  }

  // Where a voxel is on the plane's tile, in CSS pixels, whatever slice it shows; null for a plane that is not there.
  place(voxel, plane) {
    const frac = this.frac(voxel);
    frac[AXES[plane]] = this.nv.scene.crosshairPos[AXES[plane]];
    const found = this.nv.frac2canvasPosWithTile(frac, plane);
    return found && found.pos.map((value) => value / this.nv.uiData.dpr);
  }

  planes() {
    return this.nv.screenSlices.map((tile) => tile.axCorSag).filter((plane) => plane in AXES);
  }

  voxel(frac) {
    return this.facts.shape.map((count, i) => Math.min(Math.max(frac[i] * count - 0.5, -0.5), count - 0.5));
  }

  frac(voxel) {
    return this.facts.shape.map((count, i) => (voxel[i] + 0.5) / count);
  }

  crosshair() {
    return this.voxel(this.nv.scene.crosshairPos);
  }

  moveTo(voxel) {
    this.nv.scene.crosshairPos = this.frac(voxel.map(Math.round));
    this.nv.drawScene();
  }

  step(axis, slices) {
    const voxel = this.crosshair().map(Math.round);
    voxel[axis] = Math.min(Math.max(voxel[axis] + slices, 0), this.facts.shape[axis] - 1);
    this.moveTo(voxel);
  }
}
