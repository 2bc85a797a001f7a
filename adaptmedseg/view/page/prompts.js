// Points and boxes of every structure, in canonical voxels (x, y, z), and the document that asks for one of them.

const EMPTY = { points: [], box: null };

export function transform(matrix, voxel) {
  return matrix.slice(0, 3).map((row) => row[0] * voxel[0] + row[1] * voxel[1] + row[2] * voxel[2] + row[3]);
}

// A box drawn on one slice says two of three extents. The third stays what an earlier box said, where the slice lies in
// it; else it is as long, in mm, as the drawn sides are on average.
export function boxOf(from, to, axis, shape, spacing, before) {
  const low = from.map((value, i) => Math.min(value, to[i]));
  const high = from.map((value, i) => Math.max(value, to[i]));
  const slice = from[axis];
  if (before && before.min[axis] <= slice && slice <= before.max[axis]) {
    low[axis] = before.min[axis];
    high[axis] = before.max[axis];
  } else {
    const drawn = [0, 1, 2].filter((i) => i !== axis).map((i) => (high[i] - low[i]) * spacing[i]);
    const half = (drawn[0] + drawn[1]) / 4 / spacing[axis];
    low[axis] = slice - half;
    high[axis] = slice + half;
  }
  const inside = (values) => values.map((value, i) => Math.round(Math.min(Math.max(value, 0), shape[i] - 1)));
  return { min: inside(low), max: inside(high) };
}

export class Prompts {
  constructor(facts) {
    this.facts = facts;
    this.history = [];
    this.byStructure = new Map();
  }

  of(structure) {
    return this.byStructure.get(structure) ?? EMPTY;
  }

  change(structure, value) {
    this.history.push([structure, this.of(structure)]);
    this.byStructure.set(structure, { ...this.of(structure), ...value });
  }

  addPoint(structure, voxel, positive) {
    this.change(structure, { points: [...this.of(structure).points, { voxel, positive }] });
  }

  clear(structure) {
    this.change(structure, EMPTY);
  }

  // Gives the structure whose prompts changed, or nothing.
  undo() {
    const [structure, value] = this.history.pop() ?? [];
    if (structure !== undefined) this.byStructure.set(structure, value);
    return structure;
  }

  // Whether there is something to ask a model about.
  asks(structure, named) {
    const { points, box } = this.of(structure);
    return named || box !== null || points.some((point) => point.positive);
  }

  // Prompts in the file's own voxels, as docs/prompts.md has them.
  document(structures, named) {
    return { version: 1, space: "voxel", prompts: structures.map((structure) => this.entry(structure, named)) };
  }

  entry(structure, named) {
    const { points, box } = this.of(structure);
    const entry = { structure, text: named };
    if (points.length) {
      entry.points = points.map(({ voxel, positive }) => ({
        position: this.inFile(voxel),
        label: positive ? "positive" : "negative",
      }));
    }
    if (box) entry.box = { min: this.inFile(box.min), max: this.inFile(box.max) };
    return entry;
  }

  inFile(voxel) {
    const position = transform(this.facts.to_file, voxel).map((value) => Math.round(value * 100) / 100);
    return this.facts.kind === "picture" ? position.slice(0, 2) : position;
  }
}
