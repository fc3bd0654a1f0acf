/** Writes garbage into ranges of an arena, as fast as it can, until told to stop. */
import { parentPort, workerData } from 'node:worker_threads';

const { memory, ranges, stop, seed } = workerData as {
  memory: WebAssembly.Memory;
  /** [arena offset, bytes, largest ordinary value]: how much of what to overwrite. */
  ranges: readonly (readonly [number, number, number])[];
  stop: Int32Array;
  seed: number;
};
const words = new Uint32Array(memory.buffer);
let x = seed;
const random = (): number => {
  x ^= x << 13;
  x ^= x >>> 17;
  x ^= x << 5;
  return x >>> 0;
};
let writes = 0;
parentPort!.postMessage('started');
while (Atomics.load(stop, 0) === 0) {
  for (let i = 0; i < 1000; i++) {
    const [ofs, bytes, top] = ranges[random() % ranges.length]!;
    // Mostly values that look right, so that more than the first check is reached.
    words[(ofs + (random() % bytes)) >>> 2] = random() % 8 === 0 ? random() : random() % (top + 1);
    writes++;
  }
}
parentPort!.postMessage(writes);
