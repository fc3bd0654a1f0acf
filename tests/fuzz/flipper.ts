/** A worker that writes random words into a guest's CSB pages and the head of its region (rings, slots) for ever. */
import { writeSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';

const { csb, region, header } = workerData as { csb: number; region: number; header: number };
const word = Buffer.alloc(8);
parentPort!.postMessage('begun');
for (;;) {
  // Small numbers are indexes that may well be valid.
  const small = Math.random() < 0.7;
  word.writeUInt32LE(small ? Math.floor(Math.random() * 70) : Math.floor(Math.random() * 2 ** 32), 0);
  word.writeUInt32LE(small ? Math.floor(Math.random() * 1600) : Math.floor(Math.random() * 2 ** 32), 4);
  if (Math.random() < 0.5)
    writeSync(csb, word, 0, 4, 4096 * Math.floor(Math.random() * 2) + 4 * Math.floor(Math.random() * 32));
  else writeSync(region, word, 0, 8, 8 * Math.floor((Math.random() * header) / 8));
}
